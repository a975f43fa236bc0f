//! `zmlx generate`: answers or continues a prompt.

mod report;

use std::cell::OnceCell;
use std::io::{IsTerminal, Read};
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use zmlx_kernels::Instrumented;
use zmlx_models::{ChatMessage, ChatRequest, Checkpoint, Error, Event, Request, StopReason, Tokenizer};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, SamplingArgs, TemplateArgs, heading, max_tokens};
use crate::embedded;
use crate::engine::{self, About, Job};
use crate::interrupt::{self, Busy};
use crate::memory;
use crate::output::{Outcome, note};
use crate::progress::Progress;
use crate::ranks;
use crate::source::Source;
use report::{Format, Stream, print_report};

/// Arguments of `zmlx generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The generated text goes to stdout, statistics and messages go to stderr.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt. - reads it from stdin, up to the last byte. Without a prompt the model continues the opening of a
    /// novel.
    #[arg(short, long, value_name = "TEXT|-", help_heading = heading::PROMPT)]
    prompt: Option<String>,
    /// The prompt as tokens instead of text. Needs no tokenizer.
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = heading::PROMPT,
        conflicts_with_all = ["prompt", "raw", "chat", "system", "chat_template_config"]
    )]
    prompt_tokens: Option<Vec<u32>>,
    /// Continue the prompt as it is. Without this option a model with a chat template takes the prompt as a user's
    /// message. With --json the prompt is continued as it is by default.
    #[arg(
        long,
        visible_alias = "ignore-chat-template",
        help_heading = heading::PROMPT,
        conflicts_with_all = ["system", "chat_template_config"]
    )]
    raw: bool,
    /// Take the prompt as a user's message, also with --json.
    #[arg(long, help_heading = heading::PROMPT, conflicts_with = "raw")]
    chat: bool,
    #[command(flatten)]
    template: TemplateArgs,
    /// Generate at most N tokens. -1 means as many as the context has room for.
    #[arg(
        short,
        long,
        value_name = "N",
        default_value = "100",
        allow_negative_numbers = true,
        value_parser = max_tokens,
        help_heading = heading::SAMPLING
    )]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print the statistics on stdout after the text, in the format of mlx_lm.generate.
    #[arg(long, conflicts_with = "json", help_heading = heading::OUTPUT)]
    stats: bool,
    /// Print one JSON object instead of text.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
}

/// Continues the prompt, and prints the text and the statistics.
pub(crate) fn run(args: Args, verbose: bool) -> Result<Outcome> {
    let sampling = args.sampling.params()?;
    let source = Source::resolve(&args.model)?;
    let checkpoint = source.checkpoint()?;
    let (prompt, tokenizer) = match &args.prompt_tokens {
        Some(tokens) => (tokens.clone(), source.tokenizer()?),
        None => {
            let tokenizer = source.need_tokenizer()?;
            let tokens = tokenizer.encode(&prompt_text(&args, &source)?)?;
            (tokens, Some(tokenizer))
        }
    };
    // The others are told what rank 0 has read.
    if prompt.is_empty() && !ranks::is_follower() {
        return Err(Error::EmptyPrompt.into());
    }
    let eos_token_ids =
        if args.sampling.ignore_eos { Vec::new() } else { checkpoint.eos_token_ids().to_vec() };
    let max_tokens = args.max_tokens.min(checkpoint.architecture().max_position_embeddings);
    let request = Request {
        sampling,
        eos_token_ids,
        stop: args.sampling.stop.clone(),
        ..Request::new(prompt.clone(), max_tokens)
    };
    let work = (&request.sampling, request.max_tokens, &request.eos_token_ids, &request.stop, args.fusion);
    ranks::agree(&checkpoint, &format!("{work:?}"))?;
    let format = match (args.json, args.stats) {
        (true, _) => Format::Json,
        (_, true) => Format::TextWithStatistics,
        _ => Format::Text,
    };
    // A person who sees the demonstration should also see the text that the model continues. A pipe gets only the
    // generated text.
    let is_demo = args.prompt.is_none() && args.prompt_tokens.is_none();
    let is_seen = format == Format::Text && std::io::stdout().is_terminal();
    let opening = (is_demo && is_seen).then_some(embedded::NOVEL);
    interrupt::install()?;
    let job =
        Continue { checkpoint, tokenizer, prompt, request, opening, fusion: args.fusion, format, verbose };
    engine::with_backend(args.backend, job)
}

/// The text to continue: the prompt after the chat template, if there is a template and the arguments ask for it.
fn prompt_text(args: &Args, source: &Source) -> Result<String> {
    let kwargs = args.template.kwargs();
    let needs_template = args.template.system.is_some() || !kwargs.is_empty();
    let text = match args.prompt.as_deref() {
        None if needs_template => bail!("--system-prompt and --chat-template-config need --prompt"),
        None => return Ok(embedded::NOVEL.to_owned()),
        Some("-") if ranks::is_follower() => return Ok(String::new()),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("stdin")?;
            text
        }
        Some(text) => text.to_owned(),
    };
    let is_as_it_is = args.raw || (args.json && !args.chat && !needs_template);
    if text.is_empty() || is_as_it_is {
        return Ok(text);
    }
    let template = match source.chat_template() {
        Ok(template) => template,
        Err(error) if is_without_template(&error) && !needs_template && !args.chat => return Ok(text),
        Err(error) => return Err(error),
    };
    let system = args.template.system.clone().map(|content| ChatMessage::new("system", content));
    let messages: Vec<_> = system.into_iter().chain([ChatMessage::new("user", text)]).collect();
    Ok(template.render(&ChatRequest::new(&messages).with_kwargs(&kwargs))?)
}

fn is_without_template(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NoChatTemplate { .. }))
}

struct Continue {
    checkpoint: Checkpoint,
    tokenizer: Option<Tokenizer>,
    prompt: Vec<u32>,
    request: Request,
    /// A text to show before the generated one.
    opening: Option<&'static str>,
    fusion: FusionArgs,
    format: Format,
    verbose: bool,
}

impl Job for Continue {
    fn run<B: Instrumented>(self, backend: B, about: &About) -> Result<Outcome> {
        let (mut model, load_time) = engine::load(backend, &self.checkpoint)?;
        let fusion = about.fusion(&model, self.fusion)?;
        if ranks::follows(&mut model, &fusion)? {
            return Ok(Outcome::Done);
        }
        let Self { checkpoint, tokenizer, prompt, request, opening, format, verbose, .. } = self;
        // While the prompt is computed there is no result to keep, so Ctrl-C ends the process at once.
        let busy = OnceCell::new();
        let mut stream = Stream::new(format, opening);
        let mut progress = Progress::new("Prompt");
        let has_text = tokenizer.is_some();
        let generation =
            zmlx_models::generate(&model, tokenizer.as_ref(), fusion, request, |event| match event {
                Event::Prompt { n_done, n_tokens, .. } => {
                    progress.update(*n_done, *n_tokens);
                    if n_done == n_tokens {
                        busy.get_or_init(interrupt::begin);
                    }
                    ControlFlow::Continue(())
                }
                Event::Token { token, .. } => {
                    let id = if has_text { String::new() } else { format!("{} ", token.token) };
                    // If the reader of stdout is gone, generation ends as with Ctrl-C; `stream` keeps the error.
                    let is_told = stream.push(if has_text { &token.text } else { &id });
                    let more = is_told && !busy.get().is_some_and(Busy::is_asked);
                    if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }
                _ => ControlFlow::Continue(()),
            });
        let generation = match generation {
            Ok(generation) => generation,
            Err(e) => {
                stream.abandon();
                return Err(e.into());
            }
        };
        stream.end(if has_text { &generation.text } else { "" })?;
        if verbose {
            note(format_args!("Model: {}", checkpoint.name()));
            note(format_args!("Backend: {}", about.text));
            note(format_args!("Fusion: {fusion}"));
            note(format_args!("Load time: {:.3} s", load_time.as_secs_f64()));
            let reason = generation.finished.reason;
            note(format_args!("Stop reason: {} ({})", reason.name(), explained(reason)));
        }
        print_report(&prompt, &generation, memory::peak_bytes(model.backend()), format)?;
        Ok(Outcome::Done)
    }
}

fn explained(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Eos => "the model ended the text",
        StopReason::StopString => "a stop string",
        StopReason::MaxTokens => "--max-tokens",
        StopReason::ContextLength => "the model's context is full",
        StopReason::CacheFull => "the memory for keys and values is full",
        StopReason::Interrupted => "interrupted",
        other => other.name(),
    }
}

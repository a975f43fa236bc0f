//! `zmlx generate`: continue a prompt.

mod report;

use std::cell::OnceCell;
use std::io::Read;
use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use zmlx_kernels::Backend;
use zmlx_models::{ChatMessage, ChatRequest, Checkpoint, Event, Request, StopReason, Tokenizer};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, SamplingArgs, TemplateArgs};
use crate::embedded;
use crate::engine::{self, About, Job};
use crate::interrupt::{self, Busy};
use crate::output::{Outcome, note};
use crate::progress::Progress;
use crate::source::Source;
use report::{Stream, print_report};

/// Arguments of `zmlx generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue; - reads it from stdin, to the last byte. Without it, the opening of a novel.
    #[arg(short, long, value_name = "TEXT|-")]
    prompt: Option<String>,
    /// The tokens to continue, instead of a text: needs no tokenizer.
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        conflicts_with_all = ["prompt", "chat", "system", "chat_template_config"]
    )]
    prompt_tokens: Option<Vec<u32>>,
    /// Most tokens to generate.
    #[arg(short, long, value_name = "N", default_value_t = 100)]
    max_tokens: usize,
    /// Make the prompt the user's message of a conversation, as the checkpoint's chat template writes it.
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Continues the prompt and prints text and statistics.
pub(crate) fn run(args: Args, verbose: bool) -> Result<Outcome> {
    let sampling = args.sampling.params()?;
    if !args.chat && (args.template.system.is_some() || !args.template.kwargs().is_empty()) {
        bail!("--system and --chat-template-config need --chat");
    }
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
    if prompt.is_empty() {
        return Err(zmlx_models::Error::EmptyPrompt.into());
    }
    let eos_token_ids =
        if args.sampling.ignore_eos { Vec::new() } else { checkpoint.eos_token_ids().to_vec() };
    let request = Request {
        sampling,
        eos_token_ids,
        stop: args.sampling.stop.clone(),
        ..Request::new(prompt.clone(), args.max_tokens)
    };
    interrupt::install()?;
    let job =
        Continue { checkpoint, tokenizer, prompt, request, fusion: args.fusion, json: args.json, verbose };
    engine::with_backend(args.backend, job)
}

/// The text to continue, in the words of the chat template if asked.
fn prompt_text(args: &Args, source: &Source) -> Result<String> {
    let text = match args.prompt.as_deref() {
        None => embedded::NOVEL.to_owned(),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("stdin")?;
            text
        }
        Some(text) => text.to_owned(),
    };
    if !args.chat {
        return Ok(text);
    }
    let system = args.template.system.clone().map(|content| ChatMessage::new("system", content));
    let messages: Vec<_> = system.into_iter().chain([ChatMessage::new("user", text)]).collect();
    let kwargs = args.template.kwargs();
    Ok(source.chat_template()?.render(&ChatRequest::new(&messages).with_kwargs(&kwargs))?)
}

struct Continue {
    checkpoint: Checkpoint,
    tokenizer: Option<Tokenizer>,
    prompt: Vec<u32>,
    request: Request,
    fusion: FusionArgs,
    json: bool,
    verbose: bool,
}

impl Job for Continue {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, load_time) = engine::load(backend, &self.checkpoint)?;
        let fusion = about.fusion(&model, self.fusion)?;
        let Self { checkpoint, tokenizer, prompt, request, json, verbose, .. } = self;
        // While the prompt is read there is nothing to save: Ctrl-C ends the process at once.
        let busy = OnceCell::new();
        let mut stream = Stream::new(!json);
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
                    // A reader that has gone ends the work as Ctrl-C does; the error is kept.
                    let is_told = stream.push(if has_text { &token.text } else { &id });
                    let more = is_told && !busy.get().is_some_and(Busy::is_asked);
                    if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }
                Event::Started { .. } | Event::Finished { .. } | Event::Failed { .. } => {
                    ControlFlow::Continue(())
                }
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
        print_report(&prompt, &generation, json)?;
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
    }
}

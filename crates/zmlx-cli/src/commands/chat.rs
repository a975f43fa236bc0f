//! `zmlx chat`: a conversation, line by line, on one growing cache.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use zmlx_kernels::Backend;
use zmlx_models::engine::PrefixCacheOptions;
use zmlx_models::{
    ChatMessage, ChatRequest, ChatTemplate, Checkpoint, Engine, EngineOptions, Event, Generation, Request,
    SamplingParams, StopReason, Tokenizer,
};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, SamplingArgs, TemplateArgs};
use crate::engine::{self, About, Job};
use crate::interrupt;
use crate::output::{Outcome, message, note, print};
use crate::progress::Progress;
use crate::source::Source;

/// Arguments of `zmlx chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens of an answer.
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

/// Answers lines from stdin until it ends or says `/exit`.
pub(crate) fn run(args: Args, verbose: bool) -> Result<Outcome> {
    let sampling = args.sampling.params()?;
    let source = Source::resolve(&args.model)?;
    let checkpoint = source.checkpoint()?;
    let eos_token_ids =
        if args.sampling.ignore_eos { Vec::new() } else { checkpoint.eos_token_ids().to_vec() };
    let job = Talk {
        tokenizer: source.need_tokenizer()?,
        template: source.chat_template()?,
        kwargs: args.template.kwargs(),
        system: args.template.system,
        checkpoint,
        max_tokens: args.max_tokens,
        sampling,
        eos_token_ids,
        stop: args.sampling.stop,
        fusion: args.fusion,
        verbose,
    };
    interrupt::install()?;
    engine::with_backend(args.backend, job)
}

struct Talk {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    kwargs: Map<String, Value>,
    system: Option<String>,
    max_tokens: usize,
    sampling: SamplingParams,
    eos_token_ids: Vec<u32>,
    stop: Vec<String>,
    fusion: FusionArgs,
    verbose: bool,
}

impl Job for Talk {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, load_time) = engine::load(backend, &self.checkpoint)?;
        let options = EngineOptions {
            // The conversation, however short.
            prefix_cache: PrefixCacheOptions {
                max_entries: 1,
                min_tokens: 1,
                ..PrefixCacheOptions::default()
            },
            ..EngineOptions::one_sequence(about.fusion(&model, self.fusion)?)
        };
        let mut engine = Engine::new(&model, Some(&self.tokenizer), options)?;
        if self.verbose {
            note(format_args!("Backend: {}", about.text));
            note(format_args!("Load time: {:.3} s", load_time.as_secs_f64()));
        }
        let mut messages = self.opening();
        let is_terminal = std::io::stdin().is_terminal();
        if is_terminal {
            note(format_args!("{}: /reset forgets the conversation, /exit ends it.", self.checkpoint.name()));
        }
        let mut line = String::new();
        loop {
            if is_terminal {
                print("> ")?;
            }
            line.clear();
            // Read in one go: the lock is not held while answering.
            if std::io::stdin().lock().read_line(&mut line).context("stdin")? == 0 {
                return Ok(Outcome::Done);
            }
            match line.trim() {
                "" => {}
                "/exit" => return Ok(Outcome::Done),
                "/reset" => messages = self.opening(),
                text => {
                    let n_messages = messages.len();
                    if let Err(error) = self.answer(&mut engine, &mut messages, text) {
                        // A person can go on (after /reset if the context is full); a script should know.
                        if !is_terminal || crate::output::is_broken_pipe(&error) {
                            return Err(error);
                        }
                        note(format_args!("error: {}", message(&error)));
                        messages.truncate(n_messages);
                    }
                }
            }
        }
    }
}

impl Talk {
    fn opening(&self) -> Vec<ChatMessage> {
        self.system.iter().map(|s| ChatMessage::new("system", s.as_str())).collect()
    }

    /// Adds the user's message and the model's answer, which is printed as it comes. What was ended before there was an
    /// answer was not said.
    fn answer<B: Backend>(
        &self,
        engine: &mut Engine<'_, B>,
        messages: &mut Vec<ChatMessage>,
        text: &str,
    ) -> Result<()> {
        messages.push(ChatMessage::new("user", text));
        let request = ChatRequest::new(messages).with_kwargs(&self.kwargs);
        let prompt = self.tokenizer.encode(&self.template.render(&request)?)?;
        let generation = self.stream(engine, prompt)?;
        let finished = &generation.finished;
        if self.verbose {
            note(format_args!(
                "Prompt: {} tokens ({} of them cached), {:.3} tokens-per-sec; answer: {} tokens, {:.3} \
                 tokens-per-sec; stop reason: {}",
                finished.n_prompt_tokens,
                finished.n_cached_tokens,
                generation.prompt_tps(),
                generation.tokens.len(),
                generation.generation_tps(),
                finished.reason.name()
            ));
        }
        if finished.reason == StopReason::Interrupted && generation.tokens.is_empty() {
            messages.pop();
        } else {
            messages.push(ChatMessage::new("assistant", generation.text));
        }
        Ok(())
    }

    fn stream<B: Backend>(&self, engine: &mut Engine<'_, B>, prompt: Vec<u32>) -> Result<Generation> {
        let request = Request {
            sampling: self.sampling.clone(),
            eos_token_ids: self.eos_token_ids.clone(),
            stop: self.stop.clone(),
            ..Request::new(prompt, self.max_tokens)
        };
        let busy = interrupt::begin();
        let mut progress = Progress::new("Prompt");
        let mut printed = Ok(0);
        let generation = engine.complete(request, |event| {
            match event {
                Event::Prompt { n_done, n_tokens, .. } => progress.update(*n_done, *n_tokens),
                Event::Token { token, .. } => {
                    if let Ok(n) = &mut printed {
                        match print(&token.text) {
                            Ok(()) => *n += token.text.len(),
                            Err(e) => printed = Err(e),
                        }
                    }
                }
                Event::Started { .. } | Event::Finished { .. } | Event::Failed { .. } => {}
            }
            let more = printed.is_ok() && !busy.is_asked();
            if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let (generation, n_printed) = (generation?, printed?);
        print(&format!("{}\n", generation.text.get(n_printed..).unwrap_or_default()))?;
        Ok(generation)
    }
}

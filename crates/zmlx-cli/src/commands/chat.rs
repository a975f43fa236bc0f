//! `zmlx chat`: a conversation, line by line, on one growing cache.

use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{
    ChatMessage, ChatRequest, ChatTemplate, Checkpoint, GenerateOptions, Generation, Model, State, Tokenizer,
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
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling,
        eos_token_ids,
        stop: args.sampling.stop.clone(),
        // The backend has a say in it: see `run`.
        fusion: Fusion::STOCK,
    };
    let job = Talk {
        tokenizer: source.need_tokenizer()?,
        template: source.chat_template()?,
        kwargs: args.template.kwargs(),
        system: args.template.system,
        checkpoint,
        options,
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
    options: GenerateOptions,
    fusion: FusionArgs,
    verbose: bool,
}

/// The conversation so far and what the caches hold of it.
struct Conversation<B: Backend> {
    messages: Vec<ChatMessage>,
    state: State<B>,
    /// The tokens in `state`.
    cached: Vec<u32>,
}

impl Job for Talk {
    fn run<B: Backend>(mut self, backend: B, about: &About) -> Result<Outcome> {
        let (model, load_time) = engine::load(backend, &self.checkpoint)?;
        self.options.fusion = about.fusion(&model, self.fusion)?;
        if self.verbose {
            note(format_args!("Backend: {}", about.text));
            note(format_args!("Load time: {:.3} s", load_time.as_secs_f64()));
        }
        let mut talk = Conversation { messages: self.opening(), state: model.state(1)?, cached: Vec::new() };
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
                "/reset" => talk.messages = self.opening(),
                text => {
                    let n_messages = talk.messages.len();
                    if let Err(error) = self.answer(&model, &mut talk, text) {
                        // A person can go on (after /reset if the context is full); a script should know.
                        if !is_terminal || crate::output::is_broken_pipe(&error) {
                            return Err(error);
                        }
                        note(format_args!("error: {}", message(&error)));
                        talk.messages.truncate(n_messages);
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

    /// Adds the user's message and the model's answer, which is printed as it comes.
    fn answer<B: Backend>(&self, model: &Model<B>, talk: &mut Conversation<B>, text: &str) -> Result<()> {
        talk.messages.push(ChatMessage::new("user", text));
        let request = ChatRequest::new(&talk.messages).with_kwargs(&self.kwargs);
        let prompt = self.tokenizer.encode(&self.template.render(&request)?)?;
        // At least one token must be computed, for its logits.
        let n_kept = common_prefix(&talk.cached, &prompt).min(prompt.len().saturating_sub(1));
        model.truncate(&mut talk.state, 0, n_kept)?;
        talk.cached.truncate(n_kept);

        let answered = self.stream(model, &mut talk.state, &prompt[n_kept..]);
        // Also after an error the caches hold a beginning of the prompt and the answer.
        talk.cached = prompt.clone();
        if let Ok(generation) = &answered {
            talk.cached.extend(&generation.tokens);
        }
        talk.cached.truncate(talk.state.n_tokens(0));
        let generation = answered?;
        if self.verbose {
            note(format_args!(
                "Prompt: {} tokens ({n_kept} of them cached), {:.3} tokens-per-sec; answer: {} tokens, {:.3} \
                 tokens-per-sec; stop reason: {}",
                prompt.len(),
                generation.prompt_tps(),
                generation.tokens.len(),
                generation.generation_tps(),
                generation.stop_reason.name()
            ));
        }
        talk.messages.push(ChatMessage::new("assistant", generation.text));
        Ok(())
    }

    fn stream<B: Backend>(
        &self,
        model: &Model<B>,
        state: &mut State<B>,
        tokens: &[u32],
    ) -> Result<Generation> {
        let busy = interrupt::begin();
        let mut progress = Progress::new("Prompt");
        let mut printed = Ok(0);
        let generation = zmlx_models::generate(
            model,
            state,
            Some(&self.tokenizer),
            tokens,
            &self.options,
            &mut |done, of| progress.update(done, of),
            |step| {
                if let Ok(n) = &mut printed {
                    match print(step.text) {
                        Ok(()) => *n += step.text.len(),
                        Err(e) => printed = Err(e),
                    }
                }
                let more = printed.is_ok() && !busy.is_asked();
                if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        );
        let (generation, n_printed) = (generation?, printed?);
        print(&format!("{}\n", generation.text.get(n_printed..).unwrap_or_default()))?;
        Ok(generation)
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::common_prefix;

    #[test]
    fn prefixes() {
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(common_prefix(&[1], &[1, 2]), 1);
        assert_eq!(common_prefix(&[], &[1]), 0);
    }
}

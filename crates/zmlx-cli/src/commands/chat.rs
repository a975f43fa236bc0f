//! `zmlx chat`: a conversation on one growing KV cache, with a person at a terminal or with lines from a pipe.

mod answer;
mod conversation;
mod input;
mod line;
mod screen;
mod settings;

use std::path::Path;

use anyhow::Result;
use zmlx_kernels::Backend;
use zmlx_models::engine::PrefixCacheOptions;
use zmlx_models::{ChatTemplate, Checkpoint, Engine, EngineOptions, Tokenizer};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, SamplingArgs, TemplateArgs};
use crate::engine::{self, About, Job};
use crate::interrupt;
use crate::output::{Outcome, escaped, is_broken_pipe, message, note, print};
use answer::Answers;
use conversation::Conversation;
use input::Read;
use line::Input;
use settings::Settings;

/// Arguments of `zmlx chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The largest number of tokens of an answer.
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Show only the answers, not the model's thinking.
    #[arg(long)]
    hide_thinking: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
}

/// Answers messages until the input ends or the user enters `/exit`.
pub(crate) fn run(args: Args, verbose: bool) -> Result<Outcome> {
    let settings = Settings {
        sampling: args.sampling.params()?,
        max_tokens: args.max_tokens,
        hides_thinking: args.hide_thinking,
        kwargs: args.template.kwargs(),
    };
    let source = crate::source::Source::resolve(&args.model)?;
    let checkpoint = source.checkpoint()?;
    let eos_token_ids =
        if args.sampling.ignore_eos { Vec::new() } else { checkpoint.eos_token_ids().to_vec() };
    let job = Talk {
        tokenizer: source.need_tokenizer()?,
        template: source.chat_template()?,
        checkpoint,
        settings,
        conversation: Conversation::new(args.template.system),
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
    settings: Settings,
    conversation: Conversation,
    eos_token_ids: Vec<u32>,
    stop: Vec<String>,
    fusion: FusionArgs,
    verbose: bool,
}

impl Job for Talk {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, load_time) = engine::load(backend, &self.checkpoint)?;
        let options = EngineOptions {
            // The cache keeps the conversation, even if it is short.
            prefix_cache: PrefixCacheOptions {
                max_entries: 1,
                min_tokens: 1,
                ..PrefixCacheOptions::default()
            },
            ..EngineOptions::one_sequence(about.fusion(&model, self.fusion)?)
        };
        let engine = Engine::new(&model, Some(&self.tokenizer), options)?;
        if self.verbose {
            note(format_args!("Backend: {}", about.text));
            note(format_args!("Load time: {:.3} s", load_time.as_secs_f64()));
        }
        let mut source = input::Source::open()?;
        if source.is_person() && !crate::output::is_quiet() {
            note(format_args!("{}. /help lists commands, Ctrl-D leaves.", self.checkpoint.name()));
        }
        let mut answers = Answers {
            engine,
            tokenizer: &self.tokenizer,
            template: &self.template,
            eos_token_ids: self.eos_token_ids,
            stop: self.stop,
            shows_stats: source.is_person() && !crate::output::is_quiet(),
            verbose: self.verbose,
            n_answers: 0,
            last: None,
        };
        let mut chat =
            Chat { name: self.checkpoint.name(), settings: self.settings, conversation: self.conversation };
        loop {
            let text = match source.read()? {
                Read::Text(text) => text,
                Read::End => return Ok(Outcome::Done),
                Read::Interrupted if answers.n_answers == 0 => return Ok(Outcome::Interrupted),
                Read::Interrupted => return Ok(Outcome::Done),
            };
            match Input::parse(&text).and_then(|input| chat.obey(input, &mut answers)) {
                Ok(true) => {}
                Ok(false) => return Ok(Outcome::Done),
                // A person can continue after an error; a script should fail.
                Err(error) if !source.is_person() || is_broken_pipe(&error) => return Err(error),
                Err(error) => note(format_args!("error: {}", message(&error))),
            }
        }
    }
}

/// The state that commands change.
struct Chat<'a> {
    name: &'a str,
    settings: Settings,
    conversation: Conversation,
}

impl Chat<'_> {
    /// Handles one input. Returns false if the user wants to leave. On an error nothing has changed.
    fn obey<B: Backend>(&mut self, input: Input, answers: &mut Answers<'_, B>) -> Result<bool> {
        match input {
            Input::Nothing => {}
            Input::Exit => return Ok(false),
            Input::Message(text) => self.answer(&text, answers)?,
            Input::Help => print(&line::help())?,
            Input::Reset => self.conversation.reset(),
            Input::System(None) => print(&format!("{}\n", escaped(&self.conversation.system)))?,
            Input::System(Some(text)) => self.conversation.system = text,
            Input::Retry => {
                let before = self.conversation.clone();
                match self.conversation.undo() {
                    None => note(format_args!("there is nothing to answer yet")),
                    Some(text) => self.answer(&text, answers).inspect_err(|_| self.conversation = before)?,
                }
            }
            Input::Undo => match self.conversation.undo() {
                None => note(format_args!("there is nothing to take back")),
                Some(text) => note(format_args!("taken back: {text}")),
            },
            Input::Set(None) => print(&self.settings.lines())?,
            Input::Set(Some((name, value))) => self.settings.set(&name, &value)?,
            Input::Stats => print(&answers.stats())?,
            Input::Save(file) => self.conversation.save(Path::new(&file), self.name, &self.settings)?,
            Input::Load(file) => {
                let (conversation, settings, model) = Conversation::load(Path::new(&file), &self.settings)?;
                if let Some(model) = model.filter(|model| model != self.name) {
                    note(format_args!("this was a conversation with {model}"));
                }
                (self.conversation, self.settings) = (conversation, settings);
            }
        }
        Ok(true)
    }

    /// Adds the user's message and the model's answer. If the answer was interrupted before its first token, the
    /// message is dropped as well.
    fn answer<B: Backend>(&mut self, text: &str, answers: &mut Answers<'_, B>) -> Result<()> {
        let before = self.conversation.clone();
        self.conversation.say(text);
        match answers.answer(&self.conversation.messages(), &self.settings) {
            Ok(Some(answer)) => self.conversation.push(answer),
            Ok(None) => self.conversation = before,
            Err(error) => {
                self.conversation = before;
                return Err(error);
            }
        }
        Ok(())
    }
}

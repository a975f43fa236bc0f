//! Continues one prompt.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use zmlx_kernels::{Backend, Fusion};

use crate::engine::{Engine, EngineOptions, Event, Finished, Generation, Request, Token};
use crate::{Model, Result, Tokenizer};

/// Continues a prompt. `on_event` gets the progress of the prompt and every token, and may end the generation. Texts
/// and stop strings need the tokenizer. For more than one request, or for a conversation, keep an [`Engine`].
///
/// # Errors
/// As [`Engine::complete`].
pub fn generate<B: Backend>(
    model: &Model<B>,
    tokenizer: Option<&Tokenizer>,
    fusion: Fusion,
    request: Request,
    on_event: impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<Generation> {
    Engine::new(model, tokenizer, EngineOptions::one_sequence(fusion))?.complete(request, on_event)
}

/// Continues a prompt as an iterator of tokens, which computes each token when it is asked for. Otherwise the same as
/// [`generate`].
///
/// # Errors
/// As [`Engine::submit`].
pub fn stream<'m, B: Backend>(
    model: &'m Model<B>,
    tokenizer: Option<&'m Tokenizer>,
    fusion: Fusion,
    request: Request,
) -> Result<Stream<'m, B>> {
    let mut engine = Engine::new(model, tokenizer, EngineOptions::one_sequence(fusion))?;
    engine.submit(request)?;
    Ok(Stream { engine, ready: VecDeque::new(), finished: None })
}

/// The tokens of one continuation. [`stream`] makes it.
///
/// Text may be held back after the last token, for example where a stop string could begin. [`Stream::finished`]
/// returns it.
pub struct Stream<'m, B: Backend> {
    engine: Engine<'m, B>,
    ready: VecDeque<Result<Token>>,
    finished: Option<Finished>,
}

impl<B: Backend> Stream<'_, B> {
    /// How the continuation ended, and the text that was held back. `None` if there are more tokens, or if it failed.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }
}

impl<B: Backend> Iterator for Stream<'_, B> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ready.is_empty() && !self.engine.is_idle() {
            let mut events = Vec::new();
            self.engine.step(&mut events);
            for event in events {
                match event {
                    Event::Token { token, .. } => self.ready.push_back(Ok(token)),
                    Event::Failed { error, .. } => self.ready.push_back(Err(error)),
                    Event::Finished { finished, .. } => self.finished = Some(finished),
                    _ => {}
                }
            }
        }
        self.ready.pop_front()
    }
}

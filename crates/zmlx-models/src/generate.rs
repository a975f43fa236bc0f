//! Continuing one prompt.

use std::ops::ControlFlow;

use zmlx_kernels::{Backend, Fusion};

use crate::engine::{Engine, EngineOptions, Event, Generation, Request};
use crate::{Model, Result, Tokenizer};

/// Continues a prompt. `on_event` sees how far the prompt has come and every token, and may end it. Texts and stop strings
/// need the tokenizer. For more than one request, or a conversation, keep an [`Engine`].
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

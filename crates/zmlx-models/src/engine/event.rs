//! What an engine tells of its requests.

use std::time::Duration;

use super::RequestId;
use crate::{Error, TokenLogprob};

/// Something that happened to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// It got its place: from here on it is computed.
    Started {
        /// The request.
        id: RequestId,
        /// Tokens of its prompt that are not computed, because another sequence began so.
        n_cached_tokens: usize,
        /// How long it waited.
        queue_time: Duration,
    },
    /// A part of its prompt was computed.
    Prompt {
        /// The request.
        id: RequestId,
        /// Tokens that are computed or were cached.
        n_done: usize,
        /// Tokens of the prompt.
        n_tokens: usize,
    },
    /// A token was chosen.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: Token,
    },
    /// It is done; nothing more comes of it.
    Finished {
        /// The request.
        id: RequestId,
        /// How it ended.
        finished: Finished,
    },
    /// It failed; nothing more comes of it.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// The request that it is about.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Started { id, .. }
            | Self::Prompt { id, .. }
            | Self::Token { id, .. }
            | Self::Finished { id, .. }
            | Self::Failed { id, .. } => *id,
        }
    }
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability before temperature, after bias and penalties.
    pub logprob: f64,
    /// The model's best logit minus the second best.
    pub margin: f32,
    /// As many of the most probable tokens as the request wanted.
    pub top_logprobs: Vec<TokenLogprob>,
    /// The model's logits that it was chosen from, f32 `[vocab]`; empty if the request did not want them.
    pub logits: Vec<f32>,
    /// Text that became certain with it: perhaps no text, perhaps several tokens'.
    pub text: String,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model gave one of the end tokens.
    Eos,
    /// The text contained a stop string.
    StopString,
    /// As many tokens as asked for were generated.
    MaxTokens,
    /// The sequence fills the model's context.
    ContextLength,
    /// The sequence fills the memory for keys and values.
    CacheFull,
    /// The caller ended it.
    Interrupted,
}

impl StopReason {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopString => "stop",
            Self::MaxTokens => "length",
            Self::ContextLength => "context",
            Self::CacheFull => "memory",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Why.
    pub reason: StopReason,
    /// The text that was held back and is certain now.
    pub text: String,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Tokens of the prompt.
    pub n_prompt_tokens: usize,
    /// How many of these were not computed, because another sequence had begun so.
    pub n_cached_tokens: usize,
    /// Tokens that were generated, an end token included.
    pub n_generated_tokens: usize,
    /// From its arrival until it got a slot.
    pub queue_time: Duration,
    /// From then to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generation_time: Duration,
}

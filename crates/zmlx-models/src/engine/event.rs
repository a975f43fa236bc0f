//! What an engine reports about its requests.

use std::time::Duration;

use super::RequestId;
use crate::{Error, TokenLogprob};

/// Something that happened to a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// It got a slot. From now on it is computed.
    Started {
        /// The request.
        id: RequestId,
        /// Number of prompt tokens that need not be computed, because another sequence had the same beginning.
        n_cached_tokens: usize,
        /// How long it waited.
        queue_time: Duration,
    },
    /// A part of its prompt was computed.
    Prompt {
        /// The request.
        id: RequestId,
        /// Number of prompt tokens that are computed or were cached.
        n_done: usize,
        /// Number of prompt tokens.
        n_tokens: usize,
    },
    /// A token was chosen.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: Token,
    },
    /// It is done. There are no more events for it.
    Finished {
        /// The request.
        id: RequestId,
        /// How it ended.
        finished: Finished,
    },
    /// It failed. There are no more events for it.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// The request that the event is about.
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
    /// The natural logarithm of its probability before temperature, after bias and penalties.
    pub logprob: f64,
    /// The model's best logit minus its second best.
    pub margin: f32,
    /// The most probable tokens, as many as the request asked for.
    pub top_logprobs: Vec<TokenLogprob>,
    /// The model's logits from which it was chosen, f32 `[vocab]`; empty if the request did not ask for them.
    pub logits: Vec<f32>,
    /// The text that became certain with this token. It may be empty, or contain the text of several tokens.
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
    /// The requested number of tokens was generated.
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
    /// The reason.
    pub reason: StopReason,
    /// The text that was held back and is now certain.
    pub text: String,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Tokens of the prompt.
    pub n_prompt_tokens: usize,
    /// How many of these were not computed, because another sequence had the same beginning.
    pub n_cached_tokens: usize,
    /// Tokens that were generated, an end token included.
    pub n_generated_tokens: usize,
    /// The time from its arrival until it got a slot.
    pub queue_time: Duration,
    /// The time from then until the first token.
    pub prompt_time: Duration,
    /// The time from the first token to the last.
    pub generation_time: Duration,
}

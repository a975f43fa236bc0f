//! A request to an engine.

use std::fmt;

use crate::{Error, Model, Result, SamplingParams, TokenMask, Tokenizer};
use zmlx_kernels::Backend;

/// The identifier of a request, which is unique in its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A prompt and how to continue it.
#[derive(Debug)]
pub struct Request {
    /// The tokens to continue, at least one.
    pub prompt: Vec<u32>,
    /// The largest number of tokens to generate.
    pub max_tokens: usize,
    /// End tokens are not chosen before this many tokens.
    pub min_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the text; empty if no token does.
    pub eos_token_ids: Vec<u32>,
    /// Tokens whose text is left out, for example end tokens that do not end the text.
    pub silent_token_ids: Vec<u32>,
    /// Texts that end the answer. None may be empty. They need a tokenizer.
    pub stop: Vec<String>,
    /// How many of the most probable tokens are reported with each token.
    pub top_logprobs: usize,
    /// Whether each token is reported with the logits from which it was chosen.
    pub wants_logits: bool,
    /// Limits the tokens that may be chosen at each step, as a grammar does.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Determines which tokens may come next.
pub trait Constraint: Send + fmt::Debug {
    /// The tokens that may follow those `generated` so far. `None` allows all.
    ///
    /// # Errors
    /// Any error that makes an answer impossible. It ends the request.
    fn allowed(&mut self, generated: &[u32]) -> Result<Option<TokenMask<'_>>>;

    /// True if those `generated` so far are complete, and only an end token may follow.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn is_complete(&mut self, generated: &[u32]) -> Result<bool> {
        let _ = generated;
        Ok(false)
    }
}

impl Request {
    /// A greedy continuation of up to `max_tokens` tokens, which nothing else ends.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            sampling: SamplingParams::greedy(),
            eos_token_ids: Vec::new(),
            silent_token_ids: Vec::new(),
            stop: Vec::new(),
            top_logprobs: 0,
            wants_logits: false,
            constraint: None,
        }
    }

    /// True if a device that can sample may choose every token by itself.
    pub(super) fn suits_devices(&self) -> bool {
        self.sampling.suits_devices() && self.min_tokens == 0 && self.constraint.is_none()
    }

    /// Checks the request against the model and the tokenizer. The sampler checks the ranges of the sampling
    /// parameters.
    pub(super) fn check<B: Backend>(&self, model: &Model<B>, tokenizer: Option<&Tokenizer>) -> Result<()> {
        let (vocab, limit) = (model.architecture().vocab_size, model.architecture().max_position_embeddings);
        if self.prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(&token) = self.prompt.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::TokenOutOfRange { token, vocab });
        }
        if self.prompt.len() > limit {
            return Err(Error::ContextLength { n_tokens: self.prompt.len(), limit });
        }
        self.sampling.check_tokens(vocab)?;
        if tokenizer.is_none() && !self.stop.is_empty() {
            let got = "no tokenizer".into();
            return Err(Error::Parameter {
                field: "stop",
                want: "a tokenizer to find stop strings with",
                got,
            });
        }
        Ok(())
    }
}

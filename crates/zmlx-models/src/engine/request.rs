//! What is asked of an engine.

use std::fmt;

use crate::{Error, Model, Result, SamplingParams, TokenMask, Tokenizer};
use zmlx_kernels::Backend;

/// The name of a request within its engine; no two have the same one.
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
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Before so many tokens the end tokens are not chosen.
    pub min_tokens: usize,
    /// How each token is chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the text; empty to heed no such token.
    pub eos_token_ids: Vec<u32>,
    /// Tokens whose text is left out, as end tokens that do not end.
    pub silent_token_ids: Vec<u32>,
    /// Texts that end the text, none of them empty. They need a tokenizer.
    pub stop: Vec<String>,
    /// How many of the most probable tokens are told with each token.
    pub top_logprobs: usize,
    /// Whether each token comes with the logits that it was chosen from.
    pub wants_logits: bool,
    /// Limits the tokens at each step, as a grammar does.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Says which tokens may come next.
pub trait Constraint: Send + fmt::Debug {
    /// The tokens that may follow those `generated` so far; `None` allows all.
    ///
    /// # Errors
    /// Whatever makes an answer impossible: it ends the request.
    fn allowed(&mut self, generated: &[u32]) -> Result<Option<TokenMask<'_>>>;

    /// True if those `generated` so far are whole and nothing may follow but an end token.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn is_complete(&mut self, generated: &[u32]) -> Result<bool> {
        let _ = generated;
        Ok(false)
    }
}

impl Request {
    /// A greedy continuation of up to `max_tokens` tokens that nothing else ends.
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

    /// True if a device that samples can choose every token by itself.
    pub(super) fn suits_devices(&self) -> bool {
        self.sampling.suits_devices() && self.min_tokens == 0 && self.constraint.is_none()
    }

    /// Checks what a model and a tokenizer allow; the sampling parameters' ranges are the sampler's.
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

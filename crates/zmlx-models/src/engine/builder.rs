//! Requests and options, written as a chain of calls.

use super::{EngineOptions, Request};
use crate::SamplingParams;
use zmlx_kernels::Fusion;

impl Request {
    /// The request with these sampling parameters.
    #[must_use]
    pub fn with_sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// The request that ends at one of these tokens, for example those of
    /// [`Checkpoint::eos_token_ids`](crate::Checkpoint::eos_token_ids).
    #[must_use]
    pub fn with_eos(mut self, eos_token_ids: impl Into<Vec<u32>>) -> Self {
        self.eos_token_ids = eos_token_ids.into();
        self
    }

    /// The request with another text that ends the answer.
    #[must_use]
    pub fn with_stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }
}

/// All fused ops, up to 32 sequences, and no limit on memory.
impl Default for EngineOptions {
    fn default() -> Self {
        Self::new(Fusion::FUSED)
    }
}

//! The parameters of a request for choosing its tokens.

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most probable token; larger values flatten the distribution.
    pub temperature: f32,
    /// Keep only this many of the most probable tokens.
    pub top_k: Option<usize>,
    /// Keep only the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keep only tokens at least this fraction as probable as the most probable one.
    pub min_p: Option<f32>,
    /// Divides the positive logits of recent tokens by this value, and multiplies the negative ones by it.
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens, including the prompt, the repetition penalty considers.
    pub repetition_context_size: usize,
    /// Subtracted from the logit of every token that was already generated; 0 changes nothing.
    pub presence_penalty: f32,
    /// How many of the last generated tokens the presence penalty considers; `None` means all of them.
    pub presence_context_size: Option<usize>,
    /// Subtracted from a token's logit once for each time that it was generated; 0 changes nothing.
    pub frequency_penalty: f32,
    /// How many of the last generated tokens the frequency penalty considers; `None` means all of them.
    pub frequency_context_size: Option<usize>,
    /// Added to the logits of single tokens, before the penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same choices.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::greedy()
    }
}

impl SamplingParams {
    /// Always takes the most probable token.
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            repetition_context_size: 20,
            presence_penalty: 0.0,
            presence_context_size: None,
            frequency_penalty: 0.0,
            frequency_context_size: None,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// True if a device that can sample can make the choice on its own ([`zmlx_kernels::Backend::sample`]).
    pub fn suits_devices(&self) -> bool {
        self.presence_penalty == 0.0 && self.frequency_penalty == 0.0 && self.logit_bias.is_empty()
    }

    /// Checks every parameter's range.
    ///
    /// # Errors
    /// [`Error::Parameter`] for the first parameter that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, field, want, got: String| {
            if ok { Ok(()) } else { Err(Error::Parameter { field, want, got }) }
        };
        let t = self.temperature;
        check(t.is_finite() && t >= 0.0, "temperature", "a finite number, at least 0", t.to_string())?;
        if let Some(k) = self.top_k {
            check(k > 0, "top_k", "at least 1", k.to_string())?;
        }
        if let Some(p) = self.top_p {
            check(p > 0.0 && p <= 1.0, "top_p", "more than 0, at most 1", p.to_string())?;
        }
        if let Some(p) = self.min_p {
            check((0.0..=1.0).contains(&p), "min_p", "from 0 to 1", p.to_string())?;
        }
        if let Some(p) = self.repetition_penalty {
            check(p.is_finite() && p > 0.0, "repetition_penalty", "a finite number above 0", p.to_string())?;
        }
        let additive =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        for (field, p) in additive {
            check((-2.0..=2.0).contains(&p), field, "from -2 to 2", p.to_string())?;
        }
        for (token, bias) in &self.logit_bias {
            let ok = (-100.0..=100.0).contains(bias);
            check(ok, "logit_bias", "from -100 to 100", format!("{bias} for token {token}"))?;
        }
        Ok(())
    }

    /// Checks that every token with a bias is one of a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] for the first token that is not.
    pub fn check_tokens(&self, vocab: usize) -> Result<()> {
        match self.logit_bias.iter().find(|(token, _)| *token as usize >= vocab) {
            Some(&(token, _)) => Err(Error::TokenOutOfRange { token, vocab }),
            None => Ok(()),
        }
    }
}

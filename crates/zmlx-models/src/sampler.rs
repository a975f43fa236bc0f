//! Chooses the next token from the logits.

mod adjust;
mod filters;
mod params;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use params::SamplingParams;

use crate::{Error, Result};
use adjust::adjust;
use filters::{Candidate, last_kept, ranking, weight};

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability at temperature 1, after bias and penalties and before any other filter.
    pub logprob: f64,
    /// The model's largest logit minus its second largest: how near another choice was. It is infinite if there is only
    /// one logit.
    pub margin: f32,
}

/// A token and its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability at temperature 1, after bias and penalties and before any other filter.
    pub logprob: f64,
}

/// A set of token ids. Each word holds 32 of them, the lowest one in its lowest bit.
#[derive(Clone, Copy, Debug)]
pub struct TokenMask<'a> {
    words: &'a [u32],
}

impl<'a> TokenMask<'a> {
    /// The tokens whose bits are set. Tokens after the last word are not in the set.
    pub const fn new(words: &'a [u32]) -> Self {
        Self { words }
    }

    /// True if the token is in the set.
    pub fn has(self, token: usize) -> bool {
        self.words.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }
}

/// What a choice depends on besides the logits and the parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleContext<'a> {
    /// All tokens so far, beginning with the prompt.
    pub history: &'a [u32],
    /// How many of them belong to the prompt. The presence and frequency penalties consider only the others.
    pub n_prompt: usize,
    /// The only tokens that may be chosen; `None` allows all.
    pub allowed: Option<TokenMask<'a>>,
    /// Tokens that may not be chosen, for example end tokens before a minimum length.
    pub banned: &'a [u32],
}

/// Chooses tokens. It holds the random state and its buffers.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// The tokens that a penalty considers, sorted.
    seen: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self { params, rng, seen: Vec::new(), candidates: Vec::new() })
    }

    /// The parameters of its choices.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses a token. `logits` has one value for each token id. Bias, penalties and tokens that are not allowed
    /// change it.
    ///
    /// The steps are those of mlx-lm: bias; repetition, presence and frequency penalty; the allowed tokens; top-p,
    /// min-p and top-k at temperature 1; then a draw at the given temperature. Equal logits rank by token id, the
    /// lowest first. All sums are in f64. Each token uses one random number, or none at temperature 0. It allocates
    /// only until its buffers have grown to the size of the vocabulary.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is NaN or +∞, or if no logit of an allowed token is finite; [`Error::Parameter`] if
    /// the history or the bias has an id without a logit.
    pub fn sample(&mut self, logits: &mut [f32], context: &SampleContext<'_>) -> Result<Sampled> {
        let (margin, max, total) = self.prepare(logits, context)?;
        let chosen =
            if self.params.temperature == 0.0 { best(logits) } else { self.draw(logits, max, total) };
        Ok(Sampled { token: chosen as u32, logprob: logprob(logits[chosen], max, total), margin })
    }

    /// The result that [`Sampler::sample`] would give if it had chosen `token`: for a choice that a device made.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; [`Error::Parameter`] if `token` has no logit.
    pub fn assess(&mut self, logits: &mut [f32], context: &SampleContext<'_>, token: u32) -> Result<Sampled> {
        let (margin, max, total) = self.prepare(logits, context)?;
        let Some(&logit) = logits.get(token as usize) else {
            let want = "a token id that has a logit";
            return Err(Error::Parameter { field: "token", want, got: token.to_string() });
        };
        Ok(Sampled { token, logprob: logprob(logit, max, total), margin })
    }

    /// Changes the logits as the parameters require. Returns the margin before the changes, and the largest logit and
    /// the sum of all weights after them.
    fn prepare(&mut self, logits: &mut [f32], context: &SampleContext<'_>) -> Result<(f32, f32, f64)> {
        let margin = checked_margin(logits)?;
        adjust(&self.params, logits, context, &mut self.seen)?;
        let token = best(logits);
        let max = logits[token];
        if max == f32::NEG_INFINITY {
            return Err(Error::Logits { want: "a finite number of an allowed token", got: max, token });
        }
        Ok((margin, max, total(logits, max)))
    }

    fn draw(&mut self, logits: &[f32], max: f32, total: f64) -> usize {
        let last = last_kept(&self.params, logits, (max, total), &mut self.candidates);
        let kept = |&(token, logit): &(usize, &f32)| {
            last.is_none_or(|last| ranking(&Candidate { logit: *logit, token: token as u32 }, &last).is_le())
        };
        let temperature = f64::from(self.params.temperature);
        let weights =
            || logits.iter().enumerate().filter(kept).map(|(i, &l)| (i, weight(l, max, temperature)));
        // Summed and searched in the order of the ids, so that the result does not depend on how the filters sort.
        let sum: f64 = weights().map(|(_, w)| w).sum();
        let mut left = self.rng.random::<f64>() * sum;
        let mut chosen = 0;
        for (token, w) in weights().filter(|(_, w)| *w > 0.0) {
            chosen = token;
            if left < w {
                break;
            }
            left -= w;
        }
        chosen
    }
}

/// The `n` most probable tokens, the most probable first, equal ones by id. There are fewer if fewer have a finite
/// logit. Pass the `logits` as [`Sampler::sample`] left them to get the probabilities from which the token was chosen.
pub fn top_logprobs(logits: &[f32], n: usize) -> Vec<TokenLogprob> {
    if n == 0 || logits.is_empty() {
        return Vec::new();
    }
    let max = logits[best(logits)];
    let total = total(logits, max);
    let mut top: Vec<Candidate> = Vec::with_capacity(n.min(logits.len()) + 1);
    for (i, &logit) in logits.iter().enumerate().filter(|(_, l)| l.is_finite()) {
        let candidate = Candidate { logit, token: i as u32 };
        if top.len() == n && top.last().is_some_and(|last| ranking(last, &candidate).is_le()) {
            continue;
        }
        top.insert(top.partition_point(|c| ranking(c, &candidate).is_le()), candidate);
        top.truncate(n);
    }
    let value = |c: Candidate| TokenLogprob { token: c.token, logprob: logprob(c.logit, max, total) };
    top.into_iter().map(value).collect()
}

/// The sum of all probabilities, with the best one scaled to 1.
fn total(logits: &[f32], max: f32) -> f64 {
    logits.iter().map(|&l| weight(l, max, 1.0)).sum()
}

fn logprob(logit: f32, max: f32, total: f64) -> f64 {
    f64::from(logit) - f64::from(max) - total.ln()
}

/// The token with the largest logit; of equal ones the lowest id.
fn best(logits: &[f32]) -> usize {
    let first = (0, f32::NEG_INFINITY);
    let larger = |best: (usize, f32), (i, &l): (usize, &f32)| if l > best.1 { (i, l) } else { best };
    logits.iter().enumerate().fold(first, larger).0
}

/// Checks the logits, and returns the largest minus the second largest.
fn checked_margin(logits: &[f32]) -> Result<f32> {
    let bad = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY);
    if let Some(token) = bad {
        return Err(Error::Logits { want: "numbers below infinity", got: logits[token], token });
    }
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &l in logits {
        if l > first {
            (first, second) = (l, first);
        } else if l > second {
            second = l;
        }
    }
    if first == f32::NEG_INFINITY {
        return Err(Error::Logits { want: "at least one finite number", got: first, token: 0 });
    }
    Ok(first - second)
}

#[cfg(test)]
mod tests;

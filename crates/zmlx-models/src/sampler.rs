//! Choosing the next token from the logits.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most probable token; more flattens the distribution.
    pub temperature: f32,
    /// Only the `k` most probable tokens.
    pub top_k: Option<usize>,
    /// Only the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as probable as the most probable one.
    pub min_p: Option<f32>,
    /// Divides the positive logits of tokens that were just used, and multiplies the negative ones.
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens, prompt included, the penalty looks at.
    pub repetition_context_size: usize,
    /// The same seed gives the same choices.
    pub seed: u64,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Its natural-log probability at temperature 1, after the repetition penalty and before any other filter.
    pub logprob: f64,
    /// The largest logit minus the second largest, as the model gave them: how near another choice was. Infinite if
    /// there is only one.
    pub margin: f32,
}

/// Chooses tokens; holds the random state and the working memory.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// The last tokens, each once.
    recent: Vec<u32>,
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl SamplingParams {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            repetition_context_size: 20,
            seed: 0,
        }
    }

    /// True if the choice is the arg-max of the model's own logits, which a device can compute by itself.
    pub fn is_argmax(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty.is_none()
    }

    /// Checks every parameter's range.
    ///
    /// # Errors
    /// [`Error::Parameter`] for the first that is out of it.
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
        Ok(())
    }
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    ///
    /// # Errors
    /// As [`SamplingParams::validate`].
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Ok(Self { params, rng, recent: Vec::new(), candidates: Vec::new() })
    }

    /// Chooses a token. `history` is every token so far, prompt included; `logits` has one value per token id and is
    /// changed by the repetition penalty.
    ///
    /// The steps are those of mlx-lm: repetition penalty, top-p, min-p and top-k at temperature 1, then a draw at the
    /// given temperature. Equal logits rank by token id, lowest first. All sums are in f64; one random number is
    /// used per token, none at temperature 0. Allocates only until its buffers have grown to the vocabulary.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is NaN or +∞, or none is finite; [`Error::Parameter`] if `history` has an id
    /// without a logit.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Sampled> {
        let margin = checked_margin(logits)?;
        self.penalise(logits, history)?;
        let best = best(logits);
        let max = logits[best];
        let total = total(logits, max);
        let chosen = if self.params.temperature == 0.0 { best } else { self.draw(logits, max, total) };
        Ok(Sampled { token: chosen as u32, logprob: logprob(logits[chosen], max, total), margin })
    }

    fn penalise(&mut self, logits: &mut [f32], history: &[u32]) -> Result<()> {
        let Some(penalty) = self.params.repetition_penalty else { return Ok(()) };
        let window = &history[history.len().saturating_sub(self.params.repetition_context_size)..];
        self.recent.clear();
        self.recent.extend_from_slice(window);
        self.recent.sort_unstable();
        self.recent.dedup();
        for &token in &self.recent {
            let Some(logit) = logits.get_mut(token as usize) else {
                let want = "token ids that have a logit";
                return Err(Error::Parameter { field: "history", want, got: token.to_string() });
            };
            // Clamped: a tiny penalty must not make an infinity of a finite logit.
            if *logit != f32::NEG_INFINITY {
                let penalised = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
                *logit = penalised.clamp(f32::MIN, f32::MAX);
            }
        }
        Ok(())
    }

    fn draw(&mut self, logits: &[f32], max: f32, total: f64) -> usize {
        let last = self.last_kept(logits, max, total);
        let kept = |&(token, logit): &(usize, &f32)| {
            last.is_none_or(|last| ranking(&Candidate { logit: *logit, token: token as u32 }, &last).is_le())
        };
        let temperature = f64::from(self.params.temperature);
        let weights =
            || logits.iter().enumerate().filter(kept).map(|(i, &l)| (i, weight(l, max, temperature)));
        // Summed and walked in the order of the ids, so the outcome does not depend on how the filters sort.
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

    /// The lowest-ranked token that passes the filters; none if all do. Each filter keeps a prefix of the ranking, so
    /// the shortest prefix counts.
    fn last_kept(&mut self, logits: &[f32], max: f32, total: f64) -> Option<Candidate> {
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        let top_p = top_p.filter(|&p| p < 1.0);
        let top_k = top_k.filter(|&k| k < logits.len());
        let min_p = min_p.filter(|&p| p > 0.0);
        if top_p.is_none() && top_k.is_none() && min_p.is_none() {
            return None;
        }
        let floor = min_p.map_or(f64::NEG_INFINITY, |p| f64::from(max) + f64::from(p).ln());
        self.candidates.clear();
        let all = logits.iter().enumerate().map(|(i, &logit)| Candidate { logit, token: i as u32 });
        self.candidates.extend(all.filter(|c| f64::from(c.logit) >= floor));
        if let Some(k) = top_k.filter(|&k| k < self.candidates.len()) {
            self.candidates.select_nth_unstable_by(k - 1, ranking);
            self.candidates.truncate(k);
        }
        match top_p {
            Some(p) => nucleus(&mut self.candidates, f64::from(p) * total, max),
            None => self.candidates.iter().copied().max_by(ranking),
        }
    }
}

/// What [`Sampler::sample`] would say of `token` had it chosen that one: for a choice that the device made.
///
/// # Errors
/// As [`Sampler::sample`]; [`Error::Parameter`] if `token` has no logit.
pub(crate) fn assess(logits: &[f32], token: u32) -> Result<Sampled> {
    let margin = checked_margin(logits)?;
    let Some(&logit) = logits.get(token as usize) else {
        let want = "a token id that has a logit";
        return Err(Error::Parameter { field: "token", want, got: token.to_string() });
    };
    let max = logits[best(logits)];
    Ok(Sampled { token, logprob: logprob(logit, max, total(logits, max)), margin })
}

/// The sum of all probabilities, up to the factor that makes the best one's 1.
fn total(logits: &[f32], max: f32) -> f64 {
    logits.iter().map(|&l| weight(l, max, 1.0)).sum()
}

fn logprob(logit: f32, max: f32, total: f64) -> f64 {
    f64::from(logit) - f64::from(max) - total.ln()
}

/// The order of probability: larger logits first, equal ones by id.
fn ranking(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // Positive and negative zero are equal logits.
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.token.cmp(&b.token))
}

/// The lowest-ranked candidate of the nucleus: those with less than `mass` above them, and their equals.
fn nucleus(candidates: &mut [Candidate], mass: f64, max: f32) -> Option<Candidate> {
    // A nucleus is mostly a few tokens: ranking a growing head of the list spares sorting the vocabulary.
    const FIRST: usize = 64;
    let (mut above, mut ranked, mut last) = (0.0, 0, None::<Candidate>);
    while ranked < candidates.len() {
        let rest = &mut candidates[ranked..];
        let n = rest.len().min(FIRST.max(ranked * 7));
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, ranking);
        }
        let head = &mut rest[..n];
        head.sort_unstable_by(ranking);
        for &c in head.iter() {
            if above >= mass && last.is_some_and(|l| c.logit < l.logit) {
                return last;
            }
            above += weight(c.logit, max, 1.0);
            last = Some(c);
        }
        ranked += n;
    }
    last
}

/// The probability of a logit, up to a factor that makes the best one's 1.
fn weight(logit: f32, max: f32, temperature: f64) -> f64 {
    ((f64::from(logit) - f64::from(max)) / temperature).exp()
}

/// The token with the largest logit; of equal ones the lowest id.
fn best(logits: &[f32]) -> usize {
    let first = (0, f32::NEG_INFINITY);
    let larger = |best: (usize, f32), (i, &l): (usize, &f32)| if l > best.1 { (i, l) } else { best };
    logits.iter().enumerate().fold(first, larger).0
}

/// Checks the logits, and gives the largest minus the second largest.
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

//! Perplexity of a text, and the divergence between the predictions of two models.

use std::num::NonZero;
use std::ops::{ControlFlow, Range};

use serde::Serialize;
use zmlx_kernels::{Backend, Fusion, Logits};

use crate::{CachePool, Error, Input, Model, PREFILL_CHUNK, PoolOptions, Result, Slot};

/// The largest number of logits that are read at once. With a large vocabulary more would take much memory.
const MAX_LOGITS: usize = 1 << 24;

/// How a text is divided into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Number of tokens in a window.
    pub context: usize,
    /// Number of tokens from the start of one window to the start of the next. If it is less than the context, windows
    /// overlap. Then each window after the first scores only the tokens that no earlier window has scored.
    pub stride: usize,
    /// The largest number of windows. `None` means all whole windows of the text.
    pub max_windows: Option<usize>,
    /// A token that replaces the first token of each window, for models that expect a token at the beginning of a text.
    pub first_token: Option<u32>,
}

impl PerplexityOptions {
    /// Windows of `context` tokens, one after the other.
    pub fn new(context: usize) -> Self {
        Self { context, stride: context, max_windows: None, first_token: None }
    }
}

/// The perplexity over some tokens: `exp` of the mean negative logarithm of the predicted probability of each token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Number of tokens that were scored.
    pub n_scored: usize,
    /// The mean of `-ln p`.
    pub mean_nll: f64,
    /// `exp(mean_nll)`.
    pub perplexity: f64,
    /// One standard error: the perplexity times the sample standard deviation of `-ln p`, divided by the square root of
    /// the number of tokens.
    pub standard_error: f64,
}

/// The result of [`perplexity`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Number of windows that were computed.
    pub n_windows: usize,
    /// Number of tokens in a window.
    pub context: usize,
    /// Number of tokens between the starts of windows.
    pub stride: usize,
    /// Number of tokens that went through the model.
    pub n_computed: usize,
    /// Over every token except the first of each window; if windows overlap, over every token that was not scored
    /// before. This is the number of mlx_lm.perplexity.
    pub every_token: Estimate,
    /// Over the second half of each window: the tokens whose position is above half the context, so that each is
    /// predicted from a long context. This is the number of llama-perplexity. `None` if windows overlap.
    pub second_half: Option<Estimate>,
}

/// Scores a text, window by window.
///
/// **Formula** A window of `n` tokens `t` gives `-ln softmax(logits[i])[t[i + 1]]` for `i` in `0..n - 1`. The second
/// half is the terms with `i >= n / 2`. The sums are in f64.
///
/// **Source** `eval_ppl` of mlx-lm 0.32.2; `perplexity` of llama.cpp's llama-perplexity, without `--ppl-stride`. For
/// windows that overlap: the sliding window of Hugging Face's guide to perplexity.
///
/// # Errors
/// [`Error::Parameter`] for a window of less than two tokens, or a stride that is 0 or longer than the context;
/// [`Error::TextTooShort`] if the text is shorter than one window; [`Error::TokenOutOfRange`]; [`Error::Stopped`] if
/// `progress`, which gets the number of windows done and their total number, stops it; [`Error::Logits`] if the model's
/// results are not valid logits; errors of [`Model::forward`].
pub fn perplexity<B: Backend>(
    model: &Model<B>,
    tokens: &[u32],
    options: &PerplexityOptions,
    fusion: &Fusion,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let PerplexityOptions { context, stride, max_windows, first_token } = *options;
    if context < 2 {
        return Err(wrong("context", "at least two tokens", context));
    }
    if stride == 0 || stride > context {
        return Err(wrong("stride", "from 1 to the context", stride));
    }
    let Some(n_behind_first) = tokens.len().checked_sub(context) else {
        return Err(Error::TextTooShort { n_tokens: tokens.len(), context });
    };
    let vocab = model.architecture().vocab_size;
    if let Some(&token) = tokens.iter().chain(&first_token).find(|&&t| t as usize >= vocab) {
        return Err(Error::TokenOutOfRange { token, vocab });
    }
    let n_windows = (n_behind_first / stride + 1).min(max_windows.unwrap_or(usize::MAX));
    let (mut every, mut half) = (Sum::default(), Sum::default());
    let mut pool = model.pool(PoolOptions::default())?;
    let mut window = Vec::with_capacity(context);
    for i in 0..n_windows {
        if progress(i, n_windows).is_break() {
            return Err(Error::Stopped);
        }
        let at = i * stride;
        window.clear();
        window.extend_from_slice(&tokens[at..at + context]);
        if let Some(first) = first_token {
            window[0] = first;
        }
        // The earlier windows have scored all but the last `stride` tokens.
        let scored = if i == 0 { 0..context - 1 } else { context - 1 - stride.min(context - 1)..context - 1 };
        let targets = &window[scored.start + 1..];
        let mut nlls = Vec::with_capacity(targets.len());
        logits_of(
            model,
            &mut pool,
            &window[..context - 1],
            scored.clone(),
            fusion,
            &mut |rows, logits, vocab| {
                let targets = &targets[rows.start - scored.start..rows.end - scored.start];
                nlls.extend(each_row(logits, vocab, |row, of| nll(of, targets[row]))?);
                Ok(())
            },
        )?;
        for (i, nll) in scored.zip(nlls) {
            every.add(nll);
            if i >= context / 2 {
                half.add(nll);
            }
        }
    }
    let _ = progress(n_windows, n_windows);
    Ok(Perplexity {
        n_windows,
        context,
        stride,
        n_computed: n_windows * (context - 1),
        every_token: every.estimate(),
        second_half: (stride == context).then(|| half.estimate()),
    })
}

/// The log-probabilities that a model gives to every next token, for each position of a text.
#[derive(Clone, Debug)]
pub struct Predictions {
    vocab: usize,
    /// `[n_tokens, vocab]`.
    log_probs: Vec<f32>,
}

/// How far the predictions of one model are from those of another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Number of positions that were compared.
    pub n_tokens: usize,
    /// The mean over positions of `Σ p ln(p / q)`, in nats, where `p` is the first model's and `q` the second's.
    pub mean_kl: f64,
    /// The largest value at a position, in nats.
    pub largest_kl: f64,
    /// The fraction of positions at which both models find the same token the most probable.
    pub same_top: f64,
}

impl Predictions {
    /// Computes a model's predictions after each of these tokens.
    ///
    /// **Memory** four bytes for each token and entry of the vocabulary.
    ///
    /// # Errors
    /// [`Error::Logits`]; errors of [`Model::forward`].
    pub fn of<B: Backend>(model: &Model<B>, tokens: &[u32], fusion: &Fusion) -> Result<Self> {
        let vocab = model.architecture().vocab_size;
        let mut log_probs = Vec::new();
        let mut pool = model.pool(PoolOptions::default())?;
        logits_of(model, &mut pool, tokens, 0..tokens.len(), fusion, &mut |_, logits, vocab| {
            let rows = each_row(logits, vocab, |_, row| {
                let log_sum = log_sum_exp(row)?;
                Ok(row.iter().map(|&x| (f64::from(x) - log_sum) as f32).collect::<Vec<f32>>())
            })?;
            rows.iter().for_each(|row| log_probs.extend_from_slice(row));
            Ok(())
        })?;
        Ok(Self { vocab, log_probs })
    }

    /// The divergence of `other` from these predictions. Positions that only one of them has are left out.
    ///
    /// # Errors
    /// [`Error::Parameter`] if the vocabularies differ, or if there is no position to compare.
    pub fn divergence(&self, other: &Self) -> Result<Divergence> {
        if self.vocab != other.vocab {
            return Err(wrong("vocabulary", "that of the other model", other.vocab));
        }
        let rows = |p: &Self| p.log_probs.len() / p.vocab.max(1);
        let n_tokens = rows(self).min(rows(other));
        if n_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let (mut sum, mut largest_kl, mut n_same) = (0.0, 0f64, 0usize);
        let pairs = self.log_probs.chunks_exact(self.vocab).zip(other.log_probs.chunks_exact(self.vocab));
        for (p, q) in pairs {
            let term = |(&p, &q): (&f32, &f32)| {
                let (p, q) = (f64::from(p), f64::from(q));
                // A token without probability adds nothing.
                if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
            };
            // Rounding may make the sum of equal predictions a little less than 0.
            let kl = p.iter().zip(q).map(term).sum::<f64>().max(0.0);
            sum += kl;
            largest_kl = largest_kl.max(kl);
            n_same += usize::from(top(p) == top(q));
        }
        let n = n_tokens as f64;
        Ok(Divergence { n_tokens, mean_kl: sum / n, largest_kl, same_top: n_same as f64 / n })
    }
}

/// The index of the largest value; of equal ones the first.
fn top(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (1..row.len()).fold(0, better)
}

/// Called with the positions of some rows, the rows, and their width.
type Visit<'a> = &'a mut dyn FnMut(Range<usize>, &[f32], usize) -> Result<()>;

/// Computes a text from its beginning, chunk by chunk, and passes the logits at the positions `wanted` to a callback.
fn logits_of<B: Backend>(
    model: &Model<B>,
    pool: &mut CachePool<B>,
    tokens: &[u32],
    wanted: Range<usize>,
    fusion: &Fusion,
    visit: Visit<'_>,
) -> Result<()> {
    let slot = pool.allocate()?;
    let done = in_pieces(model, (pool, slot), tokens, wanted, fusion, visit);
    pool.free(slot)?;
    done
}

fn in_pieces<B: Backend>(
    model: &Model<B>,
    (pool, slot): (&mut CachePool<B>, Slot),
    tokens: &[u32],
    wanted: Range<usize>,
    fusion: &Fusion,
    visit: Visit<'_>,
) -> Result<()> {
    let vocab = model.architecture().vocab_size;
    let n_with_logits = (MAX_LOGITS / vocab.max(1)).clamp(1, PREFILL_CHUNK);
    let mut logits = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (n, is_wanted) = if at < wanted.start {
            (PREFILL_CHUNK.min(wanted.start - at), false)
        } else {
            (n_with_logits, true)
        };
        let end = (at + n).min(tokens.len());
        let kind = if is_wanted { Logits::All } else { Logits::None };
        let y = model.forward(pool, &[Input { slot, tokens: &tokens[at..end], logits: kind }], fusion)?;
        if is_wanted {
            model.backend().read(&y, &mut logits)?;
            visit(at..end, &logits, vocab)?;
        }
        at = end;
    }
    Ok(())
}

/// The results of `f` for each row, computed by several threads.
fn each_row<T: Send>(
    logits: &[f32],
    vocab: usize,
    f: impl Fn(usize, &[f32]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let n_rows = logits.len() / vocab.max(1);
    let n_threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(n_rows).max(1);
    let per_thread = n_rows.div_ceil(n_threads).max(1);
    let f = &f;
    std::thread::scope(|scope| {
        let parts = logits.chunks(per_thread * vocab.max(1)).enumerate();
        let threads: Vec<_> = parts
            .map(|(i, part)| {
                let rows = part.chunks_exact(vocab.max(1)).enumerate();
                scope.spawn(move || {
                    rows.map(|(r, row)| f(i * per_thread + r, row)).collect::<Result<Vec<T>>>()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(n_rows);
        for thread in threads {
            all.append(&mut thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// `-ln softmax(row)[target]`.
fn nll(row: &[f32], target: u32) -> Result<f64> {
    let log_sum = log_sum_exp(row)?;
    let x = row.get(target as usize).copied().unwrap_or(f32::NAN);
    let nll = log_sum - f64::from(x);
    if nll.is_nan() { Err(not_logits(x, target as usize)) } else { Ok(nll) }
}

/// `ln Σ exp(x)`, in f64.
fn log_sum_exp(row: &[f32]) -> Result<f64> {
    if let Some(token) = row.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(not_logits(row[token], token));
    }
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(not_logits(max, 0));
    }
    let sum: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
    Ok(f64::from(max) + sum.ln())
}

fn not_logits(got: f32, token: usize) -> Error {
    Error::Logits { want: "numbers", got, token }
}

fn wrong(field: &'static str, want: &'static str, got: usize) -> Error {
    Error::Parameter { field, want, got: got.to_string() }
}

/// Collects numbers for their mean and spread (Welford's recurrence, which needs no difference of large sums).
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    n: usize,
    mean: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        self.n += 1;
        let before = x - self.mean;
        self.mean += before / self.n as f64;
        self.squares += before * (x - self.mean);
    }

    fn estimate(&self) -> Estimate {
        let n = self.n as f64;
        let variance = if self.n > 1 { self.squares / (n - 1.0) } else { 0.0 };
        let perplexity = self.mean.exp();
        let standard_error = perplexity * (variance / n).sqrt();
        Estimate { n_scored: self.n, mean_nll: self.mean, perplexity, standard_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_errors_are_those_of_the_definitions() {
        let numbers = [1.5, 0.25, 3.0, 2.0, 0.5];
        let mut sum = Sum::default();
        numbers.iter().for_each(|&x| sum.add(x));
        let estimate = sum.estimate();
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        // llama.cpp computes the standard error in this way, from the mean of the squares.
        let squares = numbers.iter().map(|x| x * x).sum::<f64>() / n;
        let want = ((squares - mean * mean) / (n - 1.0)).sqrt() * mean.exp();
        assert!((estimate.mean_nll - mean).abs() <= 1e-12);
        assert!((estimate.perplexity - mean.exp()).abs() <= 1e-12);
        assert!((estimate.standard_error - want).abs() <= 1e-12, "{estimate:?} {want}");
        let mut one = Sum::default();
        one.add(1.0);
        assert_eq!(one.estimate().standard_error, 0.0);
    }

    #[test]
    fn what_is_no_logit_is_refused() {
        let inf = f32::INFINITY;
        assert!((nll(&[0.0, 0.0, -inf], 1).unwrap() - 2f64.ln()).abs() <= 1e-7);
        assert_eq!(nll(&[0.0, -inf], 1).unwrap(), f64::INFINITY);
        for row in [[f32::NAN, 0.0], [inf, 0.0], [-inf, -inf]] {
            assert!(nll(&row, 0).is_err(), "{row:?}");
        }
        assert!(nll(&[0.0], 1).is_err());
    }

    #[test]
    fn rows_stay_in_order() {
        let logits: Vec<f32> = (0..21).map(|i| i as f32).collect();
        let got = each_row(&logits, 3, |i, row| Ok((i, row[0]))).unwrap();
        let want: Vec<(usize, f32)> = (0..7).map(|i| (i, 3.0 * i as f32)).collect();
        assert_eq!(got, want);
        assert!(each_row(&[], 3, |i, _| Ok(i)).unwrap().is_empty());
    }

    #[test]
    fn equal_predictions_do_not_diverge() {
        let half = 0.5f32.ln();
        let p = Predictions { vocab: 2, log_probs: vec![half, half, 0.0, f32::NEG_INFINITY] };
        let q = Predictions { vocab: 2, log_probs: vec![0.25f32.ln(), 0.75f32.ln(), 0.0, f32::NEG_INFINITY] };
        let same = p.divergence(&p).unwrap();
        assert_eq!((same.mean_kl, same.largest_kl, same.same_top), (0.0, 0.0, 1.0));
        let d = p.divergence(&q).unwrap();
        let kl = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((d.largest_kl - kl).abs() <= 1e-6 && (d.mean_kl - kl / 2.0).abs() <= 1e-6, "{d:?}");
        assert_eq!((d.n_tokens, d.same_top), (2, 0.5));
        assert!(p.divergence(&Predictions { vocab: 4, log_probs: vec![0.0; 4] }).is_err());
    }
}

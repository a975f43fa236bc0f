//! Comparisons in which NaN fails.
//!
//! Every measure becomes NaN if an input contains NaN or the lengths differ. Every verdict is "pass if the measure is
//! at most the bound", which NaN never is. `got` and `want` may be any float types, also different ones.

use std::collections::BTreeSet;

/// An absolute and a relative bound: an element passes if `|got - want| ≤ abs + rel·|want|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The absolute part.
    pub abs: f64,
    /// The part that grows with the wanted value.
    pub rel: f64,
}

/// Why two slices are not close.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// Different lengths.
    #[error("{got} elements, want {want}")]
    Length {
        /// Number of elements of `got`.
        got: usize,
        /// Number of elements of `want`.
        want: usize,
    },
    /// An element is out of its bound. This is the one furthest out; NaN counts as further than any number.
    #[error(
        "element {index}: got {got:e}, want {want:e}, difference {difference:e}, allowed {allowed:e} ({n_bad} bad)"
    )]
    Element {
        /// The position.
        index: usize,
        /// The value there.
        got: f64,
        /// The wanted value.
        want: f64,
        /// `|got - want|`.
        difference: f64,
        /// The bound there.
        allowed: f64,
        /// Total number of elements out of their bounds.
        n_bad: usize,
    },
}

/// The largest `|got - want|`; 0 for empty slices. NaN if there is any NaN, or if the lengths differ.
#[must_use]
pub fn max_abs<G: Into<f64> + Copy, W: Into<f64> + Copy>(got: &[G], want: &[W]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    got.iter().zip(want).map(|(&g, &w)| difference(g.into(), w.into())).fold(0.0, max_or_nan)
}

/// The larger number; NaN if one of them is, which `f64::max` would drop.
#[must_use]
pub fn max_or_nan(a: f64, b: f64) -> f64 {
    if a >= b || a.is_nan() { a } else { b }
}

/// `√(Σ(got - want)² / Σ want²)`: the root mean square of the difference relative to that of `want`.
///
/// 0 if the slices are equal, even if they are empty or zero. NaN if there is any NaN, or if the lengths differ.
#[must_use]
pub fn rel_rms<G: Into<f64> + Copy, W: Into<f64> + Copy>(got: &[G], want: &[W]) -> f64 {
    if got.len() != want.len() {
        return f64::NAN;
    }
    let (mut error, mut power) = (0.0, 0.0);
    for (&g, &w) in got.iter().zip(want) {
        let (g, w): (f64, f64) = (g.into(), w.into());
        error += difference(g, w).powi(2);
        power += w * w;
    }
    if error == 0.0 { 0.0 } else { (error / power).sqrt() }
}

/// Passes if every element is within `tolerance` of the wanted one. Equal infinities pass.
///
/// # Errors
/// The element that is furthest out of its bound, or different lengths.
pub fn assert_close<G: Into<f64> + Copy, W: Into<f64> + Copy>(
    got: &[G],
    want: &[W],
    tolerance: Tolerance,
) -> Result<(), Mismatch> {
    if got.len() != want.len() {
        return Err(Mismatch::Length { got: got.len(), want: want.len() });
    }
    let mut n_bad = 0;
    let mut worst: Option<(f64, Mismatch)> = None;
    for (index, (&g, &w)) in got.iter().zip(want).enumerate() {
        let (g, w): (f64, f64) = (g.into(), w.into());
        let (difference, allowed) = (difference(g, w), tolerance.abs + tolerance.rel * w.abs());
        if difference <= allowed {
            continue;
        }
        n_bad += 1;
        let excess = if difference.is_nan() { f64::INFINITY } else { difference / allowed };
        if worst.as_ref().is_none_or(|(most, _)| excess > *most) {
            let found = Mismatch::Element { index, got: g, want: w, difference, allowed, n_bad: 0 };
            worst = Some((excess, found));
        }
    }
    match worst {
        None => Ok(()),
        Some((_, Mismatch::Element { index, got, want, difference, allowed, .. })) => {
            Err(Mismatch::Element { index, got, want, difference, allowed, n_bad })
        }
        Some((_, other)) => Err(other),
    }
}

/// `|got - want|`; 0 for equal infinities, whose difference would be NaN.
fn difference(got: f64, want: f64) -> f64 {
    if got == want { 0.0 } else { (got - want).abs() }
}

/// Compares rows of chosen experts as sets.
///
/// **Shapes** both `[n_tokens, top_k]`. Returns the rows that differ; an empty result means that all are equal. If the
/// lengths differ, or `top_k` does not divide them, every row counts as different (`vec![0]` if there is none).
#[must_use]
pub fn differing_expert_sets(got: &[u32], want: &[u32], top_k: usize) -> Vec<usize> {
    let n_tokens = want.len().checked_div(top_k).unwrap_or(0);
    if got.len() != want.len() || n_tokens * top_k != want.len() {
        return (0..n_tokens.max(1)).collect();
    }
    let set = |row: &[u32]| row.iter().copied().collect::<BTreeSet<_>>();
    (0..n_tokens)
        .filter(|row| {
            let range = row * top_k..(row + 1) * top_k;
            let (got, want) = (set(&got[range.clone()]), set(&want[range]));
            got != want || got.len() != top_k
        })
        .collect()
}

/// How one row of logits differs from the wanted one. Every number is NaN if the inputs contain NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogitsDifference {
    /// Largest absolute difference.
    pub max: f64,
    /// Mean absolute difference.
    pub mean: f64,
    /// Kullback-Leibler divergence `Σ p_want · ln(p_want / p_got)` in nats.
    pub kl: f64,
    /// Whether both have their largest logit at the same place (the lowest of equals); false if there is any NaN.
    pub argmax_equal: bool,
    /// Best minus second-best wanted logit.
    pub margin: f64,
}

/// Compares two rows of logits; see [`LogitsDifference`]. With different lengths every number is NaN.
#[must_use]
pub fn logits_difference<G: Into<f64> + Copy, W: Into<f64> + Copy>(
    got: &[G],
    want: &[W],
) -> LogitsDifference {
    let max = max_abs(got, want);
    let got: Vec<f64> = got.iter().map(|&x| x.into()).collect();
    let want: Vec<f64> = want.iter().map(|&x| x.into()).collect();
    if max.is_nan() || want.is_empty() {
        let nan = f64::NAN;
        return LogitsDifference { max: nan, mean: nan, kl: nan, argmax_equal: false, margin: nan };
    }
    let mean = got.iter().zip(&want).map(|(&g, &w)| difference(g, w)).sum::<f64>() / want.len() as f64;
    let (log_p_got, log_p_want) = (log_softmax(&got), log_softmax(&want));
    let kl = log_p_want.iter().zip(&log_p_got).map(|(w, g)| w.exp() * (w - g)).sum();
    LogitsDifference { max, mean, kl, argmax_equal: argmax(&got) == argmax(&want), margin: margin(&want) }
}

/// The natural logarithms of the probabilities for a row of logits.
#[must_use]
pub fn log_softmax<T: Into<f64> + Copy>(logits: &[T]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|&x| x.into()).collect();
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln() + most;
    logits.iter().map(|x| x - log_sum).collect()
}

/// The position of the largest value, the lowest of equals; `None` if the row is empty or contains NaN.
#[must_use]
pub fn argmax<T: Into<f64> + Copy>(row: &[T]) -> Option<usize> {
    let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
    if row.iter().any(|x| x.is_nan()) {
        return None;
    }
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best })
}

/// The best value minus the second best; infinite for a single value, NaN if the row is empty or contains NaN.
#[must_use]
pub fn margin<T: Into<f64> + Copy>(row: &[T]) -> f64 {
    let Some(best) = argmax(row) else { return f64::NAN };
    let second = (0..row.len()).filter(|&i| i != best).map(|i| row[i].into());
    row[best].into() - second.fold(f64::NEG_INFINITY, f64::max)
}

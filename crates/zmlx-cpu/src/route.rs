//! Chooses experts, row by row.

use super::math::{sigmoid, softmax, sum};
use super::{CpuBackend, CpuIndices, CpuTensor};
use zmlx_core::check::ensure;
use zmlx_core::{NoauxTc, Renormalize, Result, SoftmaxTopK};

impl CpuBackend {
    /// Calls `f(scores, experts, weights)` for each token. `scores` is a copy of its logits that `f` may overwrite.
    pub(super) fn route(
        &self,
        op: &'static str,
        logits: &CpuTensor,
        top_k: usize,
        mut f: impl FnMut(&mut [f32], &mut [u32], &mut [f32]),
    ) -> Result<(CpuIndices, CpuTensor)> {
        let width = check_rows(op, logits)?;
        check_top_k(op, top_k, width)?;
        let shape = logits.shape.with_last(op, top_k)?;
        let mut experts = self.words.take(op, shape.len())?;
        let mut weights = self.floats.take(op, shape.len())?;
        let mut scores = self.floats.take(op, width)?;
        for ((logits, experts), weights) in logits
            .values()
            .chunks_exact(width)
            .zip(experts.chunks_exact_mut(top_k))
            .zip(weights.chunks_exact_mut(top_k))
        {
            scores.copy_from_slice(logits);
            f(&mut scores, experts, weights);
        }
        Ok((CpuIndices { shape, data: experts.freeze() }, CpuTensor::new(shape, weights)))
    }
}

/// The width of `[n, d]` scores.
pub(super) fn check_rows(op: &'static str, x: &CpuTensor) -> Result<usize> {
    ensure(x.dims().len() == 2 && x.shape.last() > 0, op, "scores", "[n, n_experts]", x)?;
    Ok(x.shape.last())
}

pub(super) fn check_top_k(op: &'static str, k: usize, width: usize) -> Result<()> {
    ensure((1..=width).contains(&k), op, "top_k", format_args!("1 to {width}"), k)
}

pub(super) fn check_groups(op: &'static str, width: usize, n_group: usize, topk_group: usize) -> Result<()> {
    let size_ok = n_group > 0 && width.is_multiple_of(n_group) && width / n_group >= 2;
    ensure(size_ok, op, "n_group", format_args!("a divisor of {width} into groups of two or more"), n_group)?;
    ensure((1..=n_group).contains(&topk_group), op, "topk_group", format_args!("1 to {n_group}"), topk_group)
}

/// The indices of the largest scores, in ascending order. Of equal scores the lower index is chosen. NaN counts as
/// smallest.
///
/// Products go through experts in ascending order. So sums over a token's experts have the same order and the same
/// bits, whether ops are fused or not.
pub(super) fn top_k(scores: &[f32], out: &mut [u32]) {
    let mut n = 0;
    for (i, score) in scores.iter().enumerate() {
        // Insertion into the sorted list of the best so far, because k is small.
        let beats = |other: u32| {
            *score > scores[other as usize] || scores[other as usize].is_nan() && !score.is_nan()
        };
        if n == out.len() && !beats(out[n - 1]) {
            continue;
        }
        n = (n + 1).min(out.len());
        let mut at = n - 1;
        while at > 0 && beats(out[at - 1]) {
            out[at] = out[at - 1];
            at -= 1;
        }
        out[at] = i as u32;
    }
    out.sort_unstable();
}

/// Zeros every score outside the best `topk_group` groups. Groups are compared by the sum of their two best scores.
pub(super) fn keep_top_groups(scores: &mut [f32], n_group: usize, topk_group: usize) {
    let size = scores.len() / n_group;
    let rank_of = |group: &[f32]| {
        let mut best = [f32::NEG_INFINITY; 2];
        for v in group {
            if *v > best[0] {
                best = [*v, best[0]];
            } else if *v > best[1] {
                best[1] = *v;
            }
        }
        best[0] + best[1]
    };
    // Groups are dropped one by one, the worst first and of equal ones the last. This needs no memory.
    for _ in topk_group..n_group {
        let worst = scores
            .chunks_exact(size)
            .enumerate()
            .filter(|(_, g)| !g.iter().all(|v| v.is_nan()))
            .map(|(g, group)| (g, rank_of(group)))
            .reduce(|worst, next| if next.1 <= worst.1 { next } else { worst });
        if let Some((g, _)) = worst {
            scores[g * size..(g + 1) * size].fill(f32::NAN); // NaN marks a dropped group until the end
        }
    }
    for v in scores {
        if v.is_nan() {
            *v = 0.0;
        }
    }
}

/// See [`zmlx_core::Backend::route_softmax_top_k`]. `scores` holds the logits and is overwritten.
pub(super) fn softmax_top_k(
    scores: &mut [f32],
    settings: &SoftmaxTopK,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    softmax(scores);
    top_k(scores, experts);
    take(scores, experts, weights);
    if settings.renormalize == Renormalize::Yes {
        let total = sum(weights);
        weights.iter_mut().for_each(|w| *w /= total);
    }
}

/// See [`zmlx_core::Backend::route_noaux_tc`]. `scores` holds the logits and is overwritten, as is `chosen_by`.
pub(super) fn noaux_tc(
    scores: &mut [f32],
    chosen_by: &mut [f32],
    bias: &[f32],
    settings: &NoauxTc,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    for ((score, sel), bias) in scores.iter_mut().zip(chosen_by.iter_mut()).zip(bias) {
        *score = sigmoid(*score);
        *sel = *score + bias;
    }
    if settings.n_group > 1 {
        keep_top_groups(chosen_by, settings.n_group, settings.topk_group);
    }
    top_k(chosen_by, experts);
    take(scores, experts, weights);
    if settings.top_k > 1 && settings.renormalize == Renormalize::Yes {
        let total = sum(weights) + settings.eps;
        weights.iter_mut().for_each(|w| *w /= total);
    }
    weights.iter_mut().for_each(|w| *w *= settings.routed_scaling_factor);
}

fn take(scores: &[f32], experts: &[u32], weights: &mut [f32]) {
    weights.iter_mut().zip(experts).for_each(|(w, e)| *w = scores[*e as usize]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn top_k_breaks_ties_by_index_and_takes_nan_last() {
        let mut out = [0; 3];
        top_k(&[1.0, 3.0, 3.0, 2.0, 3.0], &mut out);
        assert_eq!(out, [1, 2, 4]);
        top_k(&[f32::NAN, 1.0, f32::NAN, 2.0], &mut out);
        assert_eq!(out, [0, 1, 3]);
        top_k(&[0.0, 1.0, 0.5, 1.0], &mut out);
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn groups_are_ranked_by_their_two_best() {
        let mut v = [9.0, 0.0, 5.0, 5.0, 6.0, 3.0, 1.0, 1.0];
        keep_top_groups(&mut v, 4, 2);
        // The groups' sums are 9, 10, 9, 2. Of the two nines the first stays.
        assert_eq!(v, [9.0, 0.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0]);
    }
}

//! Some query rows against a range of positions, block by block, with a running softmax.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::ops::Range;

use super::cache::{PAD, Rows};
use crate::cpu::level::Level;
use crate::cpu::math::exp;
use crate::cpu::simd::Simd;
use crate::cpu::simd::scalar::Scalar;

/// Query rows of a job: they share what they read of the cache.
pub(super) const JOB_ROWS: usize = 16;
/// Positions that are scored before their values are added: the keys of all stay in the second-level cache.
pub(super) const BLOCK: usize = 64;
/// Query rows, and positions or vectors of values, that a step multiplies.
const ROWS: usize = 4;
const COLUMNS: usize = 2;

/// One head's keys and values.
pub(super) struct Keys<'a> {
    /// A key is one row, or two side by side, each with its own scale.
    pub(super) parts: [Option<&'a Rows>; 2],
    /// Values of a row of the first and of the second part; the values are as wide as the first.
    pub(super) widths: [usize; 2],
    pub(super) values: &'a Rows,
}

impl Keys<'_> {
    /// Values of a padded row of the values.
    pub(super) fn v_stride(&self) -> usize {
        self.widths[0].next_multiple_of(PAD)
    }
}

/// A member's working memory.
#[derive(Default)]
pub(in crate::cpu) struct Partial {
    pub(super) queries: Vec<f32>,
    pub(super) scores: Vec<f32>,
    /// Of each row the sums of the values; then of all rows the largest scores, then the sums of the weights.
    pub(super) state: Vec<f32>,
}

/// Floats of a state of values of that width.
pub(super) fn state_len(v_stride: usize) -> usize {
    JOB_ROWS * (v_stride + 2)
}

/// The sums of the weights.
pub(super) fn weight_sums(state: &[f32], v_stride: usize) -> &[f32] {
    &state[JOB_ROWS * (v_stride + 1)..]
}

/// Adds another part's state to a state.
pub(super) fn merge(state: &mut [f32], other: &[f32], v_stride: usize) {
    let n = JOB_ROWS * v_stride;
    for r in 0..JOB_ROWS {
        let (a, b) = (state[n + r], other[n + r]);
        // A part that saw nothing of a row has no largest score, and NaN is passed on.
        let max = if b > a || b.is_nan() { b } else { a };
        let factor = |of: f32| if of == f32::NEG_INFINITY { 0.0 } else { exp(of - max) };
        let (a, b) = (factor(a), factor(b));
        for (v, other) in state[r * v_stride..][..v_stride].iter_mut().zip(&other[r * v_stride..]) {
            *v = *v * a + other * b;
        }
        let sum = n + JOB_ROWS + r;
        state[sum] = state[sum] * a + other[sum] * b;
        state[n + r] = max;
    }
}

/// Adds up `Σ exp(score - max) · value` over `positions` for all query rows, with the largest score so far; a score is
/// `q · k`. Row r sees the positions below `limits[r]`. `queries` has `JOB_ROWS` rows as wide as a padded key, `state`
/// [`state_len`] zeros, which mean nothing seen.
///
/// # Safety
/// The processor has the level's instructions; all positions are cached.
pub(super) type AttendFn = unsafe fn(
    keys: &Keys<'_>,
    queries: &[f32],
    limits: &[usize; JOB_ROWS],
    positions: Range<usize>,
    scores: &mut Vec<f32>,
    state: &mut [f32],
);

/// The instance for a level.
pub(super) fn attend(level: Level) -> AttendFn {
    match level {
        Level::Scalar => attend_on::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => attend_on::<crate::cpu::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => attend_on::<crate::cpu::simd::avx512::Avx512<false>>,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => attend_on::<crate::cpu::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

unsafe fn attend_on<S: Simd>(
    keys: &Keys<'_>,
    queries: &[f32],
    limits: &[usize; JOB_ROWS],
    positions: Range<usize>,
    scores: &mut Vec<f32>,
    state: &mut [f32],
) {
    scores.resize(ROWS * BLOCK, 0.0);
    let q_stride = queries.len() / JOB_ROWS;
    let (values, rest) = state.split_at_mut(JOB_ROWS * keys.v_stride());
    let (maxima, sums) = rest.split_at_mut(JOB_ROWS);
    maxima.fill(f32::NEG_INFINITY);
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            for from in positions.clone().step_by(BLOCK) {
                let n = BLOCK.min(positions.end - from);
                let mut is_first = true;
                for first in (0..JOB_ROWS).step_by(ROWS) {
                    // Rows ascend: the last of four sees the most, unless it does not exist.
                    let most = limits[first]
                        .max(limits[first + ROWS - 1])
                        .max(limits[first + 1])
                        .max(limits[first + 2]);
                    if most <= from {
                        continue;
                    }
                    // SAFETY: the positions are cached; scores and state have been made large enough.
                    unsafe {
                        score(s, keys, &queries[first * q_stride..], q_stride, from, n, is_first, scores);
                        is_first = false;
                        let mut kept = [1.0; ROWS];
                        for r in 0..ROWS {
                            let visible = limits[first + r].saturating_sub(from).min(n);
                            let scores = &mut scores[r * BLOCK..(r + 1) * BLOCK];
                            let value_scales = &keys.values.scales[from..from + n];
                            kept[r] = weigh(
                                scores,
                                visible,
                                value_scales,
                                &mut maxima[first + r],
                                &mut sums[first + r],
                            );
                        }
                        add_values(s, keys, first, from, n, scores, &kept, values);
                    }
                }
            }
        },
    );
}

/// `scores[r · BLOCK + p]` of four rows and the positions `from..from + n`. If these are the `first` rows to need them,
/// it fetches the values of the same positions, and the keys of the next block.
///
/// # Safety
/// As [`AttendFn`].
#[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
#[inline(always)]
unsafe fn score<S: Simd>(
    s: S,
    keys: &Keys<'_>,
    queries: &[f32],
    q_stride: usize,
    from: usize,
    n: usize,
    is_first: bool,
    scores: &mut [f32],
) {
    let mut q_at = 0;
    scores.fill(0.0);
    for part in 0..2 {
        let Some(rows) = keys.parts[part] else { continue };
        let stride = keys.widths[part].next_multiple_of(PAD);
        for p in (0..n).step_by(COLUMNS) {
            let last = if p + 1 < n { p + 1 } else { p };
            let mut sums = [[s.splat(0.0); COLUMNS]; ROWS];
            if is_first {
                let next = rows.values.as_ptr().wrapping_add((from + BLOCK + p) * stride).cast();
                prefetch(s, next, COLUMNS * stride);
                if part == 0 {
                    let values =
                        keys.values.values.as_ptr().wrapping_add((from + p) * keys.v_stride()).cast();
                    prefetch(s, values, COLUMNS * keys.v_stride());
                }
            }
            // SAFETY: whole vectors of padded rows.
            unsafe {
                let (a, b) = (
                    rows.values.as_ptr().add((from + p) * stride),
                    rows.values.as_ptr().add((from + last) * stride),
                );
                let q = queries.as_ptr().add(q_at);
                for i in (0..stride).step_by(S::LANES) {
                    let (a, b) = (s.load_i16(a.add(i)), s.load_i16(b.add(i)));
                    for r in 0..ROWS {
                        let q = s.load(q.add(r * q_stride + i));
                        sums[r][0] = s.fma(q, a, sums[r][0]);
                        sums[r][1] = s.fma(q, b, sums[r][1]);
                    }
                }
            }
            for r in 0..ROWS {
                scores[r * BLOCK + p] += s.sum(sums[r][0]) * rows.scales[from + p];
                if last > p {
                    scores[r * BLOCK + last] += s.sum(sums[r][1]) * rows.scales[from + last];
                }
            }
        }
        q_at += stride;
    }
}

/// Fetches `n` 16-bit values.
#[inline(always)]
fn prefetch<S: Simd>(s: S, p: *const u8, n: usize) {
    for line in 0..(2 * n).div_ceil(64) {
        s.prefetch(p.wrapping_add(64 * line));
    }
}

/// Turns a row's scores into weights, times the values' scales, and brings its largest score and its sum up to date.
/// Returns what the sums so far must be multiplied by.
#[inline(always)]
fn weigh(scores: &mut [f32], visible: usize, value_scales: &[f32], max: &mut f32, sum: &mut f32) -> f32 {
    let (scores, hidden) = scores.split_at_mut(visible);
    hidden.fill(0.0);
    if visible == 0 {
        return 1.0;
    }
    let before = *max;
    let mut most = [before; 8];
    for chunk in scores.chunks(8) {
        for (m, v) in most.iter_mut().zip(chunk) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    for m in most {
        *max = if m > *max { m } else { *max };
    }
    let now = *max;
    let mut added = [0f32; 8];
    for (chunk, scales) in scores.chunks_mut(8).zip(value_scales.chunks(8)) {
        for ((v, scale), added) in chunk.iter_mut().zip(scales).zip(&mut added) {
            let weight = exp(*v - now);
            *added += weight;
            *v = weight * scale;
        }
    }
    let kept = if before == f32::NEG_INFINITY { 0.0 } else { exp(before - now) };
    *sum *= kept;
    for v in added {
        *sum += v;
    }
    kept
}

/// `values[r] = kept[r] · values[r] + Σ_p scores[r][p] · value[p]` of four rows.
///
/// # Safety
/// As [`AttendFn`].
#[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
#[inline(always)]
unsafe fn add_values<S: Simd>(
    s: S,
    keys: &Keys<'_>,
    first: usize,
    from: usize,
    n: usize,
    scores: &[f32],
    kept: &[f32; ROWS],
    values: &mut [f32],
) {
    let stride = keys.v_stride();
    // SAFETY: whole vectors of padded rows.
    unsafe {
        let v = keys.values.values.as_ptr().add(from * stride);
        let out = values.as_mut_ptr().add(first * stride);
        for i in (0..stride).step_by(COLUMNS * S::LANES) {
            // The last vector may be alone: then it is computed twice.
            let second = if i + S::LANES < stride { i + S::LANES } else { i };
            let mut sums = [[s.splat(0.0); COLUMNS]; ROWS];
            for r in 0..ROWS {
                let kept = s.splat(kept[r]);
                sums[r][0] = s.mul(kept, s.load(out.add(r * stride + i)));
                sums[r][1] = s.mul(kept, s.load(out.add(r * stride + second)));
            }
            for p in 0..n {
                let (a, b) = (s.load_i16(v.add(p * stride + i)), s.load_i16(v.add(p * stride + second)));
                for r in 0..ROWS {
                    let weight = s.splat(*scores.get_unchecked(r * BLOCK + p));
                    sums[r][0] = s.fma(weight, a, sums[r][0]);
                    sums[r][1] = s.fma(weight, b, sums[r][1]);
                }
            }
            for r in 0..ROWS {
                s.store(out.add(r * stride + i), sums[r][0]);
                s.store(out.add(r * stride + second), sums[r][1]);
            }
        }
    }
}

//! Some query rows against a range of positions, block by block, with a running softmax.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::ops::Range;

use super::cache::{PAD, Rows};
use crate::cpu::level::Level;
use crate::cpu::math::exp;
use crate::cpu::pool::Aligned;
use crate::cpu::simd::Simd;
use crate::cpu::simd::scalar::Scalar;

/// Most query rows of a job: they share what they read of the cache.
pub(super) const JOB_ROWS: usize = 32;
/// Positions that are scored before their values are added: the keys of all stay in the second-level cache.
pub(super) const BLOCK: usize = 96;
/// Jobs are padded to a multiple of this many query rows.
pub(super) const ROWS: usize = 4;
/// Positions that a step multiplies with some query rows: the sums and what they need fill the registers.
const COLUMNS: usize = 3;

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
    pub(super) queries: Aligned<f32>,
    pub(super) scores: Scores,
    /// Of each row the sums of the values; then of all rows the largest scores, then the sums of the weights.
    pub(super) state: Aligned<f32>,
}

/// Of each position of a block the scores of some rows, which become weights.
pub(super) struct Scores(Box<[f32; MAX_ROWS * BLOCK]>);

/// Most rows of a step.
const MAX_ROWS: usize = 8;

impl Default for Scores {
    fn default() -> Self {
        Self(Box::new([0.0; MAX_ROWS * BLOCK]))
    }
}

/// Floats of a state of that many rows, of values of that width.
pub(super) fn state_len(n_rows: usize, v_stride: usize) -> usize {
    n_rows * (v_stride + 2)
}

/// The sums of the weights.
pub(super) fn weight_sums(state: &[f32], n_rows: usize) -> &[f32] {
    &state[state.len() - n_rows..]
}

/// Adds another part's state of as many rows to a state.
pub(super) fn merge(state: &mut [f32], other: &[f32], n_rows: usize, v_stride: usize) {
    let n = n_rows * v_stride;
    for r in 0..n_rows {
        let (a, b) = (state[n + r], other[n + r]);
        // A part that saw nothing of a row has no largest score, and NaN is passed on.
        let max = if b > a || b.is_nan() { b } else { a };
        let factor = |of: f32| if of == f32::NEG_INFINITY { 0.0 } else { exp(of - max) };
        let (a, b) = (factor(a), factor(b));
        for (v, other) in state[r * v_stride..][..v_stride].iter_mut().zip(&other[r * v_stride..]) {
            *v = *v * a + other * b;
        }
        let sum = n + n_rows + r;
        state[sum] = state[sum] * a + other[sum] * b;
        state[n + r] = max;
    }
}

/// Adds up `Σ exp(score - max) · value` over `positions` for all query rows, with the largest score so far; a score is
/// `q · k`. Row r sees the positions below `limits[r]`, rows that do not exist none; their number is a
/// multiple of [`ROWS`]. `queries` has as many rows, as wide as a padded key, `state` [`state_len`] zeros,
/// which mean nothing seen.
///
/// # Safety
/// The processor has the level's instructions; all positions are cached.
pub(super) type AttendFn = unsafe fn(
    keys: &Keys<'_>,
    queries: &[f32],
    limits: &[usize],
    positions: Range<usize>,
    scores: &mut Scores,
    state: &mut [f32],
);

/// The instance for a level.
pub(super) fn attend(level: Level) -> AttendFn {
    match level {
        Level::Scalar => attend_on::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => attend_on::<crate::cpu::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni | Level::Amx => {
            attend_on::<crate::cpu::simd::avx512::Avx512<false>>
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon => attend_on::<crate::cpu::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

unsafe fn attend_on<S: Simd>(
    keys: &Keys<'_>,
    queries: &[f32],
    limits: &[usize],
    positions: Range<usize>,
    Scores(scores): &mut Scores,
    state: &mut [f32],
) {
    let n_rows = limits.len();
    let q_stride = queries.len() / n_rows;
    let (values, rest) = state.split_at_mut(n_rows * keys.v_stride());
    let (maxima, sums) = rest.split_at_mut(n_rows);
    maxima.fill(f32::NEG_INFINITY);
    let mut rows = RowStates { limits, queries, q_stride, values, maxima, sums };
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            for from in positions.clone().step_by(BLOCK) {
                let n = BLOCK.min(positions.end - from);
                let (mut is_first, mut row) = (true, 0);
                while row < n_rows {
                    // SAFETY: the positions are cached; queries and state have these rows.
                    unsafe {
                        if S::MANY_REGISTERS && row + MAX_ROWS <= n_rows {
                            is_first &= !attend_rows::<S, MAX_ROWS>(
                                s, keys, &mut rows, row, from, n, is_first, scores,
                            );
                            row += MAX_ROWS;
                        } else {
                            is_first &=
                                !attend_rows::<S, ROWS>(s, keys, &mut rows, row, from, n, is_first, scores);
                            row += ROWS;
                        }
                    }
                }
            }
        },
    );
}

/// All query rows of a job.
struct RowStates<'a> {
    limits: &'a [usize],
    queries: &'a [f32],
    q_stride: usize,
    values: &'a mut [f32],
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
}

/// `R` rows from `row` on against the positions `from..from + n`. Returns whether they see any.
///
/// # Safety
/// As [`AttendFn`]; the rows exist.
#[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
#[inline(always)]
unsafe fn attend_rows<S: Simd, const R: usize>(
    s: S,
    keys: &Keys<'_>,
    rows: &mut RowStates<'_>,
    row: usize,
    from: usize,
    n: usize,
    is_first: bool,
    scores: &mut [f32; MAX_ROWS * BLOCK],
) -> bool {
    let mut visible = [0; R];
    for r in 0..R {
        visible[r] = rows.limits[row + r].saturating_sub(from).min(n);
    }
    if visible == [0; R] {
        return false;
    }
    let (scores, _) = scores.as_chunks_mut::<R>();
    // SAFETY: the caller's promise.
    unsafe {
        let queries = rows.queries.as_ptr().add(row * rows.q_stride);
        score(s, keys, queries, rows.q_stride, from, is_first, &mut scores[..n]);
        let value_scales = &keys.values.scales[from..from + n];
        let (maxima, sums) = (&mut rows.maxima[row..row + R], &mut rows.sums[row..row + R]);
        let kept = weigh(scores, visible, value_scales, maxima, sums);
        let values = rows.values.as_mut_ptr().add(row * keys.v_stride());
        add_values(s, keys, from, &scores[..n], kept, values);
    }
    true
}

/// Fetches the values of `n` positions from `from` on and the keys of as many in the next block.
#[inline(always)]
fn fetch<S: Simd>(s: S, keys: &Keys<'_>, from: usize, n: usize) {
    fetch_rows(s, keys.values, keys.widths[0], from, n);
    for part in 0..2 {
        if let Some(rows) = keys.parts[part] {
            fetch_rows(s, rows, keys.widths[part], from + BLOCK, n);
        }
    }
}

/// Fetches `n` rows from `from` on, which need not exist.
#[inline(always)]
fn fetch_rows<S: Simd>(s: S, rows: &Rows, width: usize, from: usize, n: usize) {
    let stride = width.next_multiple_of(PAD);
    let first: *const u8 = rows.values.as_ptr().wrapping_add(from * stride).cast();
    for line in 0..(2 * n * stride).div_ceil(64) {
        s.prefetch(first.wrapping_add(64 * line));
    }
}

/// The scores of `R` rows and the positions from `from` on. The first rows to need them fetch what comes next.
///
/// # Safety
/// As [`AttendFn`].
#[inline(always)]
unsafe fn score<S: Simd, const R: usize>(
    s: S,
    keys: &Keys<'_>,
    queries: *const f32,
    q_stride: usize,
    from: usize,
    is_first: bool,
    scores: &mut [[f32; R]],
) {
    let mut q_at = 0;
    for part in 0..2 {
        let Some(rows) = keys.parts[part] else { continue };
        let stride = keys.widths[part].next_multiple_of(PAD);
        for p in (0..scores.len()).step_by(COLUMNS) {
            if is_first && part == 0 {
                fetch(s, keys, from + p, COLUMNS);
            }
            // Past the end, the last position is repeated.
            let mut at = [p; COLUMNS];
            for c in 0..COLUMNS {
                at[c] = if p + c < scores.len() { p + c } else { scores.len() - 1 };
            }
            let mut sums = [[s.splat(0.0); R]; COLUMNS];
            // SAFETY: whole vectors of padded rows.
            unsafe {
                let q = queries.add(q_at);
                let mut k = [rows.values.as_ptr(); COLUMNS];
                for c in 0..COLUMNS {
                    k[c] = k[c].add((from + at[c]) * stride);
                }
                for i in (0..stride).step_by(S::LANES) {
                    let mut keys = [s.splat(0.0); COLUMNS];
                    for c in 0..COLUMNS {
                        keys[c] = s.load_i16(k[c].add(i));
                    }
                    for r in 0..R {
                        let q = s.load(q.add(r * q_stride + i));
                        for c in 0..COLUMNS {
                            sums[c][r] = s.fma(q, keys[c], sums[c][r]);
                        }
                    }
                }
            }
            for c in 0..COLUMNS {
                let scale = rows.scales[from + at[c]];
                for first in (0..R).step_by(4) {
                    let four =
                        s.sums([sums[c][first], sums[c][first + 1], sums[c][first + 2], sums[c][first + 3]]);
                    // A repeated position's sums are added once.
                    for r in 0..if p + c < scores.len() { 4 } else { 0 } {
                        let before = if part == 0 { 0.0 } else { scores[at[c]][first + r] };
                        scores[at[c]][first + r] = four[r] * scale + before;
                    }
                }
            }
        }
        q_at += stride;
    }
}

/// Turns the scores of `R` rows into weights, times the values' scales, and brings the rows' largest scores and sums up
/// to date; a row sees its first `visible` positions. Returns what the sums so far must be multiplied by.
#[inline(always)]
fn weigh<const R: usize>(
    scores: &mut [[f32; R]],
    visible: [usize; R],
    value_scales: &[f32],
    maxima: &mut [f32],
    sums: &mut [f32],
) -> [f32; R] {
    /// Scores that become weights at once: vectors on every level.
    const WIDTH: usize = 16;
    let n = value_scales.len().next_multiple_of(WIDTH / R);
    if visible != [n; R] {
        for r in 0..R {
            for p in visible[r]..n {
                scores[p][r] = f32::NEG_INFINITY;
            }
        }
    }
    let flat = scores[..n].as_flattened_mut();
    let mut most = [f32::NEG_INFINITY; WIDTH];
    for scores in flat.chunks_exact(WIDTH) {
        for i in 0..WIDTH {
            most[i] = if scores[i] > most[i] { scores[i] } else { most[i] };
        }
    }
    let (mut kept, mut base) = ([0.0; R], [0.0; WIDTH]);
    for r in 0..R {
        let before = maxima[r];
        for i in (r..WIDTH).step_by(R) {
            maxima[r] = if most[i] > maxima[r] { most[i] } else { maxima[r] };
        }
        // A row that has seen nothing keeps nothing, and its weights are exp(-∞).
        let now = if maxima[r] == f32::NEG_INFINITY { 0.0 } else { maxima[r] };
        kept[r] = exp(before - now);
        for i in (r..WIDTH).step_by(R) {
            base[i] = now;
        }
    }
    let mut added = [0.0; WIDTH];
    for scores in flat.chunks_exact_mut(WIDTH) {
        for i in 0..WIDTH {
            let weight = exp(scores[i] - base[i]);
            added[i] += weight;
            scores[i] = weight;
        }
    }
    for r in 0..R {
        sums[r] *= kept[r];
        for i in (r..WIDTH).step_by(R) {
            sums[r] += added[i];
        }
    }
    for (weights, scale) in scores.iter_mut().zip(value_scales) {
        for weight in weights {
            *weight *= scale;
        }
    }
    kept
}

/// `values[r] = kept[r] · values[r] + Σ_p weights[p][r] · value[p]` of `R` rows and the positions from `from` on.
///
/// # Safety
/// As [`AttendFn`].
#[inline(always)]
unsafe fn add_values<S: Simd, const R: usize>(
    s: S,
    keys: &Keys<'_>,
    from: usize,
    weights: &[[f32; R]],
    kept: [f32; R],
    values: *mut f32,
) {
    let stride = keys.v_stride();
    let n_vectors = stride / S::LANES;
    let mut i = 0;
    while i < n_vectors {
        // SAFETY: whole vectors of padded rows.
        unsafe {
            let v = keys.values.values.as_ptr().add(from * stride + i * S::LANES);
            let out = values.add(i * S::LANES);
            i += if n_vectors - i > 1 {
                add_columns::<S, 2, R>(s, v, weights, kept, stride, out)
            } else {
                add_columns::<S, 1, R>(s, v, weights, kept, stride, out)
            };
        }
    }
}

/// [`add_values`] for some vectors of the values. Returns how many.
///
/// # Safety
/// As [`AttendFn`]: `v` and `out` have rows of `stride` values, at which that many vectors begin.
#[inline(always)]
unsafe fn add_columns<S: Simd, const N: usize, const R: usize>(
    s: S,
    v: *const i16,
    weights: &[[f32; R]],
    kept: [f32; R],
    stride: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            for c in 0..N {
                sums[r][c] = s.mul(s.splat(kept[r]), s.load(out.add(r * stride + c * S::LANES)));
            }
        }
        for p in 0..weights.len() {
            let mut values = [s.splat(0.0); N];
            for c in 0..N {
                values[c] = s.load_i16(v.add(p * stride + c * S::LANES));
            }
            for r in 0..R {
                let weight = s.splat(weights[p][r]);
                for c in 0..N {
                    sums[r][c] = s.fma(weight, values[c], sums[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..N {
                s.store(out.add(r * stride + c * S::LANES), sums[r][c]);
            }
        }
    }
    N
}

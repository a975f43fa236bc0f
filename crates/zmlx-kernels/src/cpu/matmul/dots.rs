//! Few rows of activations: four rows of a weight times one, two or four of them, as dot products.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::cells::{Cells, MAX_OVERREAD};
use super::elements::Element;
use super::layout::{PREFETCH_SCALES, Row, RowLayout, SCALES_OVERREAD, ScaleCopies, group_scales};
use crate::cpu::simd::Simd;

/// Rows of a weight that a dot kernel takes at once.
pub(super) const ROWS: usize = 4;
/// Most rows of activations that a dot kernel takes at once.
pub(super) const MAX_X: usize = 4;
/// Most vectors of cells of a load, of any format.
const MAX_CELLS: usize = 8;
/// Largest chunk of any format and level, in bytes.
const MAX_CHUNK_BYTES: usize = 256;
/// Weight bytes fetched ahead of use in each run, into the second-level cache.
const PREFETCH_BYTES: usize = 2048;

/// `out[r][x · x_stride + i] = Σ_k weight[k] · x[k]` for the `i`th row, `i` below `n`, from each of four rows on, and for as many
/// prepared rows of activations as the instance takes.
///
/// # Safety
/// Rows and activations are as the layout says; the results have room; the processor has the instance's instructions.
pub(super) type DotFn = unsafe fn(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    n: usize,
    x: &[*const f32; MAX_X],
    out: &[*mut f32; ROWS],
    x_stride: usize,
);

/// The [`DotFn`] for `X` rows of activations, `R` rows of the weight at a time: `X · R` sums stay in registers.
pub(super) unsafe fn dot<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    n: usize,
    x: &[*const f32; MAX_X],
    out: &[*mut f32; ROWS],
    x_stride: usize,
) {
    const { assert!(C::LOADS * C::LOAD_BYTES <= MAX_CHUNK_BYTES && X * R >= 4) };
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // In vector code loops, not functions of arrays: those are code of their own, without the level's
            // instructions, unless the compiler inlines them.
            let mut few_x = [x[0]; X];
            few_x.copy_from_slice(&x[..X]);
            let mut copies = Copies::ZERO;
            for first in (0..ROWS).step_by(R) {
                let mut few_rows = [rows[first]; R];
                few_rows.copy_from_slice(&rows[first..first + R]);
                let mut step = Step { data: 0, scales: 0, can_overread: true };
                for r in 0..R {
                    step.can_overread &= few_rows[r].can_overread;
                }
                for i in 0..n {
                    // SAFETY: the buffers are as the layout says and have room (the caller's promise).
                    unsafe {
                        let total = dot_rows::<S, C, X, R>(s, layout, &few_rows, &step, &few_x, &mut copies);
                        for at in (0..X * R).step_by(4) {
                            let mut four = [total[0][0]; 4];
                            for j in 0..4 {
                                four[j] = total[(at + j) / R][(at + j) % R];
                            }
                            let sums = s.sums(four);
                            for j in 0..4 {
                                let (m, r) = ((at + j) / R, (at + j) % R);
                                out[first + r].add(m * x_stride + i).write(sums[j]);
                            }
                        }
                    }
                    step.data += layout.row_bytes;
                    step.scales += layout.scales_bytes();
                }
            }
        },
    );
}

/// Fetches what is read first from each of the rows on: what a kernel call would otherwise wait for.
pub(super) fn fetch<S: Simd>(rows: &[Row; ROWS]) {
    // SAFETY: nothing but fetching is done with it, for which every processor has instructions.
    let s = unsafe { S::assume() };
    for row in rows {
        for line in (0..PREFETCH_BYTES).step_by(64) {
            s.prefetch_l2(row.data.wrapping_add(line));
        }
        for line in (0..PREFETCH_SCALES).step_by(64) {
            s.prefetch_l2(row.scales.wrapping_add(line));
            s.prefetch_l2(row.biases.wrapping_add(line));
        }
    }
}

/// How far the rows of a step are behind the first ones.
struct Step {
    /// Bytes of data.
    data: usize,
    /// Bytes of scales, and of biases.
    scales: usize,
    can_overread: bool,
}

/// The lanes' sums of `R` rows with `X` rows of activations.
///
/// # Safety
/// As [`DotFn`].
#[inline(always)]
unsafe fn dot_rows<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    rows: &[Row; R],
    step: &Step,
    x: &[*const f32; X],
    copies: &mut Copies<R>,
) -> [[S::F; R]; X] {
    let mut total = [[s.splat(0.0); R]; X];
    let n_direct = layout.n_direct(step.can_overread);
    let mut x_at = *x;
    let (mut c, mut from, mut group) = (0, 0, 0);
    while c < layout.n_chunks {
        // The chunks of a vector of groups.
        let end = if C::SCALED { layout.n_chunks.min(c + layout.lanes_per_group) } else { layout.n_chunks };
        let mut scales = Scales { w: [s.splat(1.0); R], x: [s.splat(1.0); X] };
        // SAFETY: the buffers are as the layout says (the caller's promise).
        unsafe {
            if C::SCALED {
                let [w, biases] = group_scales(s, layout, rows, step.scales, group, &mut copies.scales);
                add_biases(s, layout, &biases, x, group, &mut total);
                scales = Scales::new::<C>(s, layout, w, x, group);
            }
            let mut lanes = layout.group_of_lane().as_ptr();
            while c < end {
                let idx = if C::SCALED { s.load_words(lanes.cast()) } else { s.splat_i(0) };
                let mut at = [rows[0].data; R];
                for r in 0..R {
                    at[r] = rows[r].data.wrapping_add(step.data + from);
                }
                if c >= n_direct {
                    pad(layout.row_bytes - from, &mut at, &mut copies.chunks);
                }
                add_chunk::<S, C, X, R>(s, layout, &at, &x_at, &scales, idx, &mut total);
                from += C::LOADS * C::LOAD_BYTES;
                for m in 0..X {
                    x_at[m] = x_at[m].wrapping_add(C::LOADS * C::CELLS * S::LANES);
                }
                lanes = lanes.wrapping_add(S::LANES);
                c += 1;
            }
        }
        group += S::LANES;
    }
    total
}

/// Points `at` to copies of the last `n` bytes of some rows, padded with zeros to a chunk and the overread.
///
/// # Safety
/// The bytes are readable.
#[cold]
unsafe fn pad<const R: usize>(n: usize, at: &mut [*const u8; R], padded: &mut [PaddedChunk; R]) {
    for (at, padded) in at.iter_mut().zip(padded) {
        // SAFETY: the caller's promise; a row ends within a chunk.
        unsafe { std::ptr::copy_nonoverlapping(*at, padded.as_mut_ptr(), n) };
        *at = padded.as_ptr();
    }
}

/// A chunk of any format, and the overread.
type PaddedChunk = [u8; MAX_CHUNK_BYTES + MAX_OVERREAD];

/// What is copied of some rows.
struct Copies<const R: usize> {
    scales: ScaleCopies<R>,
    /// The last chunks, of the same length in all rows: behind them there are always zeros.
    chunks: [PaddedChunk; R],
}

impl<const R: usize> Copies<R> {
    const ZERO: Self =
        Self { scales: [[[0; SCALES_OVERREAD]; 2]; R], chunks: [[0; MAX_CHUNK_BYTES + MAX_OVERREAD]; R] };
}

/// The scales of a vector of groups: the rows', and those of the activations where they are multiplied in chunk by chunk.
struct Scales<S: Simd, const X: usize, const R: usize> {
    w: [S::F; R],
    x: [S::F; X],
}

impl<S: Simd, const X: usize, const R: usize> Scales<S, X, R> {
    /// Those of the groups from `group` on.
    ///
    /// # Safety
    /// `x` are as the layout says and have the group.
    #[inline(always)]
    unsafe fn new<C: Cells<S>>(
        s: S,
        layout: &RowLayout,
        w: [S::F; R],
        x: &[*const f32; X],
        group: usize,
    ) -> Self {
        let mut scales = Self { w, x: [s.splat(1.0); X] };
        if C::Element::X_SCALED {
            for m in 0..X {
                // SAFETY: the caller's promise.
                scales.x[m] = unsafe { s.load(x[m].add(layout.n_values + layout.padded_groups + group)) };
            }
            if X == 1 {
                // One row of activations: its scales are multiplied in once, not chunk by chunk.
                for r in 0..R {
                    scales.w[r] = s.mul(scales.w[r], scales.x[0]);
                }
            }
        }
        scales
    }
}

/// Adds the biases of the groups from `group` on, times the sums of their activations.
///
/// # Safety
/// `x` are as the layout says and have the group.
#[inline(always)]
unsafe fn add_biases<S: Simd, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    biases: &[S::F; R],
    x: &[*const f32; X],
    group: usize,
    total: &mut [[S::F; R]; X],
) {
    for m in 0..X {
        // SAFETY: the caller's promise.
        let x_sums = unsafe { s.load(x[m].add(layout.n_values + group)) };
        for r in 0..R {
            total[m][r] = s.fma(biases[r], x_sums, total[m][r]);
        }
    }
}

/// Adds a chunk's products to the sums; lane `j` belongs to group `idx[j]` of the scales.
///
/// # Safety
/// `at` holds the chunk of each row and `x` its activations, as the layout says.
#[inline(always)]
unsafe fn add_chunk<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    at: &[*const u8; R],
    x: &[*const f32; X],
    scales: &Scales<S, X, R>,
    idx: S::I,
    total: &mut [[S::F; R]; X],
) {
    // SAFETY: the caller's promise.
    let sums = unsafe { sum_chunk::<S, C, X, R>(s, layout, at, x) };
    for m in 0..X {
        let x_scale = if C::Element::X_SCALED && X > 1 { s.permute(scales.x[m], idx) } else { scales.x[m] };
        for r in 0..R {
            if C::SCALED {
                let mut scale = s.permute(scales.w[r], idx);
                if C::Element::X_SCALED && X > 1 {
                    scale = s.mul(scale, x_scale);
                }
                total[m][r] = s.fma(sums[m][r], scale, total[m][r]);
            } else {
                total[m][r] = s.add(sums[m][r], total[m][r]);
            }
        }
    }
}

/// `sums[m][r] = Σ w[r][k] · x[m][k]` over a chunk of each row, lane by lane, before scale and bias.
///
/// `n_loads` is [`Cells::LOADS`] as a bound that the compiler does not know: with several rows of activations a loop unrolled as
/// a whole would be reordered until nothing fits the registers.
///
/// # Safety
/// A chunk, and the overread, are readable at each of `at`, and a chunk of prepared activations at each of `x`.
#[inline(always)]
unsafe fn sum_chunk<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    s: S,
    &RowLayout { n_loads, plane, .. }: &RowLayout,
    at: &[*const u8; R],
    x: &[*const f32; X],
) -> [[S::F; R]; X] {
    const { assert!(C::CELLS <= MAX_CELLS && (C::Element::PLANES == 1 || C::LOADS == 1)) };
    let mut sums = [[C::Element::zero(s); R]; X];
    for load in 0..if X == 1 { C::LOADS } else { n_loads } {
        let mut cells = [[s.splat_i(0); R]; MAX_CELLS];
        for p in 0..C::Element::PLANES {
            for i in 0..C::CELLS {
                // SAFETY: the caller's promise.
                unsafe {
                    for r in 0..R {
                        if p == 0 {
                            if i == 0 {
                                // One by one between the loads: 6 % faster than all at once (Zen 4, 2026-11).
                                s.prefetch_l2(at[r].wrapping_add(PREFETCH_BYTES));
                            }
                            cells[i][r] = C::cells(s, C::load(s, at[r].add(load * C::LOAD_BYTES)), i);
                        }
                        for m in 0..X {
                            let x = x[m].add(p * plane + (load * C::CELLS + i) * S::LANES);
                            if p > 0 && i == 0 {
                                sums[m][r] = C::Element::next_plane(s, sums[m][r]);
                            }
                            sums[m][r] = C::Element::add(s, sums[m][r], cells[i][r], s.load_words(x.cast()));
                        }
                    }
                }
            }
        }
    }
    let mut totals = [[s.splat(0.0); R]; X];
    for m in 0..X {
        for r in 0..R {
            totals[m][r] = C::Element::total(s, sums[m][r]);
        }
    }
    totals
}

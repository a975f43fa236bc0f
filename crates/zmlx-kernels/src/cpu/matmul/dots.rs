//! Few rows of activations: four rows of a weight times one, two or four of them, as dot products.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::cells::{Cells, MAX_OVERREAD};
use super::elements::Element;
use super::layout::{Row, RowLayout, scales};
use crate::cpu::simd::Simd;

/// Rows of a weight that a dot kernel takes at once.
pub(super) const ROWS: usize = 4;
/// Most rows of activations that a dot kernel takes at once.
pub(super) const MAX_X: usize = 4;
/// Most vectors of cells of a load, of any format.
const MAX_CELLS: usize = 8;
/// Largest chunk of any format and level, in bytes.
const MAX_CHUNK_BYTES: usize = 256;
/// Weight bytes fetched ahead of use in each row.
const PREFETCH_BYTES: usize = 1024;

/// `out[x][row] = Σ_k weight[row][k] · x[k]` for four rows and as many prepared rows of activations as the instance
/// takes. `scratch` has room for `ROWS · layout.padded_groups` floats.
///
/// # Safety
/// Rows and activations are as the layout says; the processor has the instance's instructions.
pub(super) type DotFn = unsafe fn(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    x: &[*const f32; MAX_X],
    scratch: *mut f32,
    out: &mut [[f32; ROWS]; MAX_X],
);

/// The [`DotFn`] for `X` rows of activations, `R` rows of the weight at a time: `X · R` sums stay in registers.
pub(super) unsafe fn dot<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    x: &[*const f32; MAX_X],
    scratch: *mut f32,
    out: &mut [[f32; ROWS]; MAX_X],
) {
    const { assert!(C::LOADS * C::LOAD_BYTES <= MAX_CHUNK_BYTES) };
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // In vector code loops, not functions of arrays: those are code of their own, without the level's
            // instructions, unless the compiler inlines them.
            let mut few_x = [x[0]; X];
            few_x.copy_from_slice(&x[..X]);
            for first in (0..ROWS).step_by(R) {
                let mut few_rows = [rows[first]; R];
                few_rows.copy_from_slice(&rows[first..first + R]);
                // SAFETY: the buffers are as the layout says (the caller's promise).
                let total = unsafe { dot_rows::<S, C, X, R>(s, layout, &few_rows, &few_x, scratch) };
                for m in 0..X {
                    for r in 0..R {
                        out[m][first + r] = s.sum(total[m][r]);
                    }
                }
            }
        },
    );
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
    x: &[*const f32; X],
    scratch: *mut f32,
) -> [[S::F; R]; X] {
    let padded_groups = layout.padded_groups;
    let mut total = [[s.splat(0.0); R]; X];
    // SAFETY: the buffers are as the layout says (the caller's promise); the padded copies hold a chunk and the
    // overread.
    unsafe {
        if C::SCALED {
            for r in 0..R {
                scales(
                    s,
                    layout,
                    &rows[r],
                    scratch.add(r * padded_groups),
                    #[inline(always)]
                    |g, scales, biases| {
                        for m in 0..X {
                            total[m][r] = s.fma(biases, s.load(x[m].add(layout.n_values + g)), total[m][r]);
                        }
                        if C::Element::X_SCALED && X == 1 {
                            // One row of activations: its scales are multiplied in once, not chunk by chunk.
                            s.mul(scales, s.load(x[0].add(layout.n_values + padded_groups + g)))
                        } else {
                            scales
                        }
                    },
                );
            }
        }
        let mut scale_rows = ScaleRows { rows: [scratch.cast_const(); R], idx: scale_lanes(s, layout) };
        let mut at = [rows[0].data; R];
        for r in 0..R {
            scale_rows.rows[r] = scratch.add(r * padded_groups);
            at[r] = rows[r].data;
        }
        for c in 0..layout.n_direct {
            for at in &at {
                s.prefetch(at.wrapping_add(PREFETCH_BYTES));
            }
            add_chunk::<S, C, X, R>(s, (layout, c), &at, x, &scale_rows, &mut total);
            for at in &mut at {
                *at = at.add(C::LOADS * C::LOAD_BYTES);
            }
        }
        for c in layout.n_direct..layout.n_chunks {
            let mut padded = [[0u8; MAX_CHUNK_BYTES + MAX_OVERREAD]; R];
            let from = c * C::LOADS * C::LOAD_BYTES;
            for r in 0..R {
                let n = layout.row_bytes - from;
                std::ptr::copy_nonoverlapping(rows[r].data.add(from), padded[r].as_mut_ptr(), n);
                at[r] = padded[r].as_ptr();
            }
            add_chunk::<S, C, X, R>(s, (layout, c), &at, x, &scale_rows, &mut total);
        }
    }
    total
}

/// The rows' scales as floats, and which of a vector of them each lane takes.
struct ScaleRows<S: Simd, const R: usize> {
    rows: [*const f32; R],
    idx: S::I,
}

/// Adds chunk `c`'s products to the sums.
///
/// # Safety
/// `at` holds the chunk of each row, `x` the activations and `scale_rows` the scales, as the layout says.
#[inline(always)]
unsafe fn add_chunk<S: Simd, C: Cells<S>, const X: usize, const R: usize>(
    s: S,
    (layout, c): (&RowLayout, usize),
    at: &[*const u8; R],
    x: &[*const f32; X],
    scale_rows: &ScaleRows<S, R>,
    total: &mut [[S::F; R]; X],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let x_at = c * C::LOADS * C::CELLS * S::LANES;
        let mut x_chunks = *x;
        for x in &mut x_chunks {
            *x = x.add(x_at);
        }
        let sums = sum_chunk::<S, C, X, R>(s, layout, at, &x_chunks);
        let mut x_scales = [s.splat(1.0); X];
        if C::Element::X_SCALED && X > 1 {
            for m in 0..X {
                let scales = x[m].add(layout.n_values + layout.padded_groups);
                x_scales[m] = chunk_scale(s, layout, scales, c, scale_rows.idx);
            }
        }
        for r in 0..R {
            if C::SCALED {
                let scale = chunk_scale(s, layout, scale_rows.rows[r], c, scale_rows.idx);
                for m in 0..X {
                    let scale = if C::Element::X_SCALED && X > 1 { s.mul(scale, x_scales[m]) } else { scale };
                    total[m][r] = s.fma(sums[m][r], scale, total[m][r]);
                }
            } else {
                for m in 0..X {
                    total[m][r] = s.add(sums[m][r], total[m][r]);
                }
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

/// Which of the scales loaded from a chunk's first group each lane takes.
#[inline(always)]
fn scale_lanes<S: Simd>(s: S, layout: &RowLayout) -> S::I {
    let mut idx = [0u32; 16];
    for j in 0..16 {
        idx[j] = j as u32 >> layout.log2_lanes_per_group;
    }
    // SAFETY: 16 words are readable, and no vector has more lanes.
    unsafe { s.load_words(idx.as_ptr().cast()) }
}

/// The scale of each lane of chunk `c`.
///
/// # Safety
/// `scales` holds the row's scales, padded as the layout says.
#[inline(always)]
unsafe fn chunk_scale<S: Simd>(s: S, layout: &RowLayout, scales: *const f32, c: usize, idx: S::I) -> S::F {
    // SAFETY: the first group of a chunk exists, and a whole vector behind it is readable.
    unsafe {
        let first = scales.add((c * S::LANES) >> layout.log2_lanes_per_group);
        if 1 << layout.log2_lanes_per_group >= S::LANES {
            s.splat(first.read())
        } else {
            s.permute(s.load(first), idx)
        }
    }
}

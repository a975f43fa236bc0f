//! The kernel for few rows of activations: dot products of four rows of a weight with one, two or four of them.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::decoders::Decoder;
use super::elements::Element;
use super::layout::{PREFETCH_BYTES, Row, RowLayout};
use super::scales::{Scales, group_scales};
use super::zipped;
use crate::simd::{Simd, prefetch};

/// The largest number of rows of activations for one matrix that dots compute. They take some rows at a time.
pub(super) const MAX_DOTS: usize = 12;
/// Rows of a weight that a dot kernel takes at once.
pub(super) const ROWS: usize = 4;
/// The largest number of rows of activations that a dot kernel takes at once.
pub(super) const MAX_X: usize = 4;
/// The largest number of sums that a row of a weight and a row of activations have at once.
const MAX_SUMS: usize = 8;
/// The largest number of vectors of cells of a load, in any format.
const MAX_CELLS: usize = 8;
/// Bytes of scales, and of biases, that are prefetched.
const PREFETCH_SCALES: usize = 512;

/// `out[r][x · x_stride + i] = Σ_k weight[k] · x[k]` for the `i`th row after each of four first rows, for all `i` below
/// `n`, and for as many prepared rows of activations as the instance takes. `scales` has room for [`scales_len`]
/// floats.
///
/// # Safety
/// Rows and activations are as the layout says. Whole chunks of the rows and whole vectors of their scales are
/// readable, and with floats the row is followed by zeros. The results have room. The processor has the instance's
/// instructions.
pub(super) type DotFn = unsafe fn(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    n: usize,
    x: &[*const f32; MAX_X],
    scales: &mut [f32],
    out: &[*mut f32; ROWS],
    x_stride: usize,
);

/// Number of floats of scales that a [`DotFn`] keeps.
pub(super) fn scales_len(layout: &RowLayout) -> usize {
    MAX_SUMS * layout.scales_stride()
}

/// The [`DotFn`] for `X` rows of activations, with `R` rows of the weight at a time. `X · R` sums stay in registers.
pub(super) unsafe fn dot<S: Simd, D: Decoder<S>, K: Scales, const X: usize, const R: usize>(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    n: usize,
    x: &[*const f32; MAX_X],
    scales: &mut [f32],
    out: &[*mut f32; ROWS],
    x_stride: usize,
) {
    const { assert!(X * R >= 4 && X * R <= MAX_SUMS) };
    assert!(scales.len() >= scales_len(layout));
    // SAFETY: the caller guarantees that the processor has the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // Writes to the scales cannot change a local copy, so the compiler does not read the layout again and
            // again.
            let layout = &{ *layout };
            // Vector code uses loops and no functions of arrays. Unless the compiler inlines such a function, it is
            // compiled without the level's instructions.
            let mut few_x = [x[0]; X];
            few_x.copy_from_slice(&x[..X]);
            for first in (0..ROWS).step_by(R) {
                let mut few_rows = [rows[first]; R];
                few_rows.copy_from_slice(&rows[first..first + R]);
                for i in 0..n {
                    // SAFETY: the buffers are as the layout says and have room (the caller's promise).
                    unsafe {
                        let scales = scales.as_mut_ptr();
                        let total = dot_rows::<S, D, K, X, R>(s, layout, &few_rows, i, &few_x, scales);
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
                }
            }
        },
    );
}

/// Prefetches the first bytes of each of the rows, which a kernel call would otherwise wait for.
pub(super) fn fetch(rows: &[Row; ROWS]) {
    for row in rows {
        for line in (0..PREFETCH_BYTES).step_by(64) {
            prefetch(row.data.wrapping_add(line));
        }
        for line in (0..PREFETCH_SCALES).step_by(64) {
            prefetch(row.scales.wrapping_add(line));
            prefetch(row.biases.wrapping_add(line));
        }
    }
}

/// The sums, still in lanes, of the `i`th row after each of `R` rows with `X` rows of activations.
///
/// # Safety
/// As [`DotFn`].
#[inline(always)]
unsafe fn dot_rows<S: Simd, D: Decoder<S>, K: Scales, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    rows: &[Row; R],
    i: usize,
    x: &[*const f32; X],
    scales: *mut f32,
) -> [[S::F; R]; X] {
    let mut total = [[s.splat(0.0); R]; X];
    if D::SCALED {
        fetch_scales::<K, R>(layout, rows, i);
        let mut g = 0;
        // SAFETY: the caller's promise.
        unsafe {
            while g + S::LANES <= layout.n_groups {
                scale::<S, D, K, X, R, true>(s, layout, rows, i, x, g, scales, &mut total);
                g += S::LANES;
            }
            if g < layout.n_groups {
                scale::<S, D, K, X, R, false>(s, layout, rows, i, x, g, scales, &mut total);
            }
        }
    }
    let mut at = [rows[0].data; R];
    for r in 0..R {
        at[r] = rows[r].data.wrapping_add(i * layout.row_bytes);
    }
    if D::Element::ZIPPED {
        // SAFETY: the caller's promise.
        unsafe { zipped::add_dots::<S, D, X, R>(s, layout, at, x, scales, &mut total) };
        return total;
    }
    let mut x = *x;
    let mut scales = scales.cast_const();
    // One vector of groups at a time, or the whole row if there are no scales.
    let mut n_left = layout.n_chunks;
    while n_left > 0 {
        let n = if D::SCALED { layout.lanes_per_group.min(n_left) } else { n_left };
        // SAFETY: the buffers are as the layout says (the caller's promise).
        unsafe {
            if D::SCALED && layout.lanes_per_group == S::LANES {
                add_chunks::<S, D, X, R, true>(s, layout, n, &mut at, &mut x, scales, &mut total);
            } else {
                add_chunks::<S, D, X, R, false>(s, layout, n, &mut at, &mut x, scales, &mut total);
            }
        }
        n_left -= n;
        scales = scales.wrapping_add(X * R * S::LANES);
    }
    total
}

/// Adds the products of `n` chunks times the scales of their lanes' groups. `scales` holds the scales of a vector of
/// groups for each sum. With `ONE_GROUP` each chunk is one group.
///
/// # Safety
/// As [`DotFn`]. `at` and `x` are as [`sum_chunk`] needs them.
#[inline(always)]
unsafe fn add_chunks<S: Simd, D: Decoder<S>, const X: usize, const R: usize, const ONE_GROUP: bool>(
    s: S,
    layout: &RowLayout,
    n: usize,
    at: &mut [*const u8; R],
    x: &mut [*const f32; X],
    scales: *const f32,
    total: &mut [[S::F; R]; X],
) {
    let lanes = layout.group_of_lane().as_ptr();
    for c in 0..n {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = sum_chunk::<S, D, X, R>(s, layout, at, x);
            let groups = if D::SCALED && !ONE_GROUP {
                s.load_words(lanes.add(c * S::LANES).cast())
            } else {
                s.splat_i(0)
            };
            for m in 0..X {
                for r in 0..R {
                    let sum = D::Element::total(s, sums[m][r]);
                    let scales = scales.wrapping_add((m * R + r) * S::LANES);
                    total[m][r] = if !D::SCALED {
                        s.add(sum, total[m][r])
                    } else if ONE_GROUP {
                        s.fma(sum, s.splat(scales.add(c).read()), total[m][r])
                    } else {
                        s.fma(sum, s.permute(s.load(scales), groups), total[m][r])
                    };
                }
            }
        }
    }
}

/// Prefetches scales and biases of later rows, as many as the `i`th rows have.
#[inline(always)]
fn fetch_scales<K: Scales, const R: usize>(layout: &RowLayout, rows: &[Row; R], i: usize) {
    let at = i * layout.scales_bytes() + PREFETCH_SCALES;
    let mut line = 0;
    while line < layout.scales_bytes() {
        for r in 0..R {
            prefetch(rows[r].scales.wrapping_add(at + line));
            if K::has_biases(layout) {
                prefetch(rows[r].biases.wrapping_add(at + line));
            }
        }
        line += 64;
    }
}

/// Writes the scales of each sum for the vector of groups from `g` on: the scales of the `i`th rows times those of the
/// activations. Also adds the biases times the sums of the activations.
///
/// # Safety
/// As [`DotFn`]. The rows have the first group, and with `WHOLE` all groups of the vector.
#[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
#[inline(always)]
unsafe fn scale<S: Simd, D: Decoder<S>, K: Scales, const X: usize, const R: usize, const WHOLE: bool>(
    s: S,
    layout: &RowLayout,
    rows: &[Row; R],
    i: usize,
    x: &[*const f32; X],
    g: usize,
    out: *mut f32,
    total: &mut [[S::F; R]; X],
) {
    let at = i * layout.scales_bytes() + g * K::size_bytes(layout);
    for r in 0..R {
        // SAFETY: rows and activations are as the layout says and have the group; there is room (the caller's promise).
        unsafe {
            let [scales, biases] = group_scales::<S, K, WHOLE>(s, layout, &rows[r], at, layout.n_groups - g);
            for m in 0..X {
                let x_groups = x[m].add(layout.n_values + g);
                total[m][r] = s.fma(biases, s.load(x_groups), total[m][r]);
                let mut scales = scales;
                if D::Element::X_SCALED {
                    scales = s.mul(scales, s.load(x_groups.add(layout.padded_groups)));
                }
                let at = if D::Element::ZIPPED {
                    zipped::scales_at(layout, m * R + r) + g
                } else {
                    g * X * R + (m * R + r) * S::LANES
                };
                s.store(out.add(at), scales);
            }
        }
    }
}

/// `sums[m][r] = Σ w[r][k] · x[m][k]` over a chunk of each row, lane by lane, before scale and bias. Moves on to the
/// next chunk.
///
/// `n_loads` equals [`Decoder::LOADS`], but the compiler does not know its value. If the products of several loads with
/// several rows of activations were unrolled, the compiler would reorder them until nothing fits the registers.
///
/// # Safety
/// A chunk, and the overread, are readable at each of `at`, and a chunk of prepared activations at each of `x`.
#[inline(always)]
unsafe fn sum_chunk<S: Simd, D: Decoder<S>, const X: usize, const R: usize>(
    s: S,
    &RowLayout { n_loads, plane, .. }: &RowLayout,
    at: &mut [*const u8; R],
    x: &mut [*const f32; X],
) -> [[<D::Element as Element<S>>::Sum; R]; X] {
    // Zipped words use other code.
    const { assert!(D::CELLS <= MAX_CELLS && (D::Element::PLANES == 1 || D::LOADS == 1 || D::Element::ZIPPED)) };
    let mut sums = [[D::Element::zero(s); R]; X];
    for load in 0..if X == 1 || D::LOADS == 1 { D::LOADS } else { n_loads } {
        let mut words = [s.splat_i(0); R];
        for r in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                if load * D::LOAD_BYTES % 64 < D::LOAD_BYTES {
                    // Each cache line is prefetched once, and the prefetches are spread over the loads: all at once is
                    // 6 % slower (Zen 4, 2026-11).
                    prefetch(at[r].wrapping_add(PREFETCH_BYTES + load * D::LOAD_BYTES));
                }
                words[r] = D::load(s, at[r].add(load * D::LOAD_BYTES));
            }
        }
        let mut cells = [[s.splat_i(0); R]; MAX_CELLS];
        for step in 0..D::Element::PLANES * D::CELLS {
            // One plane after the other.
            let (p, i) = (step / D::CELLS, step % D::CELLS);
            for r in 0..R {
                if p == 0 {
                    cells[i][r] = D::cells(s, words[r], i);
                }
                for m in 0..X {
                    let x = x[m].wrapping_add(p * plane + (load * D::CELLS + i) * S::LANES);
                    if p > 0 && i == 0 {
                        sums[m][r] = D::Element::next_plane(s, sums[m][r]);
                    }
                    // SAFETY: the caller's promise.
                    let x = unsafe { s.load_words(x.cast()) };
                    sums[m][r] = D::Element::add(s, sums[m][r], cells[i][r], x, p);
                }
            }
        }
    }
    for r in 0..R {
        at[r] = at[r].wrapping_add(D::LOADS * D::LOAD_BYTES);
    }
    for m in 0..X {
        x[m] = x[m].wrapping_add(D::LOADS * D::CELLS * S::LANES);
    }
    sums
}

//! Tiles by half as many products.
//!
//! `(x₀ + w₁)(x₁ + w₀) = x₀w₀ + x₁w₁ + x₀x₁ + w₀w₁`, and what only weights or only activations are in is the same for all
//! rows of the other (S. Winograd, A New Algorithm for Inner Product, IEEE Transactions on Computers C-17, 1968). Sums are
//! modulo 2^32, in which those of a group fit once that is subtracted: the result is exact.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::super::cells::Cells;
use super::super::elements::{Integers, Order};
use super::super::layout::RowLayout;
use super::{BLOCK_WORDS, Block, MAX_TILE_ROWS, Multiply, ROW_VECS, sum_cells, tile_rows};
use crate::cpu::simd::Vnni;

/// By pairs of weights and activations, for some rows of activations at a time as they were prepared.
///
/// A vector of cells is two of 16-bit integers: the second and fourth of each cell, then the first and third.
pub(in super::super) struct ByPairs;

/// Vectors of a tile for each vector of cells.
const CELL_VECS: usize = 2;
/// Most groups of a block: of 16 weights, four cells.
const MAX_GROUPS: usize = BLOCK_WORDS / MAX_TILE_ROWS / CELL_VECS / 4;

impl<S: Vnni> Multiply<S, Integers<4, 2>> for ByPairs {
    /// Minus the products of the weights' pairs, of each group of a block.
    type State = [[S::I; ROW_VECS]; MAX_GROUPS];
    const MAX_DOTS: usize = 12;
    const ORDER: Order = Order::Pairs;
    const CELL_VECS: usize = CELL_VECS;

    #[inline(always)]
    unsafe fn put(s: S, cells: S::I, out: *mut f32) {
        let bytes = s.splat_i(0x00ff_00ff);
        // SAFETY: the caller's promise.
        unsafe {
            s.store(out, s.floats(s.shr16(cells, 8)));
            s.store(out.add(S::LANES), s.floats(s.and(cells, bytes)));
        }
    }

    #[inline(always)]
    unsafe fn begin<C: Cells<S, Element = Integers<4, 2>>>(s: S, _: &RowLayout) -> Self::State {
        [[s.splat_i(0); ROW_VECS]; MAX_GROUPS]
    }

    #[inline(always)]
    unsafe fn multiply<C: Cells<S, Element = Integers<4, 2>>>(
        s: S,
        w_pairs: &mut Self::State,
        block: &Block<'_>,
        xs: &[*const f32],
        _: *const f32,
        out: *mut f32,
    ) {
        let (group_cells, sum_cells) = sum_cells::<S, C>(block.layout);
        debug_assert_eq!(group_cells, sum_cells, "a sum holds a group");
        // SAFETY: the caller's promise; a block has no more groups.
        unsafe {
            for (g, first) in (0..block.n).step_by(group_cells).enumerate() {
                let mut sums = [s.acc(); ROW_VECS];
                for cell in first..(first + group_cells).min(block.n) {
                    for v in 0..ROW_VECS {
                        let [odd, even] = weights(s, block, cell, v);
                        sums[v] = s.dot16(sums[v], odd, even);
                    }
                }
                for v in 0..ROW_VECS {
                    w_pairs[g][v] = s.sub32(s.splat_i(0), s.acc_lanes(sums[v]));
                }
            }
            let mut at = 0;
            while at < xs.len() {
                let out = out.add(at * tile_rows::<S>());
                let xs = &xs[at..];
                // No few rows are left over: of one or two, each sum would wait for the one before.
                at += match xs.len() {
                    1 => multiply_few::<S, C, 1>(s, block, w_pairs, xs, out),
                    2 => multiply_few::<S, C, 2>(s, block, w_pairs, xs, out),
                    3 => multiply_few::<S, C, 3>(s, block, w_pairs, xs, out),
                    4 | 7 => multiply_few::<S, C, 4>(s, block, w_pairs, xs, out),
                    5 | 9 | 10 => multiply_few::<S, C, 5>(s, block, w_pairs, xs, out),
                    6 | 11 | 12 => multiply_few::<S, C, 6>(s, block, w_pairs, xs, out),
                    _ => multiply_few::<S, C, 8>(s, block, w_pairs, xs, out),
                };
            }
        }
    }
}

/// The second and fourth weights of a cell of vector `v` of the rows, and the first and third.
///
/// # Safety
/// The block has the cell.
#[inline(always)]
unsafe fn weights<S: Vnni>(s: S, block: &Block<'_>, cell: usize, v: usize) -> [S::I; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let at = block.cells.add((cell * ROW_VECS + v) * CELL_VECS * S::LANES);
        [s.load_words(at.cast()), s.load_words(at.add(S::LANES).cast())]
    }
}

/// Adds the block's products with the first `X` of `xs` to `out`; returns `X`.
///
/// # Safety
/// As [`Multiply::multiply`]; `w_pairs` has minus the products of the weights' pairs, group by group.
#[inline(always)]
unsafe fn multiply_few<S: Vnni, C: Cells<S, Element = Integers<4, 2>>, const X: usize>(
    s: S,
    block: &Block<'_>,
    w_pairs: &[[S::I; ROW_VECS]; MAX_GROUPS],
    xs: &[*const f32],
    out: *mut f32,
) -> usize {
    let mut x = [xs[0]; X];
    x.copy_from_slice(&xs[..X]);
    let RowLayout { n_values, padded_groups, .. } = *block.layout;
    let (group_cells, _) = sum_cells::<S, C>(block.layout);
    let first_group = block.from >> group_cells.trailing_zeros();
    // SAFETY: cells, groups and rows exist, as the layout and the block say.
    unsafe {
        for (g, first) in (0..block.n).step_by(group_cells).enumerate() {
            let last = (first + group_cells).min(block.n);
            let mut sums = [[s.acc(); ROW_VECS]; X];
            for v in 0..ROW_VECS {
                let sum = s.acc_of(w_pairs[g][v]);
                for m in 0..X {
                    sums[m][v] = sum;
                }
            }
            for cell in first..last {
                let mut w = [[s.splat_i(0); 2]; ROW_VECS];
                for v in 0..ROW_VECS {
                    w[v] = weights(s, block, cell, v);
                }
                for m in 0..X {
                    let x = x[m].add(2 * (block.from + cell)).cast::<u32>();
                    let (even, odd) = (s.splat_i(x.read()), s.splat_i(x.add(1).read()));
                    for v in 0..ROW_VECS {
                        let [w_odd, w_even] = w[v];
                        sums[m][v] = s.dot16(sums[m][v], s.add16(even, w_odd), s.add16(odd, w_even));
                    }
                }
            }
            let idx = first_group + g;
            let mut scales = [s.splat(0.0); ROW_VECS];
            let mut biases = [s.splat(0.0); ROW_VECS];
            for v in 0..ROW_VECS {
                let at = (v * padded_groups + idx) * S::LANES;
                (scales[v], biases[v]) = (s.load(block.scales.add(at)), s.load(block.biases.add(at)));
            }
            for m in 0..X {
                let x = x[m].add(n_values + idx);
                let x_sum = s.splat(x.read());
                let x_scale = s.splat(x.add(padded_groups).read());
                let x_pairs = s.splat_i(x.add(2 * padded_groups).cast::<u32>().read());
                for v in 0..ROW_VECS {
                    let sum = s.to_f32(s.sub32(s.acc_lanes(sums[m][v]), x_pairs));
                    let out = out.add(m * tile_rows::<S>() + v * S::LANES);
                    let total = s.fma(biases[v], x_sum, s.load(out));
                    s.store(out, s.fma(sum, s.mul(scales[v], x_scale), total));
                }
            }
        }
    }
    X
}

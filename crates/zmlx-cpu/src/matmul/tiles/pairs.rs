//! Multiplies tiles with half as many products.
//!
//! `(x₀ + w₁)(x₁ + w₀) = x₀w₀ + x₁w₁ + x₀x₁ + w₀w₁`. The last two terms contain only activations or only weights, so
//! each is computed once for all rows of the other side (S. Winograd, A New Algorithm for Inner Product, IEEE
//! Transactions on Computers C-17, 1968). Sums are modulo 2^32. The sum of a group fits once these terms are
//! subtracted, so the result is exact.
//! modulo 2^32, in which those of a group fit once that is subtracted: the result is exact.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::super::decoders::Decoder;
use super::super::elements::{Element, Integers};
use super::super::layout::RowLayout;
use super::super::prepare::CellOrder;
use super::{BLOCK_WORDS, ByVectors, Multiply, ROW_VECS, TileBlock, sum_cells, tile_rows};
use crate::simd::WordSums;

/// Multiplies by pairs of weights and activations, some rows of activations at a time, as they were prepared.
///
/// In a tile integers have 16 bits. Two neighbouring vectors of cells are a pair: the activations of each are added to
/// the weights of the other.
pub(in super::super) struct ByPairs;

/// The largest number of groups in a block: a group of 16 weights has eight cells of two.
const MAX_GROUPS: usize = BLOCK_WORDS / (ROW_VECS * 8) / 8;

/// The negated term of the weights' pairs, for each group of a block.
type Common<S> = [[<S as crate::simd::Simd>::I; ROW_VECS]; MAX_GROUPS];

impl<S: WordSums, const N: usize, const PLANES: usize> Multiply<S, Integers<N, PLANES>> for ByPairs
where
    Integers<N, PLANES>: Element<S>,
{
    type State = Common<S>;
    const MAX_DOTS: usize = <ByVectors as Multiply<S, Integers<N, PLANES>>>::MAX_DOTS;
    const ORDER: CellOrder = CellOrder::Pairs;
    const CELL_VECS: usize = if N == 4 { 2 } else { 1 };

    /// Splits a cell of four bytes: first its first and third byte, then the others.
    #[inline(always)]
    unsafe fn put(s: S, cells: S::I, out: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            if N == 4 {
                s.store(out, s.floats(s.and(cells, s.splat_i(0x00ff_00ff))));
                s.store(out.add(ROW_VECS * S::LANES), s.floats(s.shr16(cells, 8)));
            } else {
                s.store(out, s.floats(cells));
            }
        }
    }

    #[inline(always)]
    unsafe fn begin<D: Decoder<S, Element = Integers<N, PLANES>>>(s: S, _: &RowLayout) -> Self::State {
        const { assert!((N == 2 && PLANES == 1) || (N == 4 && PLANES == 2), "activations have 16 bits") };
        [[s.splat_i(0); ROW_VECS]; MAX_GROUPS]
    }

    #[inline(always)]
    unsafe fn multiply<D: Decoder<S, Element = Integers<N, PLANES>>>(
        s: S,
        common: &mut Self::State,
        block: &TileBlock<'_>,
        xs: &[*const f32],
        packed: *const f32,
        out: *mut f32,
    ) {
        let (group_cells, sum_cells) = sum_cells::<S, D>(block.layout);
        // SAFETY: the caller's promise.
        unsafe {
            if N == 2 && sum_cells < group_cells {
                // The sums of a group would not fit.
                ByVectors::multiply::<D>(s, &mut (), block, xs, packed, out);
            } else {
                debug_assert_eq!(group_cells, sum_cells, "a sum holds a group");
                multiply(s, common, block, PairRange::of::<S, D>(block), xs, out);
            }
        }
    }
}

/// The vectors of cells of a block, as pairs.
#[derive(Clone, Copy)]
struct PairRange {
    /// The first of the row's pairs, and their number.
    from: usize,
    n: usize,
    /// Number of pairs in a group.
    group: usize,
}

impl PairRange {
    /// The pairs of a block whose cells are pairs or halves of pairs.
    fn of<S: WordSums, D: Decoder<S>>(block: &TileBlock<'_>) -> Self {
        let (group, _) = sum_cells::<S, D>(block.layout);
        let cells = 4 / D::Element::WEIGHTS;
        Self { from: block.from / cells, n: block.n / cells, group: group / cells }
    }
}

/// [`Multiply::multiply`].
///
/// # Safety
/// As [`Multiply::multiply`]. A sum can hold a group.
#[inline(always)]
unsafe fn multiply<S: WordSums>(
    s: S,
    common: &mut Common<S>,
    block: &TileBlock<'_>,
    pairs: PairRange,
    xs: &[*const f32],
    out: *mut f32,
) {
    // SAFETY: the caller's promise. A block has no more groups than `MAX_GROUPS`.
    unsafe {
        for (g, first) in (0..pairs.n).step_by(pairs.group).enumerate() {
            let mut sums = [s.acc(); ROW_VECS];
            for pair in first..(first + pairs.group).min(pairs.n) {
                for v in 0..ROW_VECS {
                    let [a, b] = weights(s, block, pair, v);
                    sums[v] = s.dot16(sums[v], a, b);
                }
            }
            for v in 0..ROW_VECS {
                common[g][v] = s.sub32(s.splat_i(0), s.acc_lanes(sums[v]));
            }
        }
        let mut at = 0;
        while at < xs.len() {
            let out = out.add(at * tile_rows::<S>());
            let xs = &xs[at..];
            // Avoids a single row at the end, because each sum of a single row waits for the one before.
            at += match xs.len() {
                1 => multiply_few::<S, 1>(s, block, pairs, common, xs, out),
                2 => multiply_few::<S, 2>(s, block, pairs, common, xs, out),
                3 | 5 | 6 => multiply_few::<S, 3>(s, block, pairs, common, xs, out),
                9 | 10 if S::MANY_REGISTERS => multiply_few::<S, 5>(s, block, pairs, common, xs, out),
                11 | 12 if S::MANY_REGISTERS => multiply_few::<S, 6>(s, block, pairs, common, xs, out),
                8.. if S::MANY_REGISTERS => multiply_few::<S, 8>(s, block, pairs, common, xs, out),
                _ => multiply_few::<S, 4>(s, block, pairs, common, xs, out),
            };
        }
    }
}

/// A pair of cells, for vector `v` of the rows.
///
/// # Safety
/// The block has the pair.
#[inline(always)]
unsafe fn weights<S: WordSums>(s: S, block: &TileBlock<'_>, pair: usize, v: usize) -> [S::I; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let at = block.cells.add((2 * pair * ROW_VECS + v) * S::LANES);
        [s.load_words(at.cast()), s.load_words(at.add(ROW_VECS * S::LANES).cast())]
    }
}

/// Adds the block's products with the first `X` of `xs` to `out`. Returns `X`.
///
/// # Safety
/// As [`multiply`], which has computed the terms of the weights.
#[inline(always)]
unsafe fn multiply_few<S: WordSums, const X: usize>(
    s: S,
    block: &TileBlock<'_>,
    pairs: PairRange,
    common: &Common<S>,
    xs: &[*const f32],
    out: *mut f32,
) -> usize {
    let mut x = [xs[0]; X];
    x.copy_from_slice(&xs[..X]);
    let RowLayout { n_values, padded_groups, .. } = *block.layout;
    let first_group = pairs.from >> pairs.group.trailing_zeros();
    // SAFETY: cells, groups and rows exist, as the layout and the block say.
    unsafe {
        for (g, first) in (0..pairs.n).step_by(pairs.group).enumerate() {
            let last = (first + pairs.group).min(pairs.n);
            let mut sums = [[s.acc(); ROW_VECS]; X];
            for v in 0..ROW_VECS {
                let sum = s.acc_of(common[g][v]);
                for m in 0..X {
                    sums[m][v] = sum;
                }
            }
            for pair in first..last {
                let mut w = [[s.splat_i(0); 2]; ROW_VECS];
                for v in 0..ROW_VECS {
                    w[v] = weights(s, block, pair, v);
                }
                for m in 0..X {
                    let x = x[m].add(2 * (pairs.from + pair)).cast::<u32>();
                    let (xa, xb) = (s.splat_i(x.read()), s.splat_i(x.add(1).read()));
                    for v in 0..ROW_VECS {
                        let [wa, wb] = w[v];
                        sums[m][v] = s.dot16(sums[m][v], s.add16(xa, wb), s.add16(xb, wa));
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
            // Without this the compiler also keeps on the stack what it writes here.
            let out = std::hint::black_box(out);
            for m in 0..X {
                let x = x[m].add(n_values + idx);
                let x_sum = s.splat(x.read());
                let x_scale = s.splat(x.add(padded_groups).read());
                let x_common = s.splat_i(x.add(2 * padded_groups).cast::<u32>().read());
                for v in 0..ROW_VECS {
                    let sum = s.to_f32(s.sub32(s.acc_lanes(sums[m][v]), x_common));
                    let out = out.add(m * tile_rows::<S>() + v * S::LANES);
                    let total = s.fma(biases[v], x_sum, s.load(out));
                    s.store(out, s.fma(sum, s.mul(scales[v], x_scale), total));
                }
            }
        }
    }
    X
}

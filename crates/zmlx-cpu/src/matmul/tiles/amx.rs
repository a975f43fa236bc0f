//! Multiplies tiles with AMX.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::super::decoders::Decoder;
use super::super::elements::{Element, Integers};
use super::super::layout::RowLayout;
use super::{Multiply, ROW_VECS, TileBlock, sum_cells, tile_rows};
use crate::pool::Aligned;
use crate::simd::Vnni;
use crate::simd::amx::{Sums, TILE, Tiles};

/// Multiplies with AMX, 16 rows of activations at a time. They are packed in this order: all planes of 16 rows, and
/// within a plane the cells of all rows for one instruction, then those for the next; after them the scales of all rows
/// for each group, then their sums.
pub(in super::super) struct ByAmx {
    tiles: Tiles,
    sums: [Sums; 2],
    /// Number of cells in one instruction.
    k: usize,
}

/// Number of floats in 16 packed rows of activations.
fn packed_len(layout: &RowLayout) -> usize {
    TILE * (layout.n_values + 2 * layout.n_groups)
}

impl<S: Vnni, const PLANES: usize> Multiply<S, Integers<4, PLANES>> for ByAmx
where
    Integers<4, PLANES>: Element<S, Sum = S::Acc8>,
{
    type State = Self;
    /// Measured with 4-bit weights on a Xeon, 2026-11.
    const MAX_DOTS: usize = 7;

    unsafe fn pack<D: Decoder<S, Element = Integers<4, PLANES>>>(
        layout: &RowLayout,
        xs: &[*const f32],
        packed: &mut Aligned<f32>,
    ) {
        let k = sum_cells::<S, D>(layout).0.min(TILE);
        let len = packed_len(layout);
        packed.resize(xs.len().div_ceil(TILE) * len, 0.0);
        for (xs, packed) in xs.chunks(TILE).zip(packed.chunks_exact_mut(len)) {
            if xs.len() < TILE {
                packed.fill(0.0);
            }
            let (values, groups) = packed.split_at_mut(TILE * layout.n_values);
            let (scales, sums) = groups.split_at_mut(TILE * layout.n_groups);
            for (r, x) in xs.iter().enumerate() {
                // SAFETY: activations are as the layout says (the caller's promise).
                let x = unsafe { std::slice::from_raw_parts(*x, layout.stride) };
                let (x, x_groups) = x.split_at(layout.n_values);
                match k {
                    4 => pack_row::<4>(x, &mut values[r * k..]),
                    8 => pack_row::<8>(x, &mut values[r * k..]),
                    _ => pack_row::<16>(x, &mut values[r * k..]),
                }
                let (x_sums, x_scales) = x_groups.split_at(layout.padded_groups);
                for g in 0..layout.n_groups {
                    scales[g * TILE + r] = x_scales[g];
                    sums[g * TILE + r] = x_sums[g];
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn begin<D: Decoder<S, Element = Integers<4, PLANES>>>(_: S, layout: &RowLayout) -> Self {
        let k = sum_cells::<S, D>(layout).0.min(TILE);
        // SAFETY: the caller's promise.
        Self { tiles: unsafe { Tiles::configure(k) }, sums: [Sums::ZERO; 2], k }
    }

    #[inline(always)]
    unsafe fn multiply<D: Decoder<S, Element = Integers<4, PLANES>>>(
        s: S,
        state: &mut Self,
        block: &TileBlock<'_>,
        xs: &[*const f32],
        packed: *const f32,
        out: *mut f32,
    ) {
        let (_, sum_cells) = sum_cells::<S, D>(block.layout);
        let n_sums = block.n.div_ceil(sum_cells);
        for (i, xs) in xs.chunks(TILE).enumerate() {
            let x = packed.wrapping_add(i * packed_len(block.layout));
            for v in 0..ROW_VECS {
                let out = out.wrapping_add(i * TILE * tile_rows::<S>() + v * TILE);
                let mut totals = [s.splat(0.0); TILE];
                // Products take some time. Meanwhile the sums of the previous ones are scaled.
                // SAFETY: cells, groups and rows exist, as the layout and the block say.
                unsafe {
                    for sum in 0..n_sums {
                        state.products::<PLANES>(block, (sum * sum_cells, sum_cells), sum % 2, x, v);
                        if sum > 0 {
                            let first = (sum - 1) * sum_cells;
                            state.add_scaled::<S, D, PLANES>(
                                s,
                                block,
                                first,
                                (sum - 1) % 2,
                                x,
                                v,
                                &mut totals,
                            );
                        }
                    }
                    let last = n_sums - 1;
                    state.add_scaled::<S, D, PLANES>(s, block, last * sum_cells, last % 2, x, v, &mut totals);
                    // This loop is small enough to be unrolled, so the totals stay in registers.
                    let mut results = [[0f32; TILE]; TILE];
                    for r in 0..TILE {
                        s.store(results[r].as_mut_ptr(), totals[r]);
                    }
                    for r in 0..xs.len() {
                        let out = out.add(r * tile_rows::<S>());
                        s.store(out, s.add(s.load(out), s.load(results[r].as_ptr())));
                    }
                }
            }
        }
    }
}

impl ByAmx {
    /// Multiplies `n` cells from `first` on of vector `v` of the block's rows by packed activations, and stores the
    /// sums in half `half`.
    ///
    /// # Safety
    /// As [`Multiply::multiply`].
    #[inline(always)]
    unsafe fn products<const PLANES: usize>(
        &mut self,
        block: &TileBlock<'_>,
        (first, n): (usize, usize),
        half: usize,
        x: *const f32,
        v: usize,
    ) {
        let last = (first + n).min(block.n);
        // SAFETY: the caller's promise.
        unsafe {
            let x = x.add((block.from + first) * TILE);
            let w = block.cells.add((first * ROW_VECS + v) * TILE);
            let plane = 4 * TILE * block.layout.plane;
            let n_steps = (last - first).div_ceil(self.k);
            let sums = &mut self.sums[half];
            self.tiles.products::<PLANES>(x.cast(), plane, w.cast(), 4 * ROW_VECS * TILE, n_steps, sums);
        }
    }

    /// Takes the sums stored in half `half`, which are those of the cells from `first` on and vector `v` of the rows.
    /// Adds them, times their scales and with the biases, to the totals of packed activations.
    ///
    /// # Safety
    /// As [`Multiply::multiply`].
    #[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
    #[inline(always)]
    unsafe fn add_scaled<S: Vnni, D: Decoder<S>, const PLANES: usize>(
        &self,
        s: S,
        block: &TileBlock<'_>,
        first: usize,
        half: usize,
        x: *const f32,
        v: usize,
        totals: &mut [S::F; TILE],
    ) where
        D::Element: Element<S, Sum = S::Acc8>,
    {
        // SAFETY: the caller's promise.
        unsafe {
            let group = block.group::<S, D>(s, first, v);
            // The same layout as in prepared activations, but with values of all rows.
            let x_scales = x.add(TILE * group.x_sum_at);
            let x_sums = x_scales.add(TILE * block.layout.n_groups);
            for r in 0..TILE {
                let mut sums = s.acc8();
                for p in 0..PLANES {
                    if p > 0 {
                        sums = s.times_256(sums);
                    }
                    let lanes = s.load_words(self.sums[half].0[p].as_ptr().add(r * TILE).cast());
                    sums = s.add_lanes(sums, lanes);
                }
                let scale = s.mul(group.scales, s.splat(x_scales.add(r).read()));
                totals[r] = s.fma(D::Element::total(s, sums), scale, totals[r]);
            }
            if let Some(biases) = group.biases {
                for r in 0..TILE {
                    totals[r] = s.fma(biases, s.splat(x_sums.add(r).read()), totals[r]);
                }
            }
        }
    }
}

/// Writes a row as runs of `K` words, which are 16 runs apart.
fn pack_row<const K: usize>(x: &[f32], packed: &mut [f32]) {
    for (to, from) in packed.chunks_mut(TILE * K).zip(x.as_chunks::<K>().0) {
        to[..K].copy_from_slice(from);
    }
}

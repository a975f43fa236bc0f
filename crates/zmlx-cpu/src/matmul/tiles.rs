//! The kernel for many rows of activations: the tiles of a weight are turned into cells once and used for all of them.
//!
//! In a tile the lanes are rows of the weight. Cell `k` of all its rows is stored as consecutive vectors. A cell of
//! activations is then the same for all lanes, and sums never cross lanes. The cost of a group besides its products
//! (scales and biases) is spread over the group.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod pairs;

use std::mem::MaybeUninit;

use super::decoders::{Decoder, MAX_OVERREAD};
use super::elements::Element;
use super::layout::{Row, RowLayout};
use super::prepare::CellOrder;
use super::scales::{AnyScales, Scales, group_scales};
use crate::pool::Aligned;
use crate::simd::{Simd, prefetch};

#[cfg(target_arch = "x86_64")]
pub(super) use amx::ByAmx;
#[cfg(target_arch = "x86_64")]
pub(super) use pairs::ByPairs;

/// Number of vectors of rows in a tile.
const ROW_VECS: usize = 2;
/// The largest number of rows in a tile.
pub(super) const MAX_TILE_ROWS: usize = 32;
/// Words of a tile that are unpacked at once: 16 KB, which stay in the first-level cache.
const BLOCK_WORDS: usize = 4096;
/// Rows of activations that are multiplied by all tiles of a weight before the next ones. They stay in the second-level
/// cache.
pub(super) const X_BLOCK: usize = 128;

/// Number of rows in a tile with vectors of `S`.
pub(super) const fn tile_rows<S: Simd>() -> usize {
    ROW_VECS * S::LANES
}

/// `out[x][row] = Σ_k weight[row][k] · xs[x][k]` for a tile of rows and all prepared rows of activations, which are at
/// most [`X_BLOCK`] and have also been packed. `out` is `[xs.len(), rows.len()]`.
///
/// # Safety
/// Rows and activations are as the layout says. There are as many rows as the instance's tiles have. The processor has
/// the instance's instructions.
pub(super) type TileFn = unsafe fn(
    layout: &RowLayout,
    rows: &[Row],
    xs: &[*const f32],
    packed: &[f32],
    scratch: &mut TileScratch,
    out: &mut [f32],
);

/// Packs prepared rows of activations as [`TileFn`] needs them.
///
/// # Safety
/// Activations are as the layout says.
pub(super) type PackFn = unsafe fn(layout: &RowLayout, xs: &[*const f32], packed: &mut Aligned<f32>);

/// How the cells of a tile are multiplied by activations.
pub(super) trait Multiply<S: Simd, E: Element<S>> {
    /// The state that it keeps while it works on a tile.
    type State;
    /// The largest number of rows of activations for which dots are faster; at most
    /// [`MAX_DOTS`](super::dots::MAX_DOTS).
    const MAX_DOTS: usize;
    /// The order in which activations are stored.
    const ORDER: CellOrder = CellOrder::Words;
    /// Number of vectors in a tile for each vector of cells.
    const CELL_VECS: usize = 1;

    /// The [`PackFn`]. It does nothing if activations are used as they were prepared.
    ///
    /// # Safety
    /// As [`PackFn`].
    unsafe fn pack<D: Decoder<S, Element = E>>(
        layout: &RowLayout,
        xs: &[*const f32],
        packed: &mut Aligned<f32>,
    ) {
        let _ = (layout, xs, packed);
    }

    /// Writes a vector of cells in the form that the tile has, every `ROW_VECS`th vector from `out` on.
    ///
    /// # Safety
    /// `out` has room.
    #[inline(always)]
    unsafe fn put(s: S, cells: S::I, out: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { s.store(out, s.floats(cells)) }
    }

    /// Begins a tile.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn begin<D: Decoder<S, Element = E>>(s: S, layout: &RowLayout) -> Self::State;

    /// Adds the block's products with all of `xs` to `out`.
    ///
    /// # Safety
    /// As [`TileFn`]. The block's cells have been written.
    unsafe fn multiply<D: Decoder<S, Element = E>>(
        s: S,
        state: &mut Self::State,
        block: &TileBlock<'_>,
        xs: &[*const f32],
        packed: *const f32,
        out: *mut f32,
    );
}

/// Working memory of [`TileFn`].
#[derive(Default)]
pub(super) struct TileScratch {
    cells: Aligned<u32>,
    /// Scales and biases by groups, for each vector of rows: those of its rows for one group, then for the next group.
    by_group: [Aligned<f32>; 2],
}

/// The [`TileFn`].
pub(super) unsafe fn tile<S: Simd, D: Decoder<S>, M: Multiply<S, D::Element>>(
    layout: &RowLayout,
    rows: &[Row],
    xs: &[*const f32],
    packed: &[f32],
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let n_rows = tile_rows::<S>();
    assert!(rows.len() == n_rows && out.len() >= n_rows * xs.len());
    scratch.cells.resize(BLOCK_WORDS, 0);
    for by_group in &mut scratch.by_group {
        if by_group.len() < n_rows * layout.padded_groups {
            by_group.resize(n_rows * layout.padded_groups, 0.0);
        }
    }
    out.fill(0.0);
    // SAFETY: the caller guarantees that the processor has the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // SAFETY: the buffers are large enough. Rows and activations are as the layout says.
            unsafe {
                if D::SCALED {
                    scales_by_group(s, layout, rows, scratch);
                }
                let n_cells = layout.n_in.div_ceil(D::Element::WEIGHTS);
                let block_cells = BLOCK_WORDS / n_rows / M::CELL_VECS;
                let mut state = M::begin::<D>(s, layout);
                let mut from = 0;
                while from < n_cells {
                    let n = block_cells.min(n_cells - from);
                    fill::<S, D, M>(s, layout, rows, from, n, scratch.cells.as_mut_ptr());
                    let block = TileBlock {
                        layout,
                        cells: scratch.cells.as_ptr(),
                        from,
                        n,
                        scales: scratch.by_group[0].as_ptr(),
                        biases: scratch.by_group[1].as_ptr(),
                    };
                    M::multiply::<D>(s, &mut state, &block, xs, packed.as_ptr(), out.as_mut_ptr());
                    from += n;
                }
            }
        },
    );
}

/// Writes the rows' scales and biases by groups.
///
/// # Safety
/// As [`TileFn`]. The scratch is large enough.
#[inline(always)]
unsafe fn scales_by_group<S: Simd>(s: S, layout: &RowLayout, rows: &[Row], scratch: &mut TileScratch) {
    let [scales, biases] = scratch.by_group.each_mut().map(|by_group| by_group.as_mut_ptr());
    // SAFETY: the rows have these groups, and the buffers have room for whole vectors of groups.
    unsafe {
        for v in 0..ROW_VECS {
            let from = v * S::LANES * layout.padded_groups;
            for g in (0..layout.n_groups).step_by(S::LANES) {
                // The groups of all rows form a square, which is transposed in place.
                let at = from + g * S::LANES;
                for r in 0..S::LANES {
                    let row = &rows[v * S::LANES + r];
                    // Prefetch the scales of the next tile.
                    prefetch(row.scales.wrapping_add(ROW_VECS * S::LANES * layout.scales_bytes()));
                    prefetch(row.biases.wrapping_add(ROW_VECS * S::LANES * layout.scales_bytes()));
                    let n = (layout.n_groups - g).min(S::LANES);
                    let [row_scales, row_biases] = group_scales::<S, AnyScales, false>(
                        s,
                        layout,
                        row,
                        g * AnyScales::size_bytes(layout),
                        n,
                    );
                    s.store(scales.add(at + r * S::LANES), row_scales);
                    s.store(biases.add(at + r * S::LANES), row_biases);
                }
                transpose_in_place(s, scales.add(at));
                transpose_in_place(s, biases.add(at));
            }
        }
    }
}

/// # Safety
/// `p` has a square of words.
#[inline(always)]
unsafe fn transpose_in_place<S: Simd>(s: S, p: *mut f32) {
    // SAFETY: the caller's promise; all rows are read before a column is written.
    unsafe {
        s.transpose(
            #[inline(always)]
            |i| s.load_words(p.add(i * S::LANES).cast()),
            #[inline(always)]
            |j, column| s.store(p.add(j * S::LANES), s.floats(column)),
        );
    }
}

/// Writes the cells `from..from + n` of all rows.
///
/// # Safety
/// As [`TileFn`]. `from` begins a vector of words. `out` has room for the cells, rounded up to vectors of words.
#[inline(always)]
unsafe fn fill<S: Simd, D: Decoder<S>, M: Multiply<S, D::Element>>(
    s: S,
    layout: &RowLayout,
    rows: &[Row],
    from: usize,
    n: usize,
    out: *mut u32,
) {
    let (load_cells, n_rows) = (D::CELLS * S::LANES, ROW_VECS * S::LANES);
    let n_readable = layout.row_bytes.saturating_sub(if D::OVERREAD { MAX_OVERREAD } else { 0 });
    let mut ends = MaybeUninit::<Ends>::uninit();
    // SAFETY: only whole words are read from the row; the rest is read from a padded copy. Writes stay within the
    // rounded cells.
    unsafe {
        for load in 0..n.div_ceil(load_cells) {
            let offset = (from / load_cells + load) * D::LOAD_BYTES;
            let is_direct = offset + D::LOAD_BYTES <= n_readable;
            // Prefetch the next block, or the first block of the next tile. The products take long enough for it to
            // arrive.
            let next = offset + n.div_ceil(load_cells) * D::LOAD_BYTES;
            let next = if next < layout.row_bytes {
                next
            } else {
                n_rows * layout.row_bytes + next - layout.row_bytes
            };
            let at = if is_direct {
                rows.as_ptr()
            } else {
                ends.write(Ends::EMPTY).copy(rows, offset, D::LOAD_BYTES.min(layout.row_bytes - offset))
            };
            for v in 0..ROW_VECS {
                s.transpose(
                    #[inline(always)]
                    |r| {
                        let row = &*at.add(v * S::LANES + r);
                        prefetch(row.data.wrapping_add(next));
                        D::load(s, row.data.wrapping_add(offset))
                    },
                    #[inline(always)]
                    |j, words| {
                        for i in 0..D::CELLS {
                            let cell = (load * S::LANES + j) * D::CELLS + i;
                            let at = out.add((cell * M::CELL_VECS * ROW_VECS + v) * S::LANES);
                            M::put(s, D::cells(s, words, i), at.cast());
                        }
                    },
                );
            }
        }
    }
}

/// The last bytes of a tile's rows, followed by zeros for what loads read.
struct Ends {
    rows: [Row; MAX_TILE_ROWS],
    bytes: [[u8; 64 + MAX_OVERREAD]; MAX_TILE_ROWS],
}

impl Ends {
    const EMPTY: Self =
        Self { rows: [Row::NULL; MAX_TILE_ROWS], bytes: [[0; 64 + MAX_OVERREAD]; MAX_TILE_ROWS] };

    /// Copies `n` bytes of each row from `offset` on. Returns rows that have these bytes at `offset`.
    ///
    /// # Safety
    /// The rows have these bytes.
    unsafe fn copy(&mut self, rows: &[Row], offset: usize, n: usize) -> *const Row {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: the caller's promise. A load takes no more than the copy holds.
            unsafe { std::ptr::copy_nonoverlapping(row.data.add(offset), self.bytes[r].as_mut_ptr(), n) };
            self.rows[r] = Row { data: self.bytes[r].as_ptr().wrapping_sub(offset), ..*row };
        }
        self.rows.as_ptr()
    }
}

/// A block of a tile: some cells of all its rows.
pub(super) struct TileBlock<'a> {
    layout: &'a RowLayout,
    cells: *const u32,
    /// The first of the row's cells, and their number.
    from: usize,
    n: usize,
    scales: *const f32,
    biases: *const f32,
}

/// The number of cells in a group, and in a sum that is scaled: a group, or as much of it as a sum holds.
const fn sum_cells<S: Simd, D: Decoder<S>>(layout: &RowLayout) -> (usize, usize) {
    let group = if D::SCALED { layout.group_size / D::Element::WEIGHTS } else { BLOCK_WORDS };
    (group, if group < D::MAX_CELLS { group } else { D::MAX_CELLS })
}

/// The scales and biases of one group for a vector of rows.
struct RowGroup<S: Simd> {
    /// The places of the group's sum and scale in prepared activations.
    x_sum_at: usize,
    x_scale_at: usize,
    scales: S::F,
    /// The biases, if the format has them and the group begins here.
    biases: Option<S::F>,
}

impl TileBlock<'_> {
    /// The group of the block's cell `first`, for vector `v` of the rows.
    ///
    /// # Safety
    /// As [`TileFn`].
    #[inline(always)]
    unsafe fn group<S: Simd, D: Decoder<S>>(&self, s: S, first: usize, v: usize) -> RowGroup<S> {
        let (group_cells, _) = sum_cells::<S, D>(self.layout);
        let cell = self.from + first;
        let idx = cell >> group_cells.trailing_zeros();
        let is_biased = D::SCALED && self.layout.is_biased() && cell.is_multiple_of(group_cells);
        let at = (v * self.layout.padded_groups + idx) * S::LANES;
        // SAFETY: the group exists, as the layout and the block say.
        unsafe {
            RowGroup {
                x_sum_at: self.layout.n_values + idx,
                x_scale_at: self.layout.n_values + self.layout.padded_groups + idx,
                scales: if D::SCALED { s.load(self.scales.add(at)) } else { s.splat(1.0) },
                biases: if is_biased { Some(s.load(self.biases.add(at))) } else { None },
            }
        }
    }

    /// Adds the sums of a group with activations `x`, times their scales and with the biases, to a vector at `out`.
    ///
    /// # Safety
    /// As [`TileFn`].
    #[inline(always)]
    unsafe fn add_scaled<S: Simd, D: Decoder<S>>(
        s: S,
        group: &RowGroup<S>,
        sums: S::F,
        x: *const f32,
        out: *mut f32,
    ) {
        // SAFETY: the group exists, as the layout and the block say.
        unsafe {
            let mut total = s.load(out);
            if D::SCALED {
                let mut scale = group.scales;
                if D::Element::X_SCALED {
                    scale = s.mul(scale, s.splat(x.add(group.x_scale_at).read()));
                }
                total = s.fma(sums, scale, total);
                if let Some(biases) = group.biases {
                    total = s.fma(biases, s.splat(x.add(group.x_sum_at).read()), total);
                }
            } else {
                total = s.add(total, sums);
            }
            s.store(out, total);
        }
    }
}

/// Multiplies by vectors, some rows of activations at a time, as they were prepared.
pub(super) struct ByVectors;

impl<S: Simd, E: Element<S>> Multiply<S, E> for ByVectors {
    type State = ();
    /// With few registers, dots of four rows gain little over dots of two (4-bit weights, a Zen 4 and a Xeon, 2026-11).
    const MAX_DOTS: usize = if S::MANY_REGISTERS { 12 } else { 4 };

    #[inline(always)]
    unsafe fn begin<D: Decoder<S, Element = E>>(_: S, _: &RowLayout) {}

    #[inline(always)]
    unsafe fn multiply<D: Decoder<S, Element = E>>(
        s: S,
        (): &mut (),
        block: &TileBlock<'_>,
        xs: &[*const f32],
        _: *const f32,
        out: *mut f32,
    ) {
        let mut at = 0;
        while at < xs.len() {
            // SAFETY: the caller's promise; these rows exist.
            unsafe {
                let out = out.add(at * tile_rows::<S>());
                let xs = &xs[at..];
                at += if S::MANY_REGISTERS && xs.len() >= 8 {
                    multiply_few::<S, D, 8>(s, block, xs, out)
                } else if xs.len() >= 4 {
                    multiply_few::<S, D, 4>(s, block, xs, out)
                } else if xs.len() >= 2 {
                    multiply_few::<S, D, 2>(s, block, xs, out)
                } else {
                    multiply_few::<S, D, 1>(s, block, xs, out)
                };
            }
        }
    }
}

/// Adds the block's products with the first `X` of `xs` to `out`. Returns `X`.
///
/// # Safety
/// As [`Multiply::multiply`].
#[inline(always)]
unsafe fn multiply_few<S: Simd, D: Decoder<S>, const X: usize>(
    s: S,
    block: &TileBlock<'_>,
    xs: &[*const f32],
    out: *mut f32,
) -> usize {
    let mut x = [xs[0]; X];
    x.copy_from_slice(&xs[..X]);
    let (_, sum_cells) = sum_cells::<S, D>(block.layout);
    // SAFETY: cells, groups and rows exist, as the layout and the block say.
    unsafe {
        let mut first = 0;
        while first < block.n {
            let last = (first + sum_cells).min(block.n);
            let mut sums = [[D::Element::zero(s); ROW_VECS]; X];
            for plane in 0..D::Element::PLANES {
                if plane > 0 {
                    for m in 0..X {
                        for v in 0..ROW_VECS {
                            sums[m][v] = D::Element::next_plane(s, sums[m][v]);
                        }
                    }
                }
                let x_at = plane * block.layout.plane + block.from;
                for cell in first..last {
                    let mut w = [s.splat_i(0); ROW_VECS];
                    for v in 0..ROW_VECS {
                        w[v] = s.load_words(block.cells.add((cell * ROW_VECS + v) * S::LANES).cast());
                    }
                    for m in 0..X {
                        let x = s.splat_i(x[m].add(x_at + cell).cast::<u32>().read());
                        for v in 0..ROW_VECS {
                            sums[m][v] = D::Element::add(s, sums[m][v], w[v], x, plane);
                        }
                    }
                }
            }
            // This loop is small enough to be unrolled, so the sums stay in registers until here.
            let mut totals = [[s.splat(0.0); ROW_VECS]; X];
            for m in 0..X {
                for v in 0..ROW_VECS {
                    totals[m][v] = D::Element::total(s, sums[m][v]);
                }
            }
            for v in 0..ROW_VECS {
                let group = block.group::<S, D>(s, first, v);
                for m in 0..X {
                    let out = out.add(m * tile_rows::<S>() + v * S::LANES);
                    TileBlock::add_scaled::<S, D>(s, &group, totals[m][v], x[m], out);
                }
            }
            first = last;
        }
    }
    X
}

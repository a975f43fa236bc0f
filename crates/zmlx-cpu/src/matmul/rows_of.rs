//! One matrix times its rows of activations: by dots for a few rows, or by tiles of the weight.

use std::ops::Range;

use super::dots::{self, MAX_X, ROWS};
use super::kernels::Kernels;
use super::layout::Row;
use super::scratch::ProductScratch;
use super::shares::{BLOCK_ROWS, RowBlock, Runs};
use super::tiles::{MAX_TILE_ROWS, X_BLOCK};
use super::weight::WeightPart;

/// One matrix of each of `W` weights, and the prepared rows that it is multiplied by.
pub(super) struct RowsOf<'a, const W: usize> {
    pub(super) parts: [&'a WeightPart; W],
    pub(super) kernels: &'a Kernels,
    pub(super) mat: usize,
    pub(super) xs: &'a [*const f32],
    /// The pairs that they belong to, as many as there are rows.
    pub(super) pairs: &'a [u32],
}

impl<const W: usize> RowsOf<'_, W> {
    /// Prefetches what is read first of these rows.
    pub(super) fn fetch(&self, rows: &Range<usize>) {
        if let Some(block) = Runs::new::<W>(rows.len()).block(0) {
            dots::fetch(&self.firsts(rows.start)(&block).0);
        }
    }

    /// The rows where a kernel call starts in a block of the rows from `start` on, and how many rows of each run can be
    /// read in place.
    fn firsts(&self, start: usize) -> impl Fn(&RowBlock) -> ([Row; ROWS], usize) {
        let bases = self.parts.map(|part| part.row(self.mat, start));
        let n_in_place = self.parts[0].n_in_place().saturating_sub(start);
        let row_bytes = self.parts[0].row_bytes;
        move |block| {
            let mut rows = [bases[0]; ROWS];
            let mut n = block.n;
            for (i, row) in rows.iter_mut().enumerate() {
                let (w, first) = (i / (ROWS / W), block.first(i % (ROWS / W)));
                // SAFETY: the row lies within the matrix, whose rows take these many bytes in all weights.
                *row = unsafe { bases[w].add(first, row_bytes) };
                n = n.min(n_in_place.saturating_sub(first));
            }
            (rows, n)
        }
    }

    /// Takes `ROWS / W` rows of each weight in each kernel call, so that they share the loads of the activations.
    /// Results are handed on in blocks of [`BLOCK_ROWS`] rows, from the first-level cache. `fetch_next` is called
    /// shortly before the end.
    pub(super) fn by_dots(
        &self,
        rows: &Range<usize>,
        scratch: &mut ProductScratch,
        mut fetch_next: impl FnMut(),
        out: impl Fn(&Results<'_, W>),
    ) {
        let n_runs = ROWS / W;
        let block_len = BLOCK_ROWS / n_runs;
        let ProductScratch { results, scales, padded, .. } = scratch;
        let (layout, row_bytes) = (&self.kernels.layout, self.parts[0].row_bytes);
        let (runs, firsts) = (Runs::new::<W>(rows.len()), self.firsts(rows.start));
        let mut idx = 0;
        while let Some(block) = runs.block(idx) {
            idx += 1;
            if runs.block(idx).is_none() {
                fetch_next();
            }
            let (firsts, n) = firsts(&block);
            for (i, xs) in self.xs.chunks(MAX_X).enumerate() {
                let x: [*const f32; MAX_X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)]);
                let dot = self.kernels.dot[[0, 0, 1, 2, 2][xs.len()]];
                // The rows of results from this point on, for all rows of activations.
                let [first, second] =
                    results.each_mut().map(|of| of[i * MAX_X..].as_flattened_mut().as_mut_ptr());
                let to: [*mut f32; ROWS] = std::array::from_fn(|r| {
                    let of = if r / n_runs == 0 { first } else { second };
                    of.wrapping_add(r % n_runs * block_len)
                });
                // SAFETY: rows and activations are as the layout says, and the bytes that are read past the rows exist.
                // Each row of the results has room for the block's rows of its weight, and the results of all
                // activations follow each other. The level was detected.
                unsafe {
                    dot(layout, &firsts, n, &x, scales, &to, BLOCK_ROWS);
                    for i in n..block.n {
                        let rows = padded.copy(layout, row_bytes, firsts.map(|row| row.add(i, row_bytes)));
                        dot(layout, &rows, 1, &x, scales, &to.map(|to| to.add(i)), BLOCK_ROWS);
                    }
                }
            }
            for (results, part) in results.iter_mut().zip(self.parts).filter(|(_, p)| p.host.has_factors()) {
                times(part.host.factor(self.mat), results[..self.xs.len()].as_flattened_mut());
            }
            for run in 0..block.n_runs {
                out(&Results {
                    rows: self.global(rows.start + block.first(run), block.n),
                    pairs: self.pairs,
                    values: std::array::from_fn(|w| &results[w].as_flattened()[run * block_len..]),
                    stride: BLOCK_ROWS,
                });
            }
        }
    }

    /// Multiplies a tile of rows of each weight by all activations, some of them at a time. `fetch` is called with the
    /// rows before each tile.
    pub(super) fn by_tiles(
        &self,
        rows: Range<usize>,
        scratch: &mut ProductScratch,
        fetch: impl Fn(&Range<usize>, &[u32]),
        out: impl Fn(&Results<'_, W>),
    ) {
        let (layout, tile_rows) = (&self.kernels.layout, self.kernels.tile_rows);
        for (xs, pairs) in self.xs.chunks(X_BLOCK).zip(self.pairs.chunks(X_BLOCK)) {
            let packed = &mut scratch.packed;
            // SAFETY: activations are as the layout says.
            unsafe { (self.kernels.pack)(layout, xs, packed) };
            for first in rows.clone().step_by(tile_rows) {
                let rows_of_tile = self.global(first, tile_rows.min(rows.end - first));
                fetch(&rows_of_tile, pairs);
                for (w, part) in self.parts.iter().enumerate() {
                    // Past the end the last row is repeated, and its results are dropped.
                    let mut tile: [Row; MAX_TILE_ROWS] =
                        std::array::from_fn(|r| part.row(self.mat, (first + r).min(rows.end - 1)));
                    if first + tile_rows > part.n_in_place() {
                        // SAFETY: these are rows of the matrix.
                        tile = unsafe { scratch.padded.copy(layout, part.row_bytes, tile) };
                    }
                    let results = &mut scratch.tile_results[w];
                    results.resize(xs.len() * tile_rows, 0.0);
                    // SAFETY: rows and activations are as the layout says; the level was detected.
                    unsafe {
                        let scratch = &mut scratch.tiles[w];
                        (self.kernels.tile)(layout, &tile[..tile_rows], xs, packed, scratch, results);
                    };
                    if part.host.has_factors() {
                        times(part.host.factor(self.mat), results);
                    }
                }
                out(&Results {
                    rows: rows_of_tile,
                    pairs,
                    values: std::array::from_fn(|w| &scratch.tile_results[w][..]),
                    stride: tile_rows,
                });
            }
        }
    }

    /// Converts rows of the part to rows of the weight.
    fn global(&self, first: usize, n: usize) -> Range<usize> {
        let first = self.parts[0].first_row + first;
        first..first + n
    }
}

fn times(factor: f32, results: &mut [f32]) {
    results.iter_mut().for_each(|y| *y *= factor);
}

/// The results of some rows of `W` weights for some pairs.
pub(crate) struct Results<'a, const W: usize> {
    /// The rows.
    pub(crate) rows: Range<usize>,
    pairs: &'a [u32],
    values: [&'a [f32]; W],
    /// The distance between the values of a pair and those of the next.
    stride: usize,
}

impl<const W: usize> Results<'_, W> {
    /// Calls `f(pair, values)` for each pair, with each weight's values for the rows.
    #[inline(always)]
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize, [&[f32]; W])) {
        for (i, pair) in self.pairs.iter().enumerate() {
            let mut values = self.values;
            for v in &mut values {
                *v = &v[i * self.stride..][..self.rows.len()];
            }
            f(*pair as usize, values);
        }
    }
}

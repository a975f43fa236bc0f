//! Products of activations with quantised or dense weights: `linear`, the gathers and their fused forms.
//!
//! All of them are one phase structure: every member of the team puts its share of the activations into the
//! weight's order; a barrier; every member computes its share of the rows of every matrix that occurs. Rows are
//! split the same way for every expert, so there is no barrier between experts, and each weight is read once.

mod cells;
mod dots;
mod elements;
mod kernels;
mod layout;
mod shares;
mod tiles;
mod weight;

use std::sync::atomic::{AtomicUsize, Ordering};

use dots::{MAX_X, ROWS, scales_len};
pub(super) use elements::to_integers;
use kernels::Kernels;
use layout::{PaddedRows, Row};
use shares::{BLOCK_ROWS, Chunks, RowBlock, Runs};
use tiles::{MAX_TILE_ROWS, TileScratch, X_BLOCK};
pub use weight::CpuWeight;
use weight::Part;

use super::attention::Partial;
use super::pool::Aligned;
use super::team::{self, Member};
use super::{CpuBackend, lock};

/// Most rows of activations with one matrix that go by dots, some at a time.
const MAX_DOTS: usize = 12;

/// Which rows of activations meet which matrix: `pairs[range]` for each matrix that occurs, ascending.
#[derive(Default)]
pub(super) struct Groups {
    mats: Vec<(usize, std::ops::Range<usize>)>,
    pairs: Vec<u32>,
    counts: Vec<u32>,
}

impl Groups {
    /// Every pair with matrix 0.
    pub(super) fn all(&mut self, n_pairs: usize) {
        self.mats.clear();
        if n_pairs > 0 {
            self.mats.push((0, 0..n_pairs));
        }
        self.pairs.clear();
        self.pairs.extend(0..n_pairs as u32);
    }

    /// Pair `p` with matrix `mat_of(p)`, below `n_mats`: a counting sort, stable.
    pub(super) fn by_mat(&mut self, n_pairs: usize, n_mats: usize, mat_of: impl Fn(usize) -> usize) {
        self.counts.clear();
        self.counts.resize(n_mats + 1, 0);
        for p in 0..n_pairs {
            self.counts[mat_of(p) + 1] += 1;
        }
        self.mats.clear();
        for mat in 0..n_mats {
            let (from, n) = (self.counts[mat], self.counts[mat + 1]);
            if n > 0 {
                self.mats.push((mat, from as usize..(from + n) as usize));
            }
            self.counts[mat + 1] += from;
        }
        self.pairs.clear();
        self.pairs.resize(n_pairs, 0);
        for p in 0..n_pairs {
            let at = &mut self.counts[mat_of(p)];
            self.pairs[*at as usize] = p as u32;
            *at += 1;
        }
    }
}

/// A member's working memory.
pub(super) struct Scratch {
    packed: Aligned<f32>,
    tiles: [TileScratch; 2],
    /// Of each weight the results of a tile, row of activations by row.
    tile_results: [Aligned<f32>; 2],
    /// The scales of some rows.
    scales: Aligned<f32>,
    padded: PaddedRows,
    results: Box<[[[f32; BLOCK_ROWS]; MAX_DOTS]; 2]>,
    xs: Vec<*const f32>,
    /// Activations that this member alone multiplies.
    prepared: Aligned<f32>,
    pub(super) attention: Partial,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            packed: Aligned::default(),
            tiles: Default::default(),
            tile_results: Default::default(),
            scales: Aligned::default(),
            padded: PaddedRows::default(),
            results: Box::new([[[0.0; BLOCK_ROWS]; MAX_DOTS]; 2]),
            xs: Vec::new(),
            prepared: Aligned::default(),
            attention: Partial::default(),
        }
    }
}

impl Scratch {
    /// Makes room for dots with the rows of a part, and for tiles. Every member does, for which of them takes what is not the
    /// same every time.
    fn reserve(&mut self, part: &Part, has_tiles: bool) {
        let layout = &part.kernels.layout;
        if self.scales.len() < scales_len(layout) {
            self.scales.resize(scales_len(layout), 0.0);
        }
        self.padded.reserve(layout, part.row_bytes, if has_tiles { MAX_TILE_ROWS } else { ROWS });
    }
}

// SAFETY: `xs` holds pointers only while one product is computed; between uses they are never read.
unsafe impl Send for Scratch {}

/// A pointer that members write disjoint elements of.
#[derive(Clone, Copy)]
pub(super) struct SyncPtr(*mut f32);

// SAFETY: the users promise that no element is written by two members, or read by one while another writes it.
unsafe impl Send for SyncPtr {}
// SAFETY: as above.
unsafe impl Sync for SyncPtr {}

impl SyncPtr {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// Where element `from` lies.
    ///
    /// # Safety
    /// It exists.
    unsafe fn row(self, from: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(from).cast_const() }
    }

    /// # Safety
    /// The elements `from..from + len` exist and no other member touches them in this phase.
    pub(super) unsafe fn slice<'a>(self, from: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}

/// What [`CpuBackend::product`] computes.
pub(super) struct Product<'a, const W: usize> {
    /// Weights of one shape, multiplied with the same activations.
    pub(super) weights: [&'a CpuWeight; W],
    /// The rows of activations.
    pub(super) x: &'a [f32],
    /// Pair `p` uses row `p / pairs_per_x`.
    pub(super) pairs_per_x: usize,
}

impl CpuBackend {
    /// Calls `out` with the results of every pair of `groups` and all rows of the weights, a block at a time. All calls for
    /// a row come from one member, matrices in ascending order; `start(rows)` is called before the first of them, for some
    /// rows at a time. Where pairs are many, `fetch(rows, pairs)` is called some time before `out` is for these, to fetch what
    /// that will need.
    pub(super) fn product<const W: usize>(
        &self,
        product: &Product<'_, W>,
        groups: &Groups,
        start: impl Fn(std::ops::Range<usize>) + Sync,
        fetch: impl Fn(&std::ops::Range<usize>, &[u32]) + Sync,
        out: impl Fn(&Results<'_, W>) + Sync,
    ) {
        let parts = product.weights[0].parts();
        let n_in = product.weights[0].n_in();
        let n_x = product.x.len() / n_in;
        for (mat, _) in &groups.mats {
            product.weights.iter().for_each(|w| w.announce(*mat));
        }
        let max_dots = parts.iter().map(|p| p.kernels.max_dots).max().unwrap_or(0);
        let in_tiles = |pairs: &std::ops::Range<usize>| pairs.len() > max_dots;
        let has_tiles = groups.mats.iter().any(|(_, pairs)| in_tiles(pairs));
        let has_dots = groups.mats.iter().any(|(_, pairs)| !in_tiles(pairs));
        let stride = parts.iter().map(|p| p.kernels.layout.stride).max().unwrap_or(0);
        // All rows in the order for dots, then in that for tiles, as far as they are needed.
        let tiles_at = if has_dots { n_x * stride } else { 0 };
        let n_prepared = tiles_at + if has_tiles { n_x * stride } else { 0 };
        // A single row is prepared by every member for itself: that is faster than to wait for one of them.
        let is_shared = n_x > 1;
        let n_copies = if is_shared { 1 } else { self.n_threads() };
        let mut prepared = self.floats.take(n_copies * n_prepared);
        let prepared_ptr = SyncPtr::new(&mut prepared);
        let mut team = lock(&self.team);
        let mut taken = lock(&self.taken);
        taken.clear();
        taken.resize_with(parts.len(), AtomicUsize::default);
        team.run(&|m: &Member<'_>| {
            let mut scratch = lock(&self.scratch[m.idx()]);
            let copy_at = if is_shared { 0 } else { m.idx() * n_prepared };
            let mut xs = std::mem::take(&mut scratch.xs);
            xs.clear();
            for (_, pairs) in &groups.mats {
                let at = copy_at + if in_tiles(pairs) { tiles_at } else { 0 };
                xs.extend(groups.pairs[pairs.clone()].iter().map(|p| {
                    // SAFETY: the prepared row exists; it is read when it has been written.
                    unsafe { prepared_ptr.row(at + *p as usize / product.pairs_per_x * stride) }
                }));
            }
            for (i, part) in parts.iter().enumerate() {
                let kernels = &part.kernels;
                scratch.reserve(part, has_tiles);
                let rows_of = |group: &(usize, std::ops::Range<usize>)| RowsOf {
                    parts: std::array::from_fn(|w| &product.weights[w].parts()[i]),
                    kernels,
                    mat: group.0,
                    xs: &xs[group.1.clone()],
                    pairs: &groups.pairs[group.1.clone()],
                };
                let chunks = Chunks {
                    n_rows: part.host.n_out(),
                    unit: if has_tiles { kernels.tile_rows } else { ROWS },
                    row_bytes: kernels.layout.row_bytes,
                    n_members: self.n_threads(),
                };
                let mut own_chunks =
                    std::iter::from_fn(|| chunks.get(taken[i].fetch_add(1, Ordering::Relaxed)))
                        .filter(|rows| !rows.is_empty())
                        .peekable();
                // What dots of a group read first, fetched while something else is done.
                let fetch_rows = |group: Option<&(usize, std::ops::Range<usize>)>,
                                  rows: &std::ops::Range<usize>| {
                    if let Some(group) = group.filter(|(_, pairs)| !in_tiles(pairs)) {
                        rows_of(group).fetch(rows);
                    }
                };
                if let Some(rows) = own_chunks.peek() {
                    fetch_rows(groups.mats.first(), rows);
                }
                if i == 0 || kernels.layout != parts[i - 1].kernels.layout {
                    if i > 0 && is_shared {
                        m.barrier();
                    }
                    let dots = has_dots.then_some((0, kernels.prepare_dot));
                    let tiles = has_tiles.then_some((tiles_at, kernels.prepare_tile));
                    for (at, prepare) in dots.into_iter().chain(tiles) {
                        for r in if is_shared { m.share(n_x, 1) } else { 0..n_x } {
                            // SAFETY: row r of x and of the prepared rows, which only this member writes; the level's
                            // instructions were detected when the backend was made.
                            unsafe {
                                let row = prepared_ptr.slice(copy_at + at + r * stride, stride);
                                prepare(&kernels.layout, product.x[r * n_in..].as_ptr(), row.as_mut_ptr());
                            }
                        }
                    }
                    if is_shared {
                        m.barrier();
                    }
                }
                while let Some(rows) = own_chunks.next() {
                    start(part.first_row + rows.start..part.first_row + rows.end);
                    for (g, group) in groups.mats.iter().enumerate() {
                        if in_tiles(&group.1) {
                            rows_of(group).by_tiles(rows.clone(), &mut scratch, &fetch, &out);
                        } else {
                            let fetch_next = || match (groups.mats.get(g + 1), own_chunks.peek()) {
                                (None, Some(next)) => fetch_rows(groups.mats.first(), next),
                                (group, _) => fetch_rows(group, &rows),
                            };
                            rows_of(group).by_dots(&rows, &mut scratch, fetch_next, &out);
                        }
                    }
                }
            }
            scratch.xs = xs;
        });
    }

    /// As [`Self::product`] of one weight, but members take whole matrices as they come, and prepare the activations of each for
    /// themselves: of many small matrices the rows are long enough to be streams only if they are not parted, and no member
    /// waits for another. All calls for a row still come from one member, but matrices in no order.
    pub(super) fn product_by_mats(
        &self,
        product: &Product<'_, 1>,
        groups: &Groups,
        out: impl Fn(&Results<'_, 1>) + Sync,
    ) {
        let [weight] = product.weights;
        let (parts, n_in) = (weight.parts(), weight.n_in());
        groups.mats.iter().for_each(|(mat, _)| weight.announce(*mat));
        // Four pieces for each member, so that none waits long for the last one.
        let n_slices = (4 * self.n_threads()).div_ceil(groups.mats.len().max(1));
        let next = AtomicUsize::new(0);
        lock(&self.team).run(&|m: &Member<'_>| {
            let mut scratch = lock(&self.scratch[m.idx()]);
            let (mut xs, mut prepared) =
                (std::mem::take(&mut scratch.xs), std::mem::take(&mut scratch.prepared));
            let mut pieces = std::iter::from_fn(|| {
                let at = next.fetch_add(1, Ordering::Relaxed);
                Some((groups.mats.get(at / n_slices)?, at % n_slices))
            })
            .peekable();
            // The rows of a part that a slice has.
            let rows_of_slice = |part: &Part, in_tiles: bool, slice: usize| {
                let unit = if in_tiles { part.kernels.tile_rows } else { ROWS };
                team::part(part.host.n_out(), unit, n_slices, slice)
            };
            while let Some(((mat, pairs), slice)) = pieces.next() {
                for (i, part) in parts.iter().enumerate() {
                    let kernels = &part.kernels;
                    let (layout, pairs) = (&kernels.layout, &groups.pairs[pairs.clone()]);
                    let in_tiles = pairs.len() > kernels.max_dots;
                    scratch.reserve(part, in_tiles);
                    if i == 0 || *layout != parts[i - 1].kernels.layout {
                        let len = prepared.len().max(pairs.len() * layout.stride);
                        prepared.resize(len, 0.0);
                        let prepare = if in_tiles { kernels.prepare_tile } else { kernels.prepare_dot };
                        xs.clear();
                        for (pair, row) in pairs.iter().zip(prepared.chunks_exact_mut(layout.stride)) {
                            let x = &product.x[*pair as usize / product.pairs_per_x * n_in..][..n_in];
                            // SAFETY: the rows are as the layout says; the level's instructions were detected when the
                            // backend was made.
                            unsafe { prepare(layout, x.as_ptr(), row.as_mut_ptr()) };
                            xs.push(row.as_ptr());
                        }
                    }
                    let rows_of = |mat| RowsOf { parts: [part], kernels, mat, xs: &xs, pairs };
                    let rows = rows_of_slice(part, in_tiles, slice);
                    let fetch_next = || {
                        if let Some(((mat, _), slice)) = pieces.peek() {
                            rows_of(*mat).fetch(&rows_of_slice(part, in_tiles, *slice));
                        }
                    };
                    if in_tiles {
                        rows_of(*mat).by_tiles(rows, &mut scratch, |_, _| (), &out);
                    } else {
                        rows_of(*mat).by_dots(&rows, &mut scratch, fetch_next, &out);
                    }
                }
            }
            (scratch.xs, scratch.prepared) = (xs, prepared);
        });
    }

    /// True if the weights can be computed in lockstep: alike in every part.
    pub(super) fn in_lockstep(a: &CpuWeight, b: &CpuWeight) -> bool {
        let (a, b) = (a.parts(), b.parts());
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                (a.kernels.layout, a.host.format(), a.host.n_out())
                    == (b.kernels.layout, b.host.format(), b.host.n_out())
            })
    }
}

/// One matrix of each of `W` weights against some prepared rows.
struct RowsOf<'a, const W: usize> {
    parts: [&'a Part; W],
    kernels: &'a Kernels,
    mat: usize,
    xs: &'a [*const f32],
    /// As many.
    pairs: &'a [u32],
}

impl<const W: usize> RowsOf<'_, W> {
    /// Fetches what is read first of these rows.
    fn fetch(&self, rows: &std::ops::Range<usize>) {
        if let Some(block) = Runs::new::<W>(rows.len()).block(0) {
            dots::fetch(&self.firsts(rows.start)(&block).0);
        }
    }

    /// The rows from which on a kernel call walks in a block of the rows from `start` on, and how many of each in place.
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

    /// `ROWS / W` rows of each weight per kernel call, so that they share the loads of the activations; results are
    /// handed on by [`BLOCK_ROWS`], from the first-level cache. `fetch_next` is called shortly before the end.
    fn by_dots(
        &self,
        rows: &std::ops::Range<usize>,
        scratch: &mut Scratch,
        mut fetch_next: impl FnMut(),
        out: impl Fn(&Results<'_, W>),
    ) {
        let n_runs = ROWS / W;
        let block_len = BLOCK_ROWS / n_runs;
        let Scratch { results, scales, padded, .. } = scratch;
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
                let to: [*mut f32; ROWS] = std::array::from_fn(|r| {
                    results[r / n_runs][i * MAX_X][r % n_runs * block_len..].as_mut_ptr()
                });
                // SAFETY: rows and activations are as the layout says, and what is read behind the rows is there; each of
                // the results' rows has room for the block's of its weight, and those of all activations follow; the level
                // was detected.
                unsafe {
                    dot(layout, &firsts, n, &x, scales, &to, BLOCK_ROWS);
                    for i in n..block.n {
                        let rows = padded.copy(layout, row_bytes, firsts.map(|row| row.add(i, row_bytes)));
                        dot(layout, &rows, 1, &x, scales, &to.map(|to| to.add(i)), BLOCK_ROWS);
                    }
                }
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

    /// A tile of rows of each weight for all activations, some of them at a time. `fetch` is called before each, with its rows.
    fn by_tiles(
        &self,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
        fetch: impl Fn(&std::ops::Range<usize>, &[u32]),
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
                    // Past the end, the last row is repeated and its results are dropped.
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

    /// Rows of the part as rows of the weight.
    fn global(&self, first: usize, n: usize) -> std::ops::Range<usize> {
        let first = self.parts[0].first_row + first;
        first..first + n
    }
}

/// The results of some rows of `W` weights with some pairs.
pub(super) struct Results<'a, const W: usize> {
    /// The rows.
    pub(super) rows: std::ops::Range<usize>,
    pairs: &'a [u32],
    values: [&'a [f32]; W],
    /// From the values of a pair to those of the next.
    stride: usize,
}

impl<const W: usize> Results<'_, W> {
    /// `f(pair, values)` for each pair: each weight's values for the rows.
    #[inline(always)]
    pub(super) fn for_each(&self, mut f: impl FnMut(usize, [&[f32]; W])) {
        for (i, pair) in self.pairs.iter().enumerate() {
            let mut values = self.values;
            for v in &mut values {
                *v = &v[i * self.stride..][..self.rows.len()];
            }
            f(*pair as usize, values);
        }
    }
}

//! Products of activations with quantised or dense weights: `linear`, the gathers and their fused forms.
//!
//! All of them have the same structure. First each member of the team puts its share of the activations into the
//! weight's order. After a barrier each member computes its share of the rows of every matrix that occurs. Rows are
//! split the same way for every expert, so there is no barrier between experts, and each weight is read once.
//!
//! Each module uses those above it:
//!
//! | module | what is in it |
//! |---|---|
//! | `elements` | what a 32-bit cell holds (integers, a float), and how cells are multiplied |
//! | `decoders` | weight formats: how the words of a row become cells |
//! | `layout` | where a row's data, scales and biases are |
//! | `scales` | how scales and biases are read |
//! | `zipped` | the order of words that AVX2 uses for 2 bits and mxfp4 |
//! | `prepare` | activations in the order of cells |
//! | `dots` | the kernel for few rows of activations |
//! | `tiles` | the kernel for many rows: by vectors, by AMX (`tiles/amx`), by half as many products (`tiles/pairs`) |
//! | `ways` | which element types and multiplication each instruction set uses |
//! | `kernels` | the instances of these kernels, for each level and format |
//! | `weight` | a weight with its kernels |
//! | `groups`, `shares` | which rows of activations are multiplied by which matrix; how rows of weights are divided
//! among members |
//! | `scratch`, `rows_of` | a member's memory; one matrix times its rows of activations |

mod decoders;
mod dots;
mod elements;
mod groups;
mod kernels;
mod layout;
mod prepare;
mod rows_of;
mod scales;
mod scratch;
mod shares;
mod tiles;
mod ways;
mod weight;
mod zipped;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) use groups::Groups;
pub(super) use rows_of::Results;
pub(super) use scratch::ProductScratch;
pub use weight::CpuWeight;

use dots::ROWS;
use rows_of::RowsOf;
use shares::Chunks;
use weight::WeightPart;

use super::sync_ptr::SyncPtr;
use super::team::{self, Kind, Member, Work};
use super::{CpuBackend, lock};
use zmlx_core::Result;

/// What [`CpuBackend::product`] computes.
pub(super) struct Product<'a, const W: usize> {
    /// The op's name, for errors.
    pub(super) op: &'static str,
    /// Weights of one shape, which are multiplied by the same activations.
    pub(super) weights: [&'a CpuWeight; W],
    /// The rows of activations.
    pub(super) x: &'a [f32],
    /// Pair `p` uses row `p / pairs_per_x`.
    pub(super) pairs_per_x: usize,
}

impl<const W: usize> Product<'_, W> {
    /// The approximate number of multiply-adds. With few rows of activations a weight counts once, because reading it
    /// takes the time; with many rows every product counts.
    fn work(&self, kind: Kind, groups: &Groups) -> Work {
        let weight = self.weights[0];
        let n_pairs = if kind == Kind::Tiles { groups.pairs.len() } else { groups.mats.len() };
        Work::new(kind, n_pairs.saturating_mul(W * weight.n_out()).saturating_mul(weight.n_in()))
    }
}

impl CpuBackend {
    /// Calls `out` with the results of every pair of `groups` and all rows of the weights, a block at a time. All calls
    /// for a row come from one member, with the matrices in ascending order. `start(rows)` is called before the first
    /// of them, for some rows at a time. If there are many pairs, `fetch(rows, pairs)` is called some time before
    /// `out`, so that it can prefetch what `out` will need.
    pub(super) fn product<const W: usize>(
        &self,
        product: &Product<'_, W>,
        groups: &Groups,
        start: impl Fn(Range<usize>) + Sync,
        fetch: impl Fn(&Range<usize>, &[u32]) + Sync,
        out: impl Fn(&Results<'_, W>) + Sync,
    ) -> Result<()> {
        let parts = product.weights[0].parts();
        let n_in = product.weights[0].n_in();
        let n_x = product.x.len() / n_in;
        for (mat, _) in &groups.mats {
            product.weights.iter().for_each(|w| w.announce(*mat));
        }
        let max_dots = parts.iter().map(|p| p.kernels.max_dots).max().unwrap_or(0);
        let in_tiles = |pairs: &Range<usize>| pairs.len() > max_dots;
        let has_tiles = groups.mats.iter().any(|(_, pairs)| in_tiles(pairs));
        let has_dots = groups.mats.iter().any(|(_, pairs)| !in_tiles(pairs));
        let stride = parts.iter().map(|p| p.kernels.layout.stride).max().unwrap_or(0);
        // All rows in the order for dots, then all rows in the order for tiles, as far as each is needed.
        let tiles_at = if has_dots { n_x * stride } else { 0 };
        let n_prepared = tiles_at + if has_tiles { n_x * stride } else { 0 };
        // Each member prepares a single row for itself, which is faster than waiting for another member.
        let is_shared = n_x > 1;
        let n_copies = if is_shared { 1 } else { self.n_threads() };
        let mut prepared = self.floats.take(product.op, n_copies * n_prepared)?;
        let prepared_ptr = SyncPtr::new(&mut prepared);
        let mut team = lock(&self.team);
        let mut taken = lock(&self.taken);
        taken.clear();
        taken.resize_with(parts.len(), AtomicUsize::default);
        let kind = if has_tiles { Kind::Tiles } else { Kind::Dots };
        team.run(product.work(kind, groups), &|m: &Member<'_>| {
            let scratch = &mut lock(&self.scratch[m.idx()]).product;
            let copy_at = if is_shared { 0 } else { m.idx() * n_prepared };
            let mut xs = std::mem::take(&mut scratch.xs);
            xs.clear();
            for (_, pairs) in &groups.mats {
                let at = copy_at + if in_tiles(pairs) { tiles_at } else { 0 };
                xs.extend(groups.pairs[pairs.clone()].iter().map(|p| {
                    // SAFETY: the prepared row exists, and it is read only after it has been written.
                    unsafe { prepared_ptr.row(at + *p as usize / product.pairs_per_x * stride) }
                }));
            }
            for (i, part) in parts.iter().enumerate() {
                let kernels = &part.kernels;
                scratch.reserve(part, has_tiles);
                let rows_of = |group: &(usize, Range<usize>)| RowsOf {
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
                // Prefetches what the dots of a group read first, while something else is computed.
                let fetch_rows = |group: Option<&(usize, Range<usize>)>, rows: &Range<usize>| {
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
                            rows_of(group).by_tiles(rows.clone(), scratch, &fetch, &out);
                        } else {
                            let fetch_next = || match (groups.mats.get(g + 1), own_chunks.peek()) {
                                (None, Some(next)) => fetch_rows(groups.mats.first(), next),
                                (group, _) => fetch_rows(group, &rows),
                            };
                            rows_of(group).by_dots(&rows, scratch, fetch_next, &out);
                        }
                    }
                }
            }
            scratch.xs = xs;
        });
        Ok(())
    }

    /// As [`Self::product`] of one weight, but members take whole matrices and prepare the activations of each matrix
    /// for themselves. If a bank has many small matrices, their rows are long enough for prefetching only if a matrix
    /// is not split. No member waits for another. All calls for a row still come from one member, but the matrices come
    /// in any order.
    pub(super) fn product_by_mats(
        &self,
        product: &Product<'_, 1>,
        groups: &Groups,
        out: impl Fn(&Results<'_, 1>) + Sync,
    ) {
        let [weight] = product.weights;
        let (parts, n_in) = (weight.parts(), weight.n_in());
        groups.mats.iter().for_each(|(mat, _)| weight.announce(*mat));
        // Four pieces for each member, so that none waits long for the last piece.
        let n_slices = (4 * self.n_threads()).div_ceil(groups.mats.len().max(1));
        let next = AtomicUsize::new(0);
        lock(&self.team).run(product.work(Kind::Mats, groups), &|m: &Member<'_>| {
            let scratch = &mut lock(&self.scratch[m.idx()]).product;
            let (mut xs, mut prepared) =
                (std::mem::take(&mut scratch.xs), std::mem::take(&mut scratch.prepared));
            let mut pieces = std::iter::from_fn(|| {
                let at = next.fetch_add(1, Ordering::Relaxed);
                Some((groups.mats.get(at / n_slices)?, at % n_slices))
            })
            .peekable();
            // The rows of a part that belong to a slice.
            let rows_of_slice = |part: &WeightPart, in_tiles: bool, slice: usize| {
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
                        rows_of(*mat).by_tiles(rows, scratch, |_, _| (), &out);
                    } else {
                        rows_of(*mat).by_dots(&rows, scratch, fetch_next, &out);
                    }
                }
            }
            (scratch.xs, scratch.prepared) = (xs, prepared);
        });
    }

    /// True if the weights can be computed in lockstep: all their parts have the same shapes and kernels.
    pub(super) fn in_lockstep(a: &CpuWeight, b: &CpuWeight) -> bool {
        let (a, b) = (a.parts(), b.parts());
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                (a.kernels.layout, a.host.format(), a.host.n_out())
                    == (b.kernels.layout, b.host.format(), b.host.n_out())
            })
    }
}

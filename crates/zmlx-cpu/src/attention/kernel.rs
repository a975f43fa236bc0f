//! The attention kernel: some query rows against a range of positions, block by block, with a running softmax.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::cells::{self, Cells, GROUP, WIDE, round, stride, to_cells};
use super::pages::Rows;
use super::softmax::{Factors, exp2, weigh};
use crate::level::Level;
use crate::pool::Aligned;
use crate::simd::scalar::Scalar;
use crate::simd::{Simd, prefetch};

/// The largest number of query rows in a job. They share what they read from the cache.
pub(super) const JOB_ROWS: usize = 32;
/// Positions that are scored before their values are added. Their keys stay in the second-level cache.
pub(super) const BLOCK: usize = 96;
/// Jobs are padded to a multiple of this many query rows.
pub(super) const ROWS: usize = 4;

/// The keys and values of one head.
pub(super) struct Keys<'a> {
    /// A key is one row, or two side by side, each with its own scale.
    pub(super) parts: [Option<Rows<'a>>; 2],
    /// Row widths of the first and the second part. Values are as wide as the first part.
    pub(super) widths: [usize; 2],
    /// `None` if the first part of the keys is also the value.
    pub(super) values: Option<Rows<'a>>,
}

impl<'a> Keys<'a> {
    /// Number of elements in a padded row of values.
    pub(super) fn v_stride(&self) -> usize {
        stride(self.widths[0])
    }

    /// The rows whose scales apply to the values.
    #[inline(always)]
    fn value_rows(&self) -> Rows<'a> {
        match (self.values, self.parts[0]) {
            (Some(rows), _) | (None, Some(rows)) => rows,
            (None, None) => unreachable!("there are keys"),
        }
    }
}

/// The working memory of one member of the team.
#[derive(Default)]
pub(crate) struct Partial {
    pub(super) scratch: Scratch,
    /// For each row the sums of the values; then for all rows the largest scores, then the sums of the weights.
    pub(super) state: Aligned<f32>,
}

/// The positions that a query row sees: from `from` on, before `to`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Seen {
    /// The part of it that lies in the `n` positions from `from` on, counted from `from`.
    #[inline(always)]
    fn within(self, from: usize, n: usize) -> Self {
        let clip = |position: usize| position.saturating_sub(from).min(n);
        Self { from: clip(self.from), to: clip(self.to) }
    }
}

/// Some rows of queries.
pub(super) struct QueryRows<'a> {
    /// Both parts of all rows. A part is empty if the keys do not have it.
    pub(super) parts: [&'a [f32]; 2],
    pub(super) widths: [usize; 2],
    /// The indices of the rows.
    pub(super) rows: &'a [usize],
    /// The factor of all queries.
    pub(super) scale: f32,
}

/// Query rows as integers, in the order of the keys' cells.
#[derive(Default)]
pub(super) struct Queries {
    cells: Aligned<u32>,
    /// Number of cells in a row.
    stride: usize,
    /// The scales of each part of the rows.
    scales: [[f32; JOB_ROWS]; 2],
    /// A buffer for the part of a row that is being rounded.
    integers: Aligned<i16>,
}

impl Queries {
    /// Rounds the rows and fills up with zero rows to `n_rows`.
    #[inline(always)]
    fn set(&mut self, from: &QueryRows<'_>, n_rows: usize) {
        let strides = [stride(from.widths[0]), stride(from.widths[1])];
        self.stride = (strides[0] + strides[1]) / 2;
        self.scales = [[0.0; JOB_ROWS]; 2];
        self.cells.resize(n_rows * self.stride, 0);
        self.cells[from.rows.len() * self.stride..].fill(0);
        let mut at = 0;
        for part in 0..2 {
            let (width, n_cells) = (from.widths[part], strides[part] / 2);
            self.integers.resize(strides[part], 0);
            for (i, row) in from.rows.iter().enumerate() {
                let q = &from.parts[part][row * width..][..width];
                self.scales[part][i] = from.scale * LOG2_E * round(q, &mut self.integers);
                to_cells(&self.integers, &mut self.cells[i * self.stride + at..][..n_cells]);
            }
            at += n_cells;
        }
    }
}

/// The queries of a job, and the intermediate results of a block.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Queries,
    /// The scores of the positions, row by row.
    scores: Aligned<f32>,
    /// The weights times the values' scales, as integers. Pairs of positions are cells.
    weights: Aligned<i16>,
    /// Keys in the order of values, if the keys are also the values.
    values: Aligned<u32>,
    /// Both parts of the keys, and the values, expanded if they are stored as codes.
    expanded: [Aligned<i16>; 3],
}

/// Number of floats in a state of `n_rows` rows with values of stride `v_stride`.
pub(super) fn state_len(n_rows: usize, v_stride: usize) -> usize {
    n_rows * (v_stride + 2)
}

/// Computes the result of row `r` of `n_rows` from the states of all parts of the positions and the score of its head's
/// sink.
#[inline(always)]
pub(super) fn finish<'p>(
    parts: impl Iterator<Item = &'p [f32]> + Clone,
    (r, n_rows): (usize, usize),
    v_stride: usize,
    sink: Option<f32>,
    out: &mut [f32],
) {
    let n = n_rows * v_stride;
    let sink = sink.map(|sink| sink * LOG2_E);
    let mut max = sink.unwrap_or(f32::NEG_INFINITY);
    for part in parts.clone() {
        // NaN wins, so that it reaches the result.
        max = if part[n + r] > max || part[n + r].is_nan() { part[n + r] } else { max };
    }
    let mut sum = sink.map_or(0.0, |sink| exp2(Scalar, Scalar.splat(sink - max))[0]);
    out.fill(0.0);
    for part in parts {
        // A part in which a row saw nothing has no largest score.
        let of = part[n + r];
        let factor = if of == f32::NEG_INFINITY { 0.0 } else { exp2(Scalar, Scalar.splat(of - max))[0] };
        sum += part[n + n_rows + r] * factor;
        let values = &part[r * v_stride..][..out.len()];
        for i in 0..out.len() {
            out[i] += values[i] * factor;
        }
    }
    let inverse = 1.0 / sum;
    for i in 0..out.len() {
        out[i] *= inverse;
    }
}

/// Computes the softmax over `positions` for all query rows: `Σ 2^(score - max) · value`, with the largest score so far
/// as the maximum. A score is `q · k`, times the queries' factor and log₂e. A row sees the positions that `seen` says;
/// rows that do not exist see none. The number of rows is a multiple of [`ROWS`], up to [`JOB_ROWS`]. Queries are as
/// wide as keys. Without queries those of the last call are used again. `state` has [`state_len`] floats of any value.
///
/// # Safety
/// The processor has the level's instructions. All positions are cached, and the first is a multiple of [`WIDE`].
pub(super) type AttendFn = unsafe fn(
    keys: &Keys<'_>,
    queries: Option<&QueryRows<'_>>,
    seen: &[Seen],
    positions: Range<usize>,
    scratch: &mut Scratch,
    state: &mut [f32],
);

/// The instance of the kernel for a level.
pub(super) fn attend(level: Level) -> AttendFn {
    match level {
        Level::Scalar => attend_on::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => attend_on::<crate::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => attend_on::<crate::simd::avx512::Avx512<false>>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni | Level::Zen4 | Level::Amx => attend_on::<crate::simd::avx512::Avx512<true>>,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => attend_on::<crate::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

unsafe fn attend_on<S: Simd>(
    keys: &Keys<'_>,
    queries: Option<&QueryRows<'_>>,
    seen: &[Seen],
    positions: Range<usize>,
    scratch: &mut Scratch,
    state: &mut [f32],
) {
    let n_rows = seen.len();
    assert!(n_rows.is_multiple_of(ROWS) && n_rows <= JOB_ROWS && positions.start.is_multiple_of(WIDE));
    let (values, rest) = state.split_at_mut(n_rows * keys.v_stride());
    let (maxima, sums) = rest.split_at_mut(n_rows);
    values.fill(0.0);
    maxima.fill(f32::NEG_INFINITY);
    sums.fill(0.0);
    scratch.scores.resize(JOB_ROWS * BLOCK, 0.0);
    scratch.weights.resize(JOB_ROWS * BLOCK, 0);
    if keys.values.is_none() {
        scratch.values.resize(BLOCK * keys.v_stride() / 2, 0);
    }
    // SAFETY: the caller guarantees that the processor has the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            if let Some(queries) = queries {
                scratch.queries.set(queries, n_rows);
            }
            let Range { start: mut next, end } = positions;
            while next < end {
                let from = next;
                // Blocks end where pages end.
                let n = (BLOCK - from % BLOCK).min(end - from);
                next += n;
                let mut visible = [Seen::default(); JOB_ROWS];
                for r in 0..n_rows {
                    visible[r] = seen[r].within(from, n);
                }
                let visible = &visible[..n_rows];
                let [first, second, value] = &mut scratch.expanded;
                let cells = |rows: Option<Rows<'_>>, out: &mut Aligned<i16>| {
                    rows.map_or(std::ptr::null(), |rows| rows.cells(from, n, out))
                };
                let cells =
                    [cells(keys.parts[0], first), cells(keys.parts[1], second), cells(keys.values, value)];
                let mut block = Block { keys, cells, from, n, end, visible, scratch: &mut *scratch };
                // SAFETY: the positions are cached; queries and state have these rows. The numbers of rows and vectors
                // are the largest whose sums and operands fit into the registers.
                unsafe {
                    if S::MANY_REGISTERS {
                        block.score::<S, 4, 3>(s);
                    } else {
                        block.score::<S, 2, 2>(s);
                    }
                    let factors = block.weigh(s, (maxima, sums));
                    if S::MANY_REGISTERS {
                        block.add_values::<S, 4, 3>(s, &factors, values);
                    } else {
                        block.add_values::<S, 2, 2>(s, &factors, values);
                    }
                }
            }
        },
    );
}

/// Some positions, and the results of the rows for them.
struct Block<'a> {
    keys: &'a Keys<'a>,
    /// The addresses of the cells of both parts of the keys and of the values.
    cells: [*const u32; 3],
    /// The first of its positions, and their number.
    from: usize,
    n: usize,
    /// The end of the last block.
    end: usize,
    /// The part of the block that each row sees.
    visible: &'a [Seen],
    scratch: &'a mut Scratch,
}

impl Block<'_> {
    /// Whether any of the `R` rows from `row` on sees a position.
    #[inline(always)]
    fn is_seen<const R: usize>(&self, row: usize) -> bool {
        let mut any = false;
        for r in row..row + R {
            any |= self.visible[r].from < self.visible[r].to;
        }
        any
    }

    /// What to prefetch during `n_steps` steps: the block of `rows` that comes after this block and `n_blocks` more.
    /// The prefetch runs a block ahead, because a request at the time of use comes too late.
    #[inline(always)]
    fn ahead(&self, rows: &Rows<'_>, n_blocks: usize, n_steps: usize) -> Ahead {
        let from = self.from + self.n + n_blocks * BLOCK;
        if from >= self.end {
            return Ahead::NONE;
        }
        let bytes = rows.bytes(from, BLOCK.min(self.end - from));
        let n_lines = bytes.len().div_ceil(64);
        Ahead { at: bytes.as_ptr(), n_lines, per_step: n_lines.div_ceil(n_steps.max(1)) }
    }

    /// The scores of all rows, `R` rows and `N` vectors of positions at a time.
    ///
    /// # Safety
    /// As [`AttendFn`].
    #[inline(always)]
    unsafe fn score<S: Simd, const R: usize, const N: usize>(&mut self, s: S) {
        let n_vectors = self.n.div_ceil(S::LANES);
        let mut q_at = 0;
        for part in 0..2 {
            let Some(rows) = self.keys.parts[part] else { continue };
            let stride = stride(self.keys.widths[part]);
            let n_steps = n_vectors.div_ceil(N) * (self.visible.len() / R) * (stride / (2 * GROUP));
            // If keys are also values, this is the only time to prefetch them.
            let mut ahead = match self.keys.values {
                Some(values) => self.ahead(&values, 0, n_steps),
                None => self.ahead(&rows, 1, n_steps),
            };
            let mut i = 0;
            while i < n_vectors {
                // SAFETY: the caller's promise. Vectors of positions are whole, because tiles are.
                unsafe {
                    i += match n_vectors - i {
                        1 => self.score_columns::<S, R, 1>(s, (part, q_at), &rows, i, &mut ahead),
                        2 => self.score_columns::<S, R, 2>(s, (part, q_at), &rows, i, &mut ahead),
                        _ => self.score_columns::<S, R, N>(s, (part, q_at), &rows, i, &mut ahead),
                    };
                }
            }
            q_at += stride / 2;
        }
    }

    /// The scores of `N` vectors of positions from vector `first` on, for one part of the keys. The queries of that
    /// part are at `q_at`. The scores are added to those of an earlier part. Returns `N`.
    ///
    /// # Safety
    /// As [`AttendFn`].
    #[inline(always)]
    unsafe fn score_columns<S: Simd, const R: usize, const N: usize>(
        &mut self,
        s: S,
        (part, q_at): (usize, usize),
        rows: &Rows<'_>,
        first: usize,
        ahead: &mut Ahead,
    ) -> usize {
        let stride = stride(self.keys.widths[part]);
        let keys = Cells::of_keys(self.cells[part], stride);
        let scales = &rows.scales(self.from)[..self.n.next_multiple_of(WIDE)];
        let n_groups = stride / (2 * GROUP);
        let queries = &self.scratch.queries;
        for row in (0..self.visible.len()).step_by(R) {
            if !self.is_seen::<R>(row) {
                continue;
            }
            // SAFETY: the caller's promise.
            unsafe {
                let q = queries.cells.as_ptr().add(row * queries.stride + q_at);
                let sums = keys.products::<S, R, N>(s, first, q, queries.stride, n_groups, || ahead.fetch());
                for i in 0..N {
                    let at = (first + i) * S::LANES;
                    let scales = s.load(scales.as_ptr().add(at));
                    for r in 0..R {
                        let out = self.scratch.scores.as_mut_ptr().add((row + r) * BLOCK + at);
                        let before = if part == 0 { s.splat(0.0) } else { s.load(out) };
                        let scores = s.mul(sums[r][i], scales);
                        s.store(out, s.fma(scores, s.splat(queries.scales[part][row + r]), before));
                    }
                }
            }
        }
        N
    }

    /// Turns the scores into weights and updates the rows' largest scores and sums.
    #[inline(always)]
    fn weigh<S: Simd>(&mut self, s: S, state: (&mut [f32], &mut [f32])) -> Factors {
        let Scratch { scores, weights, .. } = self.scratch;
        let value_scales = &self.keys.value_rows().scales(self.from)[..self.n.next_multiple_of(WIDE)];
        weigh(s, scores, self.visible, value_scales, state, weights)
    }

    /// Adds the block's values to the sums of all rows, `R` rows and `N` vectors of a value at a time.
    ///
    /// # Safety
    /// As [`AttendFn`]. `values` has the rows.
    #[inline(always)]
    unsafe fn add_values<S: Simd, const R: usize, const N: usize>(
        &mut self,
        s: S,
        factors: &Factors,
        values: &mut [f32],
    ) {
        let stride = self.keys.v_stride();
        let cells = if self.keys.values.is_some() {
            Cells::of_values(self.cells[2], stride)
        } else {
            let out = self.scratch.values.as_mut_ptr();
            for p in (0..self.n).step_by(WIDE) {
                // SAFETY: the caller's promise. The buffer has room for a block.
                unsafe {
                    let keys = self.cells[0].add(p * stride / 2);
                    cells::to_values(s, keys, stride, out.add(p * stride / 2));
                }
            }
            Cells::of_values(out, stride)
        };
        let n_vectors = stride / S::LANES;
        let n_groups = self.n.div_ceil(2 * GROUP);
        let n_steps = n_vectors.div_ceil(N) * (self.visible.len() / R) * n_groups;
        let mut ahead = match (self.keys.values, self.keys.parts[0]) {
            (Some(_), Some(rows)) => self.ahead(&rows, 1, n_steps),
            _ => Ahead::NONE,
        };
        let mut i = 0;
        while i < n_vectors {
            // SAFETY: the caller's promise.
            unsafe {
                i += match n_vectors - i {
                    1 => self.add_columns::<S, R, 1>(s, cells, factors, i, values, &mut ahead),
                    2 => self.add_columns::<S, R, 2>(s, cells, factors, i, values, &mut ahead),
                    _ => self.add_columns::<S, R, N>(s, cells, factors, i, values, &mut ahead),
                };
            }
        }
    }

    /// [`Self::add_values`] for `N` vectors of the values from vector `first` on. Returns `N`.
    ///
    /// # Safety
    /// As [`Self::add_values`].
    #[inline(always)]
    unsafe fn add_columns<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        cells: Cells,
        factors: &Factors,
        first: usize,
        values: &mut [f32],
        ahead: &mut Ahead,
    ) -> usize {
        let n_groups = self.n.div_ceil(2 * GROUP);
        for row in (0..self.visible.len()).step_by(R) {
            if !self.is_seen::<R>(row) {
                continue;
            }
            // SAFETY: the caller's promise.
            unsafe {
                let weights = self.scratch.weights.as_ptr().add(row * BLOCK).cast();
                let sums =
                    cells.products::<S, R, N>(s, first, weights, BLOCK / 2, n_groups, || ahead.fetch());
                for r in 0..R {
                    let (kept, scale) = (s.splat(factors.kept[row + r]), s.splat(factors.scales[row + r]));
                    for i in 0..N {
                        let at = (row + r) * self.keys.v_stride() + (first + i) * S::LANES;
                        let out = values.as_mut_ptr().add(at);
                        s.store(out, s.fma(sums[r][i], scale, s.mul(kept, s.load(out))));
                    }
                }
            }
        }
        N
    }
}

/// Memory that will be needed, prefetched in small steps.
struct Ahead {
    at: *const u8,
    n_lines: usize,
    /// Number of cache lines per step.
    per_step: usize,
}

impl Ahead {
    /// Nothing to prefetch.
    const NONE: Self = Self { at: std::ptr::null(), n_lines: 0, per_step: 0 };

    #[inline(always)]
    fn fetch(&mut self) {
        let n = self.per_step.min(self.n_lines);
        self.n_lines -= n;
        for _ in 0..n {
            prefetch(self.at);
            self.at = self.at.wrapping_add(64);
        }
    }
}

//! How the rows of a weight are divided among the threads of the team, and within the calls of a dot kernel.

use super::dots::ROWS;

/// Rows whose results are kept together until they are written: a multiple of [`ROWS`].
pub(super) const BLOCK_ROWS: usize = 256;

/// Divides the rows of a part into chunks. Each thread takes a large chunk first and, when it has finished, a small
/// one. While a thread is held up in its large chunk, the others take the small ones.
pub(super) struct Chunks {
    /// The number of rows, and the unit: chunks are multiples of it, except for the last one.
    pub(super) n_rows: usize,
    pub(super) unit: usize,
    pub(super) row_bytes: usize,
    pub(super) n_members: usize,
}

impl Chunks {
    /// One in this many rows is in the small chunks.
    const SMALL: usize = 8;
    /// The smallest number of bytes in a small chunk, because starting a chunk takes time.
    const MIN_BYTES: usize = 32 << 10;

    /// The rows of a chunk, which may be empty.
    pub(super) fn get(&self, idx: usize) -> Option<std::ops::Range<usize>> {
        let (n, n_units) = (self.n_members, self.n_rows.div_ceil(self.unit));
        let n_small = n_units / Self::SMALL;
        let has_small = n > 1 && n_small / n * self.unit * self.row_bytes >= Self::MIN_BYTES;
        // Large chunks have equal numbers of units: if there are few units, one more makes a difference.
        let n_large = if has_small { (n_units - n_small) / n * n } else { n_units };
        let bound = |idx: usize| {
            let n_units = n_large * idx.min(n) / n + (n_units - n_large) * idx.saturating_sub(n) / n;
            (n_units * self.unit).min(self.n_rows)
        };
        (idx < 2 * n).then(|| bound(idx)..bound(idx + 1))
    }
}

/// Divides rows for dots into runs. A run is a range of successive rows; a dot kernel takes one row of each run at a
/// time.
///
/// So each of the kernel's rows belongs to a long stream that the processor's prefetcher can follow. With neighbouring
/// rows the prefetcher sees jumps, and reads half as fast (4-bit rows of 2,048 weights from memory, one thread of a Zen
/// 3, 2026-11: 9 instead of 18 GB/s).
pub(super) struct Runs {
    n_runs: usize,
    run_len: usize,
    n_rows: usize,
}

impl Runs {
    /// Divides the same number of rows of each of `W` weights.
    pub(super) fn new<const W: usize>(n_rows: usize) -> Self {
        let n_runs = ROWS / W;
        Self { n_runs, run_len: n_rows / n_runs, n_rows }
    }

    /// Some rows of each run or, after all runs, the rows that are left over.
    pub(super) fn block(&self, idx: usize) -> Option<RowBlock> {
        let Self { n_runs, run_len, n_rows } = *self;
        let (len, n_in_runs) = (BLOCK_ROWS / n_runs, n_runs * run_len);
        let from = idx * len;
        if from < run_len {
            Some(RowBlock { from, n: len.min(run_len - from), n_runs, run_len })
        } else if idx == run_len.div_ceil(len) && n_in_runs < n_rows {
            Some(RowBlock { from: n_in_runs, n: 1, n_runs: n_rows - n_in_runs, run_len: 1 })
        } else {
            None
        }
    }
}

/// The rows `from..from + n` of each run.
pub(super) struct RowBlock {
    from: usize,
    pub(super) n: usize,
    pub(super) n_runs: usize,
    run_len: usize,
}

impl RowBlock {
    /// The first row of a run. Past the last run it is that of the last run.
    pub(super) fn first(&self, run: usize) -> usize {
        self.from + run.min(self.n_runs - 1) * self.run_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_row_once() {
        for n_rows in (0..70).chain([768, 2051]) {
            for runs in [Runs::new::<1>(n_rows), Runs::new::<2>(n_rows)] {
                let blocks: Vec<_> = (0..).map_while(|idx| runs.block(idx)).collect();
                let mut rows: Vec<_> = blocks
                    .iter()
                    .flat_map(|b| (0..b.n_runs).flat_map(|run| b.first(run)..b.first(run) + b.n))
                    .collect();
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..n_rows), "{n_rows} rows");
            }
        }
    }

    #[test]
    fn equal_members_get_equal_chunks_of_few_tiles() {
        // 24 tiles. With 21 large and 3 small ones, one of two members would get 10 and 1, and the other 11 and 2.
        let chunks = Chunks { n_rows: 768, unit: 32, row_bytes: 1024, n_members: 2 };
        let lens: Vec<_> = (0..4).map(|idx| chunks.get(idx).unwrap().len() / 32).collect();
        assert_eq!(lens, [10, 10, 2, 2]);
    }

    #[test]
    fn chunks_cover_every_row_once_and_begin_at_units() {
        for (n_rows, unit, n_members) in
            [(1, 4, 2), (4, 4, 3), (65, 16, 1), (65, 16, 2), (768, 4, 2), (2048, 32, 16)]
        {
            for row_bytes in [1, 1024] {
                let chunks = Chunks { n_rows, unit, row_bytes, n_members };
                let mut at = 0;
                for idx in 0..2 * n_members {
                    let rows = chunks.get(idx).unwrap();
                    assert_eq!(rows.start, at, "{n_rows} rows, chunk {idx}");
                    assert!(rows.start.is_multiple_of(unit) || rows.is_empty());
                    at = rows.end;
                }
                assert_eq!(at, n_rows);
                assert_eq!(chunks.get(2 * n_members), None);
            }
        }
    }
}

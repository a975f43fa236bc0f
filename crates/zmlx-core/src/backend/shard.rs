//! Which part of a model a process holds.

use std::ops::Range;

/// One of `n_ranks` processes that compute one model together, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number, below `n_ranks`.
    pub rank: usize,
    /// Number of processes.
    pub n_ranks: usize,
}

impl Shard {
    /// The only process: it holds everything.
    pub const WHOLE: Self = Self { rank: 0, n_ranks: 1 };

    /// True for the only process.
    pub fn is_whole(self) -> bool {
        self.n_ranks == 1
    }

    /// The process's part of `n` things in a row: as many for each as can be, which is none where there are too few.
    pub fn range(self, n: usize) -> Range<usize> {
        self.rank * n / self.n_ranks..(self.rank + 1) * n / self.n_ranks
    }

    /// Columns of each process's part of `n` columns that are gathered afterwards ([`Backend::gather_columns`]), but for the last
    /// part, which may be smaller. A multiple of eight, because kernels compute so many rows at once.
    ///
    /// [`Backend::gather_columns`]: crate::Backend::gather_columns
    pub fn block(self, n: usize) -> usize {
        n.div_ceil(self.n_ranks).next_multiple_of(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let shard = |rank| Shard { rank, n_ranks: 4 };
        assert_eq!([0, 1, 2, 3].map(|rank| shard(rank).range(10)), [0..2, 2..5, 5..7, 7..10]);
        assert_eq!([3072, 300, 1].map(|n| shard(0).block(n)), [768, 80, 8]);
    }
}

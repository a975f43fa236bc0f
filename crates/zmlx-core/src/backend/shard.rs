//! Which part of a model a process holds.

use std::ops::Range;

/// One of `n_ranks` processes that compute one model together (tensor parallelism), counted from 0.
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
}

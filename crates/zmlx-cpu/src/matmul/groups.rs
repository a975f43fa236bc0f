//! Which rows of activations are multiplied by which matrix of a bank.

use std::ops::Range;

/// Which pairs belong to which matrix: `pairs[range]` for each matrix that occurs, in ascending order.
#[derive(Default)]
pub(crate) struct Groups {
    pub(super) mats: Vec<(usize, Range<usize>)>,
    pub(super) pairs: Vec<u32>,
    counts: Vec<u32>,
}

impl Groups {
    /// Assigns every pair to matrix 0.
    pub(crate) fn all(&mut self, n_pairs: usize) {
        self.mats.clear();
        if n_pairs > 0 {
            self.mats.push((0, 0..n_pairs));
        }
        self.pairs.clear();
        self.pairs.extend(0..n_pairs as u32);
    }

    /// Assigns pair `p` to matrix `mat_of(p)`, which is below `n_mats`. This is a stable counting sort.
    pub(crate) fn by_mat(&mut self, n_pairs: usize, n_mats: usize, mat_of: impl Fn(usize) -> usize) {
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

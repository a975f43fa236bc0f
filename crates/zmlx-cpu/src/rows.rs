//! Ops that work row by row, on the team if that is faster.

use std::ops::Range;

use super::sync_ptr::SyncPtr;
use super::team::{Kind, Work};
use super::{CpuBackend, CpuTensor, lock};
use zmlx_core::Result;
use zmlx_core::check::ensure;

/// Elementwise work on fewer values than this stays on the calling thread, because waking the team costs more.
const PARALLEL_MIN: usize = 32 * 1024;

impl CpuBackend {
    /// Calls `f` for shares of `n_rows` rows of `width` values, on the team if there is enough work.
    pub(super) fn for_rows(&self, n_rows: usize, width: usize, f: impl Fn(Range<usize>) + Sync) {
        if n_rows * width < PARALLEL_MIN {
            f(0..n_rows);
        } else {
            let work = Work::new(Kind::Rows, n_rows * width);
            lock(&self.team).run(work, &|m| f(m.share(n_rows, 1)));
        }
    }

    /// A tensor whose last dimension is `width` and whose other dimensions are those of `x`, filled row by row:
    /// `f(row, x[row], y[row])`.
    pub(super) fn map_rows(
        &self,
        op: &'static str,
        x: &CpuTensor,
        width: usize,
        f: impl Fn(usize, &[f32], &mut [f32]) + Sync,
    ) -> Result<CpuTensor> {
        let last = x.shape.last();
        ensure(last > 0 && width > 0, op, "x", "no zero dimension", x)?;
        let shape = x.shape.with_last(op, width)?;
        let mut y = self.floats.take(op, shape.len())?;
        let out = SyncPtr::new(&mut y);
        self.for_rows(x.shape.n_rows(), last.max(width), |rows| {
            self.level.vectorize(
                #[inline(always)]
                || {
                    for r in rows.clone() {
                        // SAFETY: row r of the output is in one share only.
                        f(r, &x.values()[r * last..][..last], unsafe { out.slice(r * width, width) });
                    }
                },
            );
        });
        Ok(CpuTensor::new(shape, y))
    }
}

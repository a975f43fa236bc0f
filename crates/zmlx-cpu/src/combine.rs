//! The down projections of chosen experts, weighted and summed.

use std::ops::Range;

use zmlx_core::check::ensure;
use zmlx_core::{Down, Result};

use super::matmul::{Product, Results};
use super::pool::Shape;
use super::products::Biases;
use super::sync_ptr::SyncPtr;
use super::{CpuBackend, CpuIndices, CpuTensor, CpuWeight, lock, simd};

impl CpuBackend {
    /// `gather_qmm_combine`. The sum goes over the experts in ascending order, so that it does not depend on the batch.
    pub(super) fn combine(
        &self,
        x: &CpuTensor,
        down: Down<'_, CpuWeight>,
        experts: &CpuIndices,
        weights: &CpuTensor,
    ) -> Result<CpuTensor> {
        const OP: &str = "gather_qmm_combine";
        let Down { weight: down, bias } = down;
        let bias = bias.map(|bias| Biases::new(OP, bias, down)).transpose()?;
        let (n_tokens, top_k) = Self::check_experts(OP, x, down, experts)?;
        ensure(x.dims().len() == 3, OP, "x", "[n, top_k, n_in]", x)?;
        ensure(
            weights.dims() == [n_tokens, top_k],
            OP,
            "weights",
            format_args!("[{n_tokens}, {top_k}]"),
            weights,
        )?;
        let n_out = down.n_out();
        let shape = Shape::new(OP, &[n_tokens, n_out])?;
        let mut groups = lock(&self.groups);
        groups.by_mat(n_tokens * top_k, down.n_mats(), |p| experts.values()[p] as usize);
        let mut y = self.floats.take(OP, shape.len())?;
        let out = SyncPtr::new(&mut y);
        let product = Product { op: OP, weights: [down], x: x.values(), pairs_per_x: 1 };
        let clear = |rows: Range<usize>| {
            for t in 0..n_tokens {
                // SAFETY: these rows are this member's.
                unsafe { out.slice(t * n_out + rows.start, rows.len()) }.fill(0.0);
            }
        };
        let add = |results: &Results<'_, 1>| {
            self.level.vectorize(
                #[inline(always)]
                || {
                    results.for_each(
                        #[inline(always)]
                        |pair, [values]| {
                            let at = pair / top_k * n_out + results.rows.start;
                            // SAFETY: all slots of a row are summed by one member.
                            let out = unsafe { out.slice(at, values.len()) };
                            let weight = weights.values()[pair];
                            for (y, v) in out.iter_mut().zip(values) {
                                *y += weight * v;
                            }
                        },
                    );
                },
            );
        };
        // The sums are far apart in memory, and those of other tokens were touched since.
        let fetch = |rows: &Range<usize>, pairs: &[u32]| {
            for pair in pairs {
                let at = *pair as usize / top_k * n_out + rows.start;
                // SAFETY: these elements are this member's.
                let sums = unsafe { out.slice(at, rows.len()) };
                sums.chunks(16).for_each(|line| simd::prefetch(line.as_ptr().cast()));
            }
        };
        let Some(bias) = bias else {
            self.product(&product, &groups, clear, fetch, add)?;
            return Ok(CpuTensor::new(shape, y));
        };
        let add_biased = |results: &Results<'_, 1>| {
            self.level.vectorize(
                #[inline(always)]
                || {
                    results.for_each(
                        #[inline(always)]
                        |pair, [values]| {
                            let first_row = results.rows.start;
                            // SAFETY: all slots of a row are summed by one member.
                            let out = unsafe { out.slice(pair / top_k * n_out + first_row, values.len()) };
                            let (weight, mat) = (weights.values()[pair], experts.values()[pair] as usize);
                            let bias = bias.rows(mat, first_row, values.len());
                            for ((y, v), b) in out.iter_mut().zip(values).zip(bias) {
                                *y += weight * (v + b);
                            }
                        },
                    );
                },
            );
        };
        self.product(&product, &groups, clear, fetch, add_biased)?;
        Ok(CpuTensor::new(shape, y))
    }
}

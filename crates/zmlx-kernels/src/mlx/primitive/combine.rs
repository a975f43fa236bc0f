//! Down projection, routing weights and the sum over slots.

use mlx_rs::Array;

use super::{Call, check_float, check_indices, check_width, f32_bank, f32_of, rows, shape_of};
use crate::check::ensure;
use crate::metal::Numerics;
use crate::mlx::runtime::fault;
use crate::mlx::{MlxBackend, MlxIndices, MlxWeight, QuantizedExperts};
use crate::{Down, Result, stock};

const OP: &str = "gather_qmm_combine";

/// [`super::gather_qmm_combine`].
pub(super) struct Combine<'a> {
    backend: MlxBackend,
    /// `[tokens, top_k, K]`.
    x: Array,
    down: &'a QuantizedExperts,
    experts: MlxIndices,
    /// `[tokens, top_k]`.
    weights: Array,
    shape: Vec<i32>,
}

impl<'a> Combine<'a> {
    pub(super) fn new(
        x: &Array,
        down: &'a QuantizedExperts,
        rhs_indices: &Array,
        weights: &Array,
        numerics: Numerics,
    ) -> Result<Self> {
        let backend = MlxBackend::new(numerics)?;
        check_width(OP, x, down.n_in(), 2)?;
        let slots = &x.shape()[..x.ndim() - 1];
        ensure(
            rhs_indices.shape() == slots,
            OP,
            "rhs_indices",
            format_args!("{slots:?}"),
            rhs_indices.shape(),
        )?;
        ensure(weights.shape() == slots, OP, "weights", format_args!("{slots:?}"), weights.shape())?;
        check_float(OP, "weights", weights)?;
        let experts = rows(OP, &check_indices(OP, "rhs_indices", rhs_indices, down.n_experts())?)?;
        let top_k = slots[slots.len() - 1];
        Ok(Self {
            backend,
            x: x.reshape(&[-1, top_k, down.n_in() as i32]).map_err(fault(OP))?,
            down,
            experts: MlxIndices::computed(OP, experts, down.n_experts())?,
            weights: rows(OP, weights)?,
            shape: shape_of(x, 2, &[down.n_out()]),
        })
    }
}

impl Call<1> for Combine<'_> {
    const KERNEL: &'static str = "zmlx_gather_qmm_combine";

    fn backend(&self) -> &MlxBackend {
        &self.backend
    }

    fn fused(&self) -> Result<Option<[Array; 1]>> {
        let down = MlxWeight::from_experts(self.down.clone())?;
        let y = self.backend.fused_gather_qmm_combine(&self.x, &down, &self.experts, &self.weights)?;
        y.map(|y| y.reshape(&self.shape).map(|y| [y]).map_err(fault(OP))).transpose()
    }

    fn composed(&self) -> Result<[Array; 1]> {
        let combine = |x: &Array, down: QuantizedExperts, weights: &Array| {
            let down = MlxWeight::from_experts(down)?;
            stock::gather_qmm_combine(&self.backend, x, Down::plain(&down), &self.experts, weights)
        };
        let y = match self.backend.numerics() {
            Numerics::Exact => combine(&self.x, self.down.clone(), &self.weights)?,
            Numerics::Accurate => {
                let (x, weights) = (f32_of(OP, &self.x)?, f32_of(OP, &self.weights)?);
                let y = combine(&x, f32_bank(OP, self.down)?, &weights)?;
                y.as_dtype(self.x.dtype()).map_err(fault(OP))?
            }
        };
        Ok([y.reshape(&self.shape).map_err(fault(OP))?])
    }
}

//! The routers.

use mlx_rs::Array;

use super::{Call, check_float, f32_of, rows, shape_of};
use crate::check::ensure;
use crate::metal::Numerics;
use crate::mlx::runtime::fault;
use crate::mlx::{MlxBackend, MlxIndices, MlxWeight};
use crate::{NoauxTc, Result, SoftmaxTopK, stock};

const SOFTMAX: &str = "route_softmax_top_k";
const NOAUX_TC: &str = "route_noaux_tc";

/// Scores of experts, `[tokens, E]`, and the shape that they came in.
struct Logits {
    rows: Array,
    shape: Vec<i32>,
}

impl Logits {
    fn new(op: &'static str, logits: &Array, top_k: usize) -> Result<Self> {
        check_float(op, "logits", logits)?;
        ensure(logits.ndim() > 0, op, "logits", "one dimension or more", logits.shape())?;
        let n_experts = logits.shape()[logits.ndim() - 1];
        let fits = (1..=n_experts as usize).contains(&top_k);
        ensure(fits, op, "top_k", format_args!("1 to {n_experts}"), top_k)?;
        Ok(Self { rows: rows(op, logits)?, shape: shape_of(logits, 1, &[top_k]) })
    }

    /// What the composition takes: in accurate numerics f32.
    fn composed(&self, op: &'static str, numerics: Numerics) -> Result<Array> {
        match numerics {
            Numerics::Exact => Ok(self.rows.clone()),
            Numerics::Accurate => f32_of(op, &self.rows),
        }
    }

    fn shaped(&self, op: &'static str, (experts, weights): (MlxIndices, Array)) -> Result<[Array; 2]> {
        let shape = |a: &Array| a.reshape(&self.shape).map_err(fault(op));
        Ok([shape(experts.array())?, shape(&weights)?])
    }
}

/// [`super::route_softmax_top_k`].
pub(super) struct SoftmaxRoute {
    backend: MlxBackend,
    logits: Logits,
    settings: SoftmaxTopK,
}

impl SoftmaxRoute {
    pub(super) fn new(logits: &Array, settings: &SoftmaxTopK, numerics: Numerics) -> Result<Self> {
        let backend = MlxBackend::new(numerics)?;
        Ok(Self { backend, logits: Logits::new(SOFTMAX, logits, settings.top_k)?, settings: *settings })
    }
}

impl Call<2> for SoftmaxRoute {
    const KERNEL: &'static str = "zmlx_route_softmax_top_k";

    fn backend(&self) -> &MlxBackend {
        &self.backend
    }

    fn fused(&self) -> Result<Option<[Array; 2]>> {
        let routing = self.backend.fused_route_softmax_top_k(&self.logits.rows, &self.settings)?;
        routing.map(|r| self.logits.shaped(SOFTMAX, r)).transpose()
    }

    fn composed(&self) -> Result<[Array; 2]> {
        let logits = self.logits.composed(SOFTMAX, self.backend.numerics())?;
        let routing = stock::route_softmax_top_k(&self.backend, &logits, &self.settings)?;
        self.logits.shaped(SOFTMAX, routing)
    }
}

/// [`super::route_noaux_tc`].
pub(super) struct NoauxTcRoute {
    backend: MlxBackend,
    logits: Logits,
    bias: MlxWeight,
    settings: NoauxTc,
}

impl NoauxTcRoute {
    pub(super) fn new(logits: &Array, bias: &Array, settings: &NoauxTc, numerics: Numerics) -> Result<Self> {
        let backend = MlxBackend::new(numerics)?;
        let logits = Logits::new(NOAUX_TC, logits, settings.top_k)?;
        let n_experts = logits.rows.shape()[1];
        check_float(NOAUX_TC, "bias", bias)?;
        ensure(bias.shape() == [n_experts], NOAUX_TC, "bias", format_args!("[{n_experts}]"), bias.shape())?;
        let bias = MlxWeight::from_dense(bias.clone())?;
        Ok(Self { backend, logits, bias, settings: *settings })
    }
}

impl Call<2> for NoauxTcRoute {
    const KERNEL: &'static str = "zmlx_route_noaux_tc";

    fn backend(&self) -> &MlxBackend {
        &self.backend
    }

    fn fused(&self) -> Result<Option<[Array; 2]>> {
        let routing = self.backend.fused_route_noaux_tc(&self.logits.rows, &self.bias, &self.settings)?;
        routing.map(|r| self.logits.shaped(NOAUX_TC, r)).transpose()
    }

    fn composed(&self) -> Result<[Array; 2]> {
        let logits = self.logits.composed(NOAUX_TC, self.backend.numerics())?;
        let routing = stock::route_noaux_tc(&self.backend, &logits, &self.bias, &self.settings)?;
        self.logits.shaped(NOAUX_TC, routing)
    }
}

//! Layers with a state: checks of arguments.

use zmlx_core::{CacheKind, ConvActivation, ConvWeights, DeltaInputs, DeltaWeights, Result};

use super::{CudaBackend, precondition};
use crate::cache::CudaCache;
use crate::recurrent;
use crate::step::CudaStep;
use crate::tensor::{CudaTensor, ensure};
use crate::weight::CudaWeight;

impl CudaBackend {
    /// [`Backend::causal_conv`](zmlx_core::Backend::causal_conv).
    pub(super) fn convolve(
        &self,
        x: &CudaTensor,
        weights: ConvWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        activation: ConvActivation,
    ) -> Result<CudaTensor> {
        const OP: &str = "causal_conv";
        let cache = cache.states(OP)?;
        let (n_channels, kernel) = match cache.kind() {
            CacheKind::Conv { n_channels, kernel } => (n_channels, kernel),
            CacheKind::Delta(dims) => (dims.n_channels(), dims.kernel),
            kind => return Err(precondition(OP, "cache", "a state", &kind)),
        };
        ensure(x.dims() == [x.dims()[0], n_channels], OP, "x", format_args!("[n, {n_channels}]"), x)?;
        step.0.check(OP, "x", x)?;
        let taps = weights.taps.vector(OP, kernel * n_channels)?;
        let bias = weights.bias.map(|bias| bias.vector(OP, n_channels)).transpose()?;
        cache.begin(OP, &step.0.spans)?;
        let sizes = (n_channels, kernel);
        recurrent::causal_conv(&self.device, x, (&taps, bias.as_ref()), sizes, activation, (cache, &step.0))
    }

    /// [`Backend::gated_delta`](zmlx_core::Backend::gated_delta).
    pub(super) fn delta_rule(
        &self,
        inputs: DeltaInputs<'_, CudaTensor>,
        weights: DeltaWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
    ) -> Result<CudaTensor> {
        const OP: &str = "gated_delta";
        let cache = cache.states(OP)?;
        let CacheKind::Delta(dims) = cache.kind() else {
            return Err(precondition(OP, "cache", "the state of a delta rule", &cache.kind()));
        };
        let DeltaInputs { qkv, a, b } = inputs;
        let (n, n_channels, n_heads) = (qkv.dims()[0], dims.n_channels(), dims.n_v_heads);
        ensure(qkv.dims() == [n, n_channels], OP, "qkv", format_args!("[n, {n_channels}]"), qkv)?;
        for (what, x) in [("a", a), ("b", b)] {
            ensure(x.dims() == [n, n_heads], OP, what, format_args!("[{n}, {n_heads}]"), x)?;
        }
        step.0.check(OP, "qkv", qkv)?;
        let a_log = weights.a_log.vector(OP, n_heads)?;
        let dt_bias = weights.dt_bias.vector(OP, n_heads)?;
        cache.begin(OP, &step.0.spans)?;
        recurrent::gated_delta(&self.device, [qkv, a, b], [&a_log, &dt_bias], dims, (cache, &step.0))
    }
}

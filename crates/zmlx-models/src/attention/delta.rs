//! Linear attention by the gated delta rule.

use zmlx_kernels::{
    Backend, ConvActivation, ConvWeights, DeltaDims, DeltaInputs, DeltaWeights, Fusion, Result,
};

use super::Rows;

/// `out( norm(delta(conv(qkv(x)), a(x), b(x))) · silu(z(x)) )`.
#[derive(Debug)]
pub(crate) struct Delta<W> {
    pub(crate) dims: DeltaDims,
    pub(crate) eps: f32,
    /// The projections to queries, keys and values; to the gate; to the write strength; and to the decay.
    pub(crate) projections: [W; 4],
    /// The rows of all projections, for one product.
    pub(crate) all: W,
    /// The taps of the convolution.
    pub(crate) taps: W,
    /// `[n_v_heads]`.
    pub(crate) a_log: W,
    /// `[n_v_heads]`.
    pub(crate) dt_bias: W,
    /// `[v_dim]`.
    pub(crate) norm: W,
    /// `[hidden, n_v_heads · v_dim]`.
    pub(crate) out: W,
}

impl<W> Delta<W> {
    pub(super) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&mut B::Cache, &B::Step),
        rows: Rows,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        let DeltaDims { n_v_heads, v_dim, .. } = self.dims;
        let (n_tokens, n_channels, n_values) = (b.n_tokens(step), self.dims.n_channels(), n_v_heads * v_dim);
        let [qkv, z, strength, decay] = if fusion.qkv.is_on() {
            b.linear_parts(x, &self.all, [n_channels, n_values, n_v_heads, n_v_heads])?.map(Ok)
        } else {
            self.projections.each_ref().map(|weight| b.linear(x, weight))
        };
        let taps = ConvWeights { taps: &self.taps, bias: None };
        let qkv = b.causal_conv(&qkv?, taps, cache, step, ConvActivation::Silu)?;
        let inputs = DeltaInputs { qkv: &qkv, a: &decay?, b: &strength? };
        let weights = DeltaWeights { a_log: &self.a_log, dt_bias: &self.dt_bias };
        let y = rows.of(b, b.gated_delta(inputs, weights, cache, step)?, step)?;
        let z = rows.of(b, b.reshape(&z?, &[n_tokens, n_v_heads, v_dim])?, step)?;
        let y = b.rms_norm_gated(&y, &z, &self.norm, self.eps)?;
        let n_rows = b.shape(&y).first().copied().unwrap_or(0);
        b.linear(&b.reshape(&y, &[n_rows, n_values])?, &self.out)
    }
}

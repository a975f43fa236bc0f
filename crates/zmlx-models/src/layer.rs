//! The weights of a layer on a backend.

use zmlx_kernels::{Activation, Backend, Result};
use zmlx_moe::{Mlp, MoeBlock};

use crate::attention::Attention;

/// The part of a layer that follows attention.
#[derive(Debug)]
pub(crate) enum FeedForward<W> {
    /// One MLP for every token.
    Dense(Mlp<W>),
    /// A mixture of experts.
    Moe(MoeBlock<W>),
    /// An MLP and a mixture of experts, side by side.
    Beside(Box<Beside<W>>),
}

/// `mlp_norm(mlp(x)) + moe_norm(experts(moe_input_norm(h)))`, where h is the residual stream and x its norm.
#[derive(Debug)]
pub(crate) struct Beside<W> {
    pub(crate) mlp: Mlp<W>,
    pub(crate) mlp_norm: W,
    pub(crate) moe: MoeBlock<W>,
    pub(crate) moe_input_norm: W,
    pub(crate) moe_norm: W,
}

/// Parts of a layer that only some families have.
#[derive(Debug)]
pub(crate) struct Extras<W> {
    pub(crate) mixer_norm: Option<W>,
    pub(crate) feed_forward_norm: Option<W>,
    pub(crate) per_layer_input: Option<PerLayerInput<W>>,
    pub(crate) factor: Option<f32>,
}

impl<W> Extras<W> {
    /// True if nothing comes between the layer's last residual sum and the next norm.
    pub(crate) fn ends_with_sum(&self) -> bool {
        self.per_layer_input.is_none() && self.factor.is_none()
    }
}

/// `norm(projection(gelu(gate(h)) · input))`.
#[derive(Debug)]
pub(crate) struct PerLayerInput<W> {
    pub(crate) gate: W,
    pub(crate) projection: W,
    pub(crate) norm: W,
}

impl<W> PerLayerInput<W> {
    /// **Shapes** h `[n, hidden]`, input `[n, width]` → as h.
    pub(crate) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        h: &B::Tensor,
        input: &B::Tensor,
        eps: f32,
    ) -> Result<B::Tensor> {
        let gated = b.gated(&b.linear(h, &self.gate)?, input, Activation::GeGlu)?;
        b.rms_norm(&b.linear(&gated, &self.projection)?, &self.norm, eps)
    }
}

/// Computes each layer's own embedding of the tokens.
#[derive(Debug)]
pub(crate) struct PerLayerInputs<W> {
    pub(crate) width: usize,
    pub(crate) table: W,
    pub(crate) projection: W,
    pub(crate) norm: W,
}

impl<W> PerLayerInputs<W> {
    /// **Shapes** ids `[n]`, their embeddings `[n, hidden]` → `[n, n_layers · width]`.
    pub(crate) fn of<B: Backend<Weight = W>>(
        &self,
        b: &B,
        ids: &B::Indices,
        embeddings: &B::Tensor,
        eps: f32,
    ) -> Result<B::Tensor> {
        let size = |x: &B::Tensor| {
            let shape = b.shape(x);
            (shape.first().copied().unwrap_or(0), shape.last().copied().unwrap_or(0))
        };
        let projected = b.linear(embeddings, &self.projection)?;
        let ((n, hidden), (_, all)) = (size(embeddings), size(&projected));
        let projected = b.scale(&projected, (hidden as f32).sqrt().recip())?;
        let by_layer = b.reshape(&projected, &[n, all / self.width, self.width])?;
        let normed = b.reshape(&b.rms_norm(&by_layer, &self.norm, eps)?, &[n, all])?;
        let of_table = b.scale(&b.embed(&self.table, ids)?, (self.width as f32).sqrt())?;
        b.scale(&b.add(&normed, &of_table)?, std::f32::consts::FRAC_1_SQRT_2)
    }
}

/// `h = x + attention(norm(x)); y = h + feed_forward(norm(h))`, with the extras.
#[derive(Debug)]
pub(crate) struct Layer<W> {
    pub(crate) input_norm: W,
    pub(crate) attention: Attention<W>,
    pub(crate) post_norm: W,
    pub(crate) feed_forward: FeedForward<W>,
    pub(crate) extras: Extras<W>,
}

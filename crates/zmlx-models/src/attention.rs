//! The kinds of attention, and the blocks that can take its place.

mod delta;
mod gqa;
mod mla;
mod shared;
mod short_conv;

pub(crate) use delta::Delta;
pub(crate) use gqa::{Gqa, HeadNorm};
pub(crate) use mla::{Mla, QueryProjection};
pub(crate) use shared::SharedGqa;
pub(crate) use short_conv::ShortConv;

use zmlx_kernels::{Backend, Fusion, Result};

/// A layer's attention.
#[derive(Debug)]
pub(crate) enum Attention<W> {
    /// Grouped queries over keys and values.
    Gqa(Gqa<W>),
    /// Multi-head latent attention.
    Mla(Mla<W>),
    /// Grouped queries over another layer's keys and values.
    Shared(SharedGqa<W>),
    /// Linear attention by the gated delta rule.
    Delta(Delta<W>),
    /// A short convolution between two gates.
    ShortConv(ShortConv<W>),
}

impl<W> Attention<W> {
    /// **Shapes** x `[n, hidden]`, normed → `[n, hidden]`, or only the wanted `rows`. The cache is the layer's own, or
    /// that of the layer whose keys and values this layer shares.
    pub(crate) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&mut B::Cache, &B::Step),
        rows: Rows,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        match self {
            Self::Gqa(a) => a.forward(b, x, (cache, step), rows, fusion),
            Self::Mla(a) => a.forward(b, x, (cache, step), rows, fusion),
            Self::Shared(a) => a.forward(b, x, (cache, step), rows),
            Self::Delta(a) => a.forward(b, x, (cache, step), rows, fusion),
            Self::ShortConv(a) => a.forward(b, x, (cache, step), rows, fusion),
        }
    }
}

/// The rows of a step that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// All rows.
    All,
    /// The rows whose logits are wanted.
    Wanted,
}

impl Rows {
    /// These rows of a tensor that has a row for each token of the step.
    pub(crate) fn of<B: Backend>(self, b: &B, x: B::Tensor, step: &B::Step) -> Result<B::Tensor> {
        match self {
            Self::All => Ok(x),
            Self::Wanted => b.take_logit_rows(&x, step),
        }
    }
}

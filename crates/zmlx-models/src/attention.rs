//! The two kinds of attention.

mod gqa;
mod mla;

pub(crate) use gqa::Gqa;
pub(crate) use mla::{Mla, QueryProjection};

use zmlx_kernels::{Backend, Fusion, KvLayout, Result, Span};

/// A layer's attention.
#[derive(Debug)]
pub(crate) enum Attention<W> {
    /// Grouped queries over keys and values.
    Gqa(Gqa<W>),
    /// Multi-head latent attention.
    Mla(Mla<W>),
}

impl<W> Attention<W> {
    /// What the layer's cache holds.
    pub(crate) fn kv_layout(&self) -> KvLayout {
        match self {
            Self::Gqa(a) => a.kv_layout(),
            Self::Mla(a) => a.kv_layout(),
        }
    }

    /// **Shapes** x `[n, hidden]`, normed → `[n, hidden]`, or only the `wanted` rows.
    pub(crate) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, spans): (&mut B::KvCache, &[Span]),
        wanted: Option<&[usize]>,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        match self {
            Self::Gqa(a) => a.forward(b, x, (cache, spans), wanted, fusion),
            Self::Mla(a) => a.forward(b, x, (cache, spans), wanted, fusion),
        }
    }
}

/// These rows of a tensor, or all.
pub(crate) fn take_rows<B: Backend>(b: &B, x: B::Tensor, rows: Option<&[usize]>) -> Result<B::Tensor> {
    match rows {
        Some(rows) => b.take_rows(&x, rows),
        None => Ok(x),
    }
}

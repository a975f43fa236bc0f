//! A layer's weights on a backend.

use zmlx_moe::{Mlp, MoeBlock};

use crate::attention::Attention;

/// What follows attention in a layer.
#[derive(Debug)]
pub(crate) enum FeedForward<W> {
    /// One MLP for every token.
    Dense(Mlp<W>),
    /// A mixture of experts.
    Moe(MoeBlock<W>),
}

/// `h = x + attention(norm(x)); y = h + feed_forward(norm(h))`.
#[derive(Debug)]
pub(crate) struct Layer<W> {
    pub(crate) input_norm: W,
    pub(crate) attention: Attention<W>,
    pub(crate) post_norm: W,
    pub(crate) feed_forward: FeedForward<W>,
}

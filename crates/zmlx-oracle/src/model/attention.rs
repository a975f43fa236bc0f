//! An attention module of any kind.

use candle_core::Tensor;

use super::delta::Delta;
use super::gqa::Gqa;
use super::layers::KvCache;
use super::mla::Mla;
use super::short_conv::ShortConv;
use crate::Result;
use crate::checkpoint::{Checkpoint, KvBSplit};
use crate::plan::AttentionPlan;

#[derive(Debug)]
pub(super) enum AttentionLayer {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
    Delta(Box<Delta>),
    ShortConv(Box<ShortConv>),
}

impl AttentionLayer {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        layer: &str,
        (plan, hidden, eps): (&AttentionPlan, usize, f64),
        split: KvBSplit,
    ) -> Result<Self> {
        let path = match plan {
            AttentionPlan::Gqa(_) | AttentionPlan::Mla(_) => format!("{layer}.self_attn"),
            AttentionPlan::Delta(_) => format!("{layer}.linear_attn"),
            AttentionPlan::ShortConv(_) => format!("{layer}.conv"),
        };
        Ok(match plan {
            AttentionPlan::Delta(plan) => {
                Self::Delta(Box::new(Delta::load(checkpoint, &path, (plan, hidden, eps))?))
            }
            AttentionPlan::ShortConv(kernel) => {
                Self::ShortConv(Box::new(ShortConv::load(checkpoint, &path, (*kernel, hidden))?))
            }
            AttentionPlan::Gqa(plan) => {
                Self::Gqa(Box::new(Gqa::load(checkpoint, &path, (plan, hidden, eps))?))
            }
            AttentionPlan::Mla(plan) => {
                Self::Mla(Box::new(Mla::load(checkpoint, &path, (plan, hidden), split)?))
            }
        })
    }

    /// `x [n_tokens, hidden]`, already normed, → `[n_tokens, hidden]`. The cache grows by `n_tokens`.
    pub(super) fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        match self {
            Self::Gqa(gqa) => gqa.forward(x, positions, cache),
            Self::Mla(mla) => mla.forward(x, positions, cache),
            Self::Delta(delta) => delta.forward(x, positions.len(), cache),
            Self::ShortConv(conv) => conv.forward(x, positions.len(), cache),
        }
    }
}

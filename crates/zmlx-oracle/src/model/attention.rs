//! An attention module of either kind: both end in [`crate::ops::attention`] over cached keys and values.

use candle_core::Tensor;

use super::gqa::Gqa;
use super::layers::KvCache;
use super::mla::Mla;
use crate::Result;
use crate::checkpoint::{Checkpoint, KvBSplit};
use crate::plan::AttentionPlan;

#[derive(Debug)]
pub(super) enum AttentionLayer {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
}

impl AttentionLayer {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (plan, hidden, eps): (&AttentionPlan, usize, f64),
        split: KvBSplit,
    ) -> Result<Self> {
        Ok(match plan {
            AttentionPlan::Gqa(plan) => {
                Self::Gqa(Box::new(Gqa::load(checkpoint, path, (plan, hidden, eps))?))
            }
            AttentionPlan::Mla(plan) => {
                Self::Mla(Box::new(Mla::load(checkpoint, path, (plan, hidden), split)?))
            }
        })
    }

    /// `x [n_tokens, hidden]`, already normed, → `[n_tokens, hidden]`; the cache grows by `n_tokens`.
    pub(super) fn forward(&self, x: &Tensor, positions: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        match self {
            Self::Gqa(gqa) => gqa.forward(x, positions, cache),
            Self::Mla(mla) => mla.forward(x, positions, cache),
        }
    }
}

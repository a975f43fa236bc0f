//! `qwen3_next`: Qwen3-Next-80B-A3B and Qwen3-Coder-Next. They have linear attention by the gated delta rule, gated
//! attention in every fourth layer, and a gated shared expert.

use super::keys::{DeltaLayout, HybridFamily, SparseKeys, hybrid};
use crate::Result;
use crate::architecture::Architecture;
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen3_next";

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    hybrid(
        f,
        &HybridFamily {
            model_type: MODEL_TYPE,
            layout: DeltaLayout::ByHead,
            norm_topk_prob: false,
            sparse_keys: SparseKeys::Read,
        },
    )
}

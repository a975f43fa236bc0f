//! `qwen3_5_moe`: Qwen3.5 and 3.6 with experts, 35B-A3B and 122B. They have linear attention by the gated delta rule,
//! gated attention in every fourth layer, and a gated shared expert.

use super::keys::{DeltaLayout, HybridFamily, SparseKeys, hybrid};
use crate::Result;
use crate::architecture::Architecture;
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen3_5_moe";

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    hybrid(
        f,
        &HybridFamily {
            model_type: MODEL_TYPE,
            layout: DeltaLayout::Apart,
            norm_topk_prob: true,
            sparse_keys: SparseKeys::None,
        },
    )
}

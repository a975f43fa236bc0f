//! `qwen3_5`: dense Qwen3.5 and 3.6, 0.8B to 27B, and Qwen3.8. They have linear attention by the gated delta rule, and
//! gated attention in every fourth layer.

use super::keys::{DeltaLayout, HybridFamily, SparseKeys, hybrid};
use crate::Result;
use crate::architecture::Architecture;
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen3_5";

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

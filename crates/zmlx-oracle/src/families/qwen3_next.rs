//! `qwen3_next`: as `qwen3_5_moe`, with the projections of linear attention head by head and layers without experts.

use serde::Deserialize;
use serde_json::Value;

use super::hybrid::HybridConfig;
use super::{read, rules};
use crate::Result;
use crate::plan::{DeltaProjections, Plan};

#[derive(Deserialize)]
struct Config {
    #[serde(default = "rules::one")]
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    #[serde(flatten)]
    hybrid: HybridConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let Config { decoder_sparse_step, mlp_only_layers, hybrid } = read(config)?;
    rules::check(&[("decoder_sparse_step", decoder_sparse_step > 0)])?;
    let has_experts = |layer_idx: usize| {
        !mlp_only_layers.contains(&layer_idx) && (layer_idx + 1).is_multiple_of(decoder_sparse_step)
    };
    hybrid.plan(DeltaProjections::ByHead, false, has_experts)
}

//! `qwen3_5` and `qwen3_5_moe`: three layers of linear attention before each of gated attention, dense or with experts.

use serde_json::Value;

use super::hybrid::HybridConfig;
use super::read;
use crate::Result;
use crate::plan::{DeltaProjections, Plan};

pub(super) fn plan(config: &Value) -> Result<Plan> {
    read::<HybridConfig>(config)?.plan(DeltaProjections::Apart, true, |_| true)
}

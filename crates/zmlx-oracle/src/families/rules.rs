//! Checks of values that later code divides by or uses as an index.

use crate::ops::RopeLayout;
use crate::{Error, Result};

/// Returns an error for the first of these fields whose condition is false.
pub(super) fn check(rules: &[(&str, bool)]) -> Result<()> {
    match rules.iter().find(|(_, holds)| !holds) {
        Some((field, _)) => Err(Error::Config { field: (*field).to_owned(), why: "makes no sense".into() }),
        None => Ok(()),
    }
}

/// Whether heads can be divided into groups, and each head into pairs.
pub(super) fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> [(&'static str, bool); 2] {
    [
        ("num_key_value_heads", n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads)),
        ("head_dim", head_dim > 0 && head_dim.is_multiple_of(2)),
    ]
}

/// Whether `top_k` of `n_experts` can be chosen from `topk_group` of `n_group` groups.
pub(super) fn groups(
    n_experts: usize,
    top_k: usize,
    n_group: usize,
    topk_group: usize,
) -> [(&'static str, bool); 2] {
    let group = n_experts.checked_div(n_group).unwrap_or(0);
    [
        ("num_experts_per_tok", (1..=n_experts).contains(&top_k)),
        ("n_group", n_group == 1 || group >= 2 && group * n_group == n_experts && topk_group <= n_group),
    ]
}

/// The path of the bias of most routers without auxiliary loss, relative to the module.
pub(super) const GATE_BIAS: &str = "gate.e_score_correction_bias";

pub(super) fn one() -> usize {
    1
}

pub(super) fn some_one() -> Option<usize> {
    Some(1)
}

/// mlx-lm's `routed_scaling_factor` for GLM-4.7-Flash.
pub(super) fn glm_scaling() -> f64 {
    1.8
}

/// The layout that `rope_traditional` stands for.
pub(super) fn layout(is_traditional: bool) -> RopeLayout {
    if is_traditional { RopeLayout::Interleaved } else { RopeLayout::HalfSplit }
}

pub(super) fn yes() -> bool {
    true
}

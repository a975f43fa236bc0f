//! `glm4_moe`: grouped-query attention with biases and rope on a part of each head, `noaux_tc` router, shared experts.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, NoauxTc, RopeLayout};
use crate::plan::{
    Around, AttentionPlan, GqaPlan, HeadNorms, LayerNorms, LayerPlan, MlpPlan, MoePlan, Plan, RouterPlan,
};

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    #[serde(alias = "num_local_experts")]
    n_routed_experts: usize,
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default = "rules::one")]
    n_group: usize,
    #[serde(default = "rules::one")]
    topk_group: usize,
    norm_topk_prob: bool,
    routed_scaling_factor: f64,
    first_k_dense_replace: usize,
    #[serde(default)]
    use_qk_norm: bool,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let n_experts = c.n_routed_experts;
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim))?;
    rules::check(&rules::groups(n_experts, c.num_experts_per_tok, c.n_group, c.topk_group))?;
    let n_rotated = (c.head_dim as f64 * c.rope.partial_rotary_factor()?) as usize;
    rules::check(&[
        ("partial_rotary_factor", n_rotated.is_multiple_of(2) && (1..=c.head_dim).contains(&n_rotated)),
        ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
    ])?;
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        qk_norm: if c.use_qk_norm { HeadNorms::Each } else { HeadNorms::None },
        output_gate: false,
        rope: c.rope.unscaled(n_rotated, RopeLayout::HalfSplit)?,
        scale: 1.0 / (c.head_dim as f64).sqrt(),
        window: None,
        sinks: false,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let router = NoauxTc {
        n_experts,
        top_k: c.num_experts_per_tok,
        n_group: c.n_group,
        topk_group: c.topk_group,
        norm_topk_prob: c.norm_topk_prob,
        eps: 0.0,
        routed_scaling_factor: c.routed_scaling_factor,
    };
    let moe = MoePlan {
        gate: "gate",
        activation: Activation::SwiGlu,
        inner: c.moe_intermediate_size,
        shared_inner: c.n_shared_experts * c.moe_intermediate_size,
        shared_gate: false,
        router: RouterPlan::NoauxTc(router, rules::GATE_BIAS),
    };
    let layer = |layer_idx| LayerPlan {
        attention: AttentionPlan::Gqa(attention.clone()),
        mlp: if layer_idx < c.first_k_dense_replace {
            MlpPlan::Dense(c.intermediate_size)
        } else {
            MlpPlan::Moe(moe.clone())
        },
        mlp_path: "mlp",
        norms: LayerNorms::Before,
    };
    Ok(Plan {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around::default(),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

//! `gpt_oss`: grouped-query attention with sinks and windows, experts with biases and a clamped activation.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, RopeLayout};
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
    num_local_experts: usize,
    num_experts_per_tok: Option<usize>,
    experts_per_token: Option<usize>,
    sliding_window: usize,
    layer_types: Option<Vec<String>>,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let (n_experts, top_k) =
        (c.num_local_experts, c.num_experts_per_tok.or(c.experts_per_token).unwrap_or(0));
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim))?;
    rules::check(&[
        ("num_experts_per_tok", (1..=n_experts).contains(&top_k)),
        ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
        ("sliding_window", c.sliding_window > 0),
        ("layer_types", c.layer_types.as_ref().is_none_or(|types| types.len() == c.num_hidden_layers)),
    ])?;
    let is_sliding = |layer_idx: usize| match &c.layer_types {
        Some(types) => types[layer_idx] == "sliding_attention",
        None => layer_idx.is_multiple_of(2),
    };
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        output_gate: false,
        qk_norm: HeadNorms::None,
        rope: c.rope.or_theta(150_000.0).plan(c.head_dim, RopeLayout::HalfSplit)?,
        scale: 1.0 / (c.head_dim as f64).sqrt(),
        window: None,
        sinks: true,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let moe = MoePlan {
        gate: "router",
        activation: Activation::ClampedSwiGlu { alpha: 1.702, limit: 7.0 },
        inner: c.intermediate_size,
        shared_inner: 0,
        shared_gate: false,
        router: RouterPlan::SoftmaxOfChosen { n_experts, top_k },
    };
    let layer = |layer_idx| LayerPlan {
        attention: AttentionPlan::Gqa(GqaPlan {
            window: is_sliding(layer_idx).then_some(c.sliding_window),
            ..attention.clone()
        }),
        mlp: MlpPlan::Moe(moe.clone()),
        mlp_path: "mlp",
        norms: LayerNorms::Before,
    };
    Ok(Plan {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        rms_norm_eps: c.rms_norm_eps.unwrap_or(1e-5),
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around::default(),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

//! `deepseek_v3`: latent attention with stretched rope, `noaux_tc` router, shared experts.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, NoauxTc, RopeLayout};
use crate::plan::{
    Around, AttentionPlan, LayerNorms, LayerPlan, MlaPlan, MlaProjections, MlpPlan, MoePlan, Plan, RouterPlan,
};

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    /// If it is missing, every layer is dense.
    #[serde(alias = "num_local_experts")]
    n_routed_experts: Option<usize>,
    /// If it is missing, there are none.
    n_shared_experts: Option<usize>,
    #[serde(default = "rules::one")]
    num_experts_per_tok: usize,
    #[serde(default = "rules::one")]
    n_group: usize,
    #[serde(default = "rules::one")]
    topk_group: usize,
    #[serde(default = "rules::yes")]
    norm_topk_prob: bool,
    routed_scaling_factor: Option<f64>,
    #[serde(default)]
    first_k_dense_replace: usize,
    #[serde(default = "rules::one")]
    moe_layer_freq: usize,
    rms_norm_eps: Option<f64>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Config {
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        self.n_routed_experts.is_some_and(|n| n > 0)
            && layer_idx >= self.first_k_dense_replace
            && layer_idx.is_multiple_of(self.moe_layer_freq)
    }
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let n_experts = c.n_routed_experts.filter(|n| *n > 0).unwrap_or(c.num_experts_per_tok);
    rules::check(&[
        ("num_attention_heads", c.num_attention_heads > 0 && c.kv_lora_rank > 0),
        ("qk_rope_head_dim", c.qk_rope_head_dim.is_multiple_of(2)),
        ("moe_layer_freq", c.moe_layer_freq > 0),
        ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
    ])?;
    rules::check(&rules::groups(n_experts, c.num_experts_per_tok, c.n_group, c.topk_group))?;
    let width = (c.qk_nope_head_dim + c.qk_rope_head_dim) as f64;
    let attention = MlaPlan {
        q_lora_rank: c.q_lora_rank,
        sizes: MlaProjections {
            n_heads: c.num_attention_heads,
            qk_nope_head_dim: c.qk_nope_head_dim,
            v_head_dim: c.v_head_dim,
            kv_lora_rank: c.kv_lora_rank,
        },
        // The reference uses this value and not the config's.
        eps: 1e-6,
        qk_rope_head_dim: c.qk_rope_head_dim,
        scale: c.rope.score_factor() / width.sqrt(),
        rope: c.rope.or_theta(1e4).plan(c.qk_rope_head_dim, RopeLayout::Interleaved)?,
    };
    let router = NoauxTc {
        n_experts,
        top_k: c.num_experts_per_tok,
        n_group: c.n_group,
        topk_group: c.topk_group,
        norm_topk_prob: c.norm_topk_prob,
        eps: 0.0,
        routed_scaling_factor: c.routed_scaling_factor.unwrap_or(1.0),
    };
    let moe = MoePlan {
        gate: "gate",
        activation: Activation::SwiGlu,
        inner: c.moe_intermediate_size,
        shared_inner: c.n_shared_experts.unwrap_or(0) * c.moe_intermediate_size,
        shared_gate: false,
        router: RouterPlan::NoauxTc(router, rules::GATE_BIAS),
    };
    let layer = |layer_idx| LayerPlan {
        attention: AttentionPlan::Mla(attention.clone()),
        mlp: if c.is_moe_layer(layer_idx) {
            MlpPlan::Moe(moe.clone())
        } else {
            MlpPlan::Dense(c.intermediate_size)
        },
        mlp_path: "mlp",
        norms: LayerNorms::Before,
    };
    Ok(Plan {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        rms_norm_eps: c.rms_norm_eps.unwrap_or(1e-6),
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around::default(),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

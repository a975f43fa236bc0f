//! `lfm2_moe`: short convolutions and grouped-query attention, sigmoid router.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, NoauxTc, RopeLayout};
use crate::plan::{
    Around, AttentionPlan, GqaPlan, HeadNorms, LayerNorms, LayerPlan, MlpPlan, MoePlan, Plan, RouterPlan,
};

/// The names of its tensors, and the usual names.
pub(super) const RENAMED: &[(&str, &str)] = &[
    ("embedding_norm", "norm"),
    ("operator_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("q_layernorm", "q_norm"),
    ("k_layernorm", "k_norm"),
    ("self_attn.out_proj", "self_attn.o_proj"),
];

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    full_attn_idxs: Vec<usize>,
    #[serde(rename = "conv_L_cache")]
    conv_l_cache: usize,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    num_dense_layers: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default = "rules::yes")]
    norm_topk_prob: bool,
    #[serde(default = "rules::yes")]
    use_expert_bias: bool,
    #[serde(default = "factor")]
    routed_scaling_factor: f64,
    norm_eps: f64,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn factor() -> f64 {
    1.0
}

impl Config {
    fn is_attention(&self, layer_idx: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(layer_idx).is_some_and(|kind| kind == "full_attention"),
            None => self.full_attn_idxs.contains(&layer_idx),
        }
    }
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let head_dim = c.hidden_size.checked_div(c.num_attention_heads).unwrap_or(0);
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, head_dim))?;
    rules::check(&rules::groups(c.num_experts, c.num_experts_per_tok, 1, 1))?;
    rules::check(&[
        ("hidden_size", c.vocab_size > 0 && c.hidden_size.is_multiple_of(c.num_attention_heads)),
        ("layer_types", c.layer_types.as_ref().is_none_or(|types| types.len() == c.num_hidden_layers)),
        ("conv_L_cache", (2..=1 << 10).contains(&c.conv_l_cache)),
    ])?;
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim,
        qk_norm: HeadNorms::Each,
        output_gate: false,
        rope: c.rope.or_theta(1e6).plan(head_dim, RopeLayout::HalfSplit)?,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window: None,
        sinks: false,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let router = NoauxTc {
        n_experts: c.num_experts,
        top_k: c.num_experts_per_tok,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: c.norm_topk_prob,
        eps: 1e-6,
        routed_scaling_factor: c.routed_scaling_factor,
    };
    let moe = MoePlan {
        gate: "gate",
        activation: Activation::SwiGlu,
        inner: c.moe_intermediate_size,
        shared_inner: 0,
        shared_gate: false,
        router: RouterPlan::NoauxTc(router, if c.use_expert_bias { "expert_bias" } else { "" }),
    };
    let layer = |layer_idx| LayerPlan {
        attention: if c.is_attention(layer_idx) {
            AttentionPlan::Gqa(attention.clone())
        } else {
            AttentionPlan::ShortConv(c.conv_l_cache)
        },
        mlp: if layer_idx < c.num_dense_layers {
            MlpPlan::Dense(c.intermediate_size)
        } else {
            MlpPlan::Moe(moe.clone())
        },
        mlp_path: "feed_forward",
        norms: LayerNorms::Before,
    };
    Ok(Plan {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        rms_norm_eps: c.norm_eps,
        tie_word_embeddings: true,
        around: Around::default(),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

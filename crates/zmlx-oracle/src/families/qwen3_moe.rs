//! `qwen3_moe`: grouped-query attention with normed heads, softmax router.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, RopeLayout, SoftmaxTopK};
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
    /// If it is missing, `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    #[serde(alias = "num_local_experts")]
    num_experts: usize,
    num_experts_per_tok: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default = "rules::one")]
    decoder_sparse_step: usize,
    #[serde(default)]
    mlp_only_layers: Option<Vec<usize>>,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

impl Config {
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        let dense = self.mlp_only_layers.as_ref().is_some_and(|layers| layers.contains(&layer_idx));
        !dense && self.num_experts > 0 && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let head_dim = c.head_dim.or(c.hidden_size.checked_div(c.num_attention_heads)).unwrap_or(0);
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, head_dim))?;
    rules::check(&[
        ("decoder_sparse_step", c.decoder_sparse_step > 0),
        ("num_experts_per_tok", c.num_experts == 0 || (1..=c.num_experts).contains(&c.num_experts_per_tok)),
        ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
    ])?;
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim,
        qk_norm: HeadNorms::Each,
        output_gate: false,
        rope: c.rope.plan(head_dim, RopeLayout::HalfSplit)?,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window: None,
        sinks: false,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let router = SoftmaxTopK {
        n_experts: c.num_experts,
        top_k: c.num_experts_per_tok,
        norm_topk_prob: c.norm_topk_prob,
    };
    let moe = MoePlan {
        gate: "gate",
        activation: Activation::SwiGlu,
        inner: c.moe_intermediate_size,
        shared_inner: 0,
        shared_gate: false,
        router: RouterPlan::Softmax(router),
    };
    let layer = |layer_idx| LayerPlan {
        attention: AttentionPlan::Gqa(attention.clone()),
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
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around::default(),
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

//! `qwen3`: grouped-query attention with normed heads, dense layers.

use serde::Deserialize;
use serde_json::Value;

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::RopeLayout;
use crate::plan::{Around, AttentionPlan, GqaPlan, HeadNorms, LayerNorms, LayerPlan, MlpPlan, Plan};

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, c.head_dim))?;
    rules::check(&[("hidden_size", c.hidden_size > 0 && c.vocab_size > 0)])?;
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        qk_norm: HeadNorms::Each,
        output_gate: false,
        rope: c.rope.plan(c.head_dim, RopeLayout::HalfSplit)?,
        scale: 1.0 / (c.head_dim as f64).sqrt(),
        window: None,
        sinks: false,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let layer = LayerPlan {
        attention: AttentionPlan::Gqa(attention),
        mlp: MlpPlan::Dense(c.intermediate_size),
        mlp_path: "mlp",
        norms: LayerNorms::Before,
    };
    Ok(Plan {
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around::default(),
        layers: vec![layer; c.num_hidden_layers],
    })
}

//! `minimax_m2`: grouped-query attention normed over all heads, rope on a part of each head, sigmoid router with a bias.

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
    /// If it is missing, `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    rotary_dim: usize,
    #[serde(default = "rules::yes")]
    use_qk_norm: bool,
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    let head_dim = c.head_dim.or(c.hidden_size.checked_div(c.num_attention_heads)).unwrap_or(0);
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, head_dim))?;
    rules::check(&[
        ("rotary_dim", c.rotary_dim.is_multiple_of(2) && (1..=head_dim).contains(&c.rotary_dim)),
        ("num_experts_per_tok", (2..=c.num_local_experts).contains(&c.num_experts_per_tok)),
        ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
    ])?;
    let attention = GqaPlan {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim,
        output_gate: false,
        qk_norm: if c.use_qk_norm { HeadNorms::All } else { HeadNorms::None },
        rope: c.rope.plan(c.rotary_dim, RopeLayout::HalfSplit)?,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window: None,
        sinks: false,
        k_is_v: false,
        v_norm: false,
        shares: None,
    };
    let router = NoauxTc {
        n_experts: c.num_local_experts,
        top_k: c.num_experts_per_tok,
        n_group: 1,
        topk_group: 1,
        norm_topk_prob: true,
        eps: 1e-20,
        routed_scaling_factor: 1.0,
    };
    let layer = LayerPlan {
        attention: AttentionPlan::Gqa(attention),
        mlp: MlpPlan::Moe(MoePlan {
            gate: "gate",
            activation: Activation::SwiGlu,
            inner: c.intermediate_size,
            shared_inner: 0,
            shared_gate: false,
            router: RouterPlan::NoauxTc(router, "e_score_correction_bias"),
        }),
        mlp_path: "block_sparse_moe",
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

//! `gemma4`: windows in most layers, norms before and after each part, GeGLU beside experts, shared keys and values, inputs
//! for each layer.

use serde::Deserialize;
use serde_json::{Value, json};

use super::rope::RopeConfig;
use super::{read, rules};
use crate::Result;
use crate::ops::{Activation, RopeLayout};
use crate::plan::{
    Around, AttentionPlan, GqaPlan, HeadNorms, LayerNorms, LayerPlan, MlpPlan, MoePlan, Plan, RouterPlan,
};

#[derive(Deserialize)]
struct Config {
    vocab_size: Option<usize>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    num_global_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    global_head_dim: Option<usize>,
    #[serde(default)]
    attention_k_eq_v: bool,
    sliding_window: Option<usize>,
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    intermediate_size: usize,
    #[serde(default = "rules::yes")]
    use_double_wide_mlp: bool,
    #[serde(default)]
    enable_moe_block: bool,
    moe_intermediate_size: Option<usize>,
    num_experts: Option<usize>,
    top_k_experts: Option<usize>,
    rms_norm_eps: Option<f64>,
    #[serde(default = "rules::yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

pub(super) fn plan(config: &Value) -> Result<Plan> {
    let c: Config = read(config)?;
    // A missing key means the default, and null means none.
    let number = |key: &str, default: f64| config.get(key).map_or(Some(default), Value::as_f64);
    let per_layer_input = number("hidden_size_per_layer_input", 256.0).filter(|n| *n > 0.0);
    let n_shared = number("num_kv_shared_layers", 20.0).unwrap_or(0.0) as usize;
    let (head_dim, global) = (c.head_dim.unwrap_or(256), c.global_head_dim.unwrap_or(512));
    let (n_experts, top_k) = (c.num_experts.unwrap_or(0), c.top_k_experts.unwrap_or(0));
    let pattern = c.sliding_window_pattern.unwrap_or(5);
    rules::check(&rules::heads(c.num_attention_heads, c.num_key_value_heads, head_dim))?;
    rules::check(&[
        ("global_head_dim", global > 0 && global.is_multiple_of(2)),
        ("sliding_window_pattern", pattern > 0),
        ("top_k_experts", !c.enable_moe_block || (1..=n_experts).contains(&top_k)),
        ("layer_types", c.layer_types.as_ref().is_none_or(|types| types.len() == c.num_hidden_layers)),
        ("hidden_size", c.hidden_size > 0),
    ])?;
    let is_full = |layer_idx: usize| match &c.layer_types {
        Some(types) => types[layer_idx] == "full_attention",
        None => (layer_idx + 1).is_multiple_of(pattern),
    };
    let n_own = c.num_hidden_layers.saturating_sub(n_shared);
    let shares = |layer_idx: usize| {
        let own = (0..n_own).rev().find(|earlier| is_full(*earlier) == is_full(layer_idx));
        own.filter(|_| layer_idx >= n_own)
    };
    let sliding_default = json!({ "rope_type": "default", "rope_theta": 1e4 });
    let full_default =
        json!({ "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25 });
    let rope_of = |is_full: bool| {
        if is_full {
            c.rope
                .of_layers("full_attention", &full_default)
                .or_theta(1e6)
                .plan(global, RopeLayout::HalfSplit)
        } else {
            c.rope
                .of_layers("sliding_attention", &sliding_default)
                .or_theta(1e4)
                .plan(head_dim, RopeLayout::HalfSplit)
        }
    };
    let ropes = [rope_of(false)?, rope_of(true)?];
    let moe = c.enable_moe_block.then(|| MoePlan {
        gate: "router.proj",
        activation: Activation::GeGlu,
        inner: c.moe_intermediate_size.unwrap_or(0),
        shared_inner: 0,
        shared_gate: false,
        router: RouterPlan::SoftmaxOfChosen { n_experts, top_k },
    });
    let layer = |layer_idx: usize| {
        let full = is_full(layer_idx);
        let k_is_v = full && c.attention_k_eq_v;
        let global_heads = c.num_global_key_value_heads.unwrap_or(c.num_key_value_heads);
        let wide = if c.use_double_wide_mlp && layer_idx >= n_own { 2 } else { 1 };
        LayerPlan {
            attention: AttentionPlan::Gqa(GqaPlan {
                n_heads: c.num_attention_heads,
                n_kv_heads: if k_is_v { global_heads } else { c.num_key_value_heads },
                head_dim: if full { global } else { head_dim },
                output_gate: false,
                qk_norm: HeadNorms::Each,
                rope: ropes[usize::from(full)].clone(),
                scale: 1.0,
                window: if full { None } else { Some(c.sliding_window.unwrap_or(512)) },
                sinks: false,
                k_is_v,
                v_norm: true,
                shares: shares(layer_idx),
            }),
            mlp: MlpPlan::Gemma(wide * c.intermediate_size, moe.clone()),
            mlp_path: "",
            norms: LayerNorms::Sandwich,
        }
    };
    Ok(Plan {
        vocab_size: c.vocab_size.unwrap_or(262_144),
        hidden_size: c.hidden_size,
        rms_norm_eps: c.rms_norm_eps.unwrap_or(1e-6),
        tie_word_embeddings: c.tie_word_embeddings,
        around: Around {
            embed_factor: Some((c.hidden_size as f64).sqrt()),
            logit_cap: number("final_logit_softcapping", 30.0),
            per_layer_input: per_layer_input.map(|n| n as usize),
        },
        layers: (0..c.num_hidden_layers).map(layer).collect(),
    })
}

//! `olmoe`: OLMoE-1B-7B. It has grouped queries with norms over all heads at once, and a softmax router.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::SoftmaxTopK;

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf, SoftmaxMoe};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, Storage};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "olmoe";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    attention_bias: bool,
    /// Width of an expert.
    intermediate_size: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    f.only("hidden_act", "silu")?;
    f.off("mlp_bias")?;
    let rope = RopeKeys::new(f)?;
    rope.whole_heads()?;
    let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
    let num_experts = f.dim("num_experts")?;
    let c = Config {
        vocab_size: f.dim("vocab_size")?,
        hidden_size: f.dim("hidden_size")?,
        num_hidden_layers: keys::n_layers(f)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim: keys::head_dim(f, num_attention_heads)?,
        attention_bias: f.bool_or("attention_bias", false)?,
        intermediate_size: f.dim("intermediate_size")?,
        num_experts,
        num_experts_per_tok: keys::top_k(f, ("num_experts", num_experts))?,
        norm_topk_prob: f.bool_or("norm_topk_prob", false)?,
        rms_norm_eps: f.positive_or("rms_norm_eps", 1e-5)?,
        rope_theta: rope.theta(Some(1e4))?,
        rope_scaling: rope.scaling(),
        max_position_embeddings: f.dim_or("max_position_embeddings", 4096)?,
        tie_word_embeddings: f.bool_or("tie_word_embeddings", true)?,
    };
    let pairing = keys::pairing(f)?;
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: if c.attention_bias { Biases::All } else { Biases::None },
        norms: HeadNorms::All,
        eps: c.rms_norm_eps as f32,
        rope: rope.rope(RopeOf { dims: c.head_dim, theta: c.rope_theta, pairing })?,
    };
    let moe = SoftmaxMoe {
        n_experts: num_experts,
        hidden,
        inter: c.intermediate_size,
        router: Storage::Model,
        settings: SoftmaxTopK {
            top_k: c.num_experts_per_tok,
            renormalize: keys::renormalize(c.norm_topk_prob),
        },
    };
    let frame = Frame {
        vocab_size: c.vocab_size,
        hidden_size: hidden,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        tie_word_embeddings: c.tie_word_embeddings,
    };
    let layer = |layer_idx: usize| {
        let at = |name: &str| format!("model.layers.{layer_idx}.{name}");
        frame.layer(
            layer_idx,
            MixerSpec::Attention(attention.at(&at("self_attn"))),
            FeedForwardSpec::moe(moe.at(at("mlp"))),
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

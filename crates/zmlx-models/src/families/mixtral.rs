//! `mixtral`: Mixtral 8x7B and 8x22B. They have grouped queries, and experts that are chosen by their logits.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{Renormalize, SoftmaxTopK};

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf, SoftmaxMoe};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, Storage};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "mixtral";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    /// Width of an expert.
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    f.only("hidden_act", "silu")?;
    f.off("attention_bias")?;
    if f.get("sliding_window").is_some() {
        return Err(f.unsupported("sliding_window", "null", "a window"));
    }
    let rope = RopeKeys::new(f)?;
    rope.whole_heads()?;
    let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
    let num_local_experts = f.dim("num_local_experts")?;
    let c = Config {
        vocab_size: f.dim("vocab_size")?,
        hidden_size: f.dim("hidden_size")?,
        num_hidden_layers: keys::n_layers(f)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim: keys::head_dim(f, num_attention_heads)?,
        intermediate_size: f.dim("intermediate_size")?,
        num_local_experts,
        num_experts_per_tok: keys::top_k(f, ("num_local_experts", num_local_experts))?,
        rms_norm_eps: f.positive_or("rms_norm_eps", 1e-5)?,
        rope_theta: rope.theta(Some(1e6))?,
        rope_scaling: rope.scaling(),
        max_position_embeddings: f.dim("max_position_embeddings")?,
        tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
    };
    let pairing = keys::pairing(f)?;
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: Biases::None,
        norms: HeadNorms::None,
        eps: c.rms_norm_eps as f32,
        rope: rope.rope(RopeOf { dims: c.head_dim, theta: c.rope_theta, pairing })?,
    };
    let moe = SoftmaxMoe {
        n_experts: num_local_experts,
        hidden,
        inter: c.intermediate_size,
        // The softmax of the chosen logits equals the softmax of all logits, divided by the sum of the chosen ones.
        router: Storage::Model,
        settings: SoftmaxTopK { top_k: c.num_experts_per_tok, renormalize: Renormalize::Yes },
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
            FeedForwardSpec::moe(moe.at(at("block_sparse_moe"))),
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

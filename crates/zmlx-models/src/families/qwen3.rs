//! `qwen3`: Qwen3-0.6B to 32B. They have grouped queries with normed heads, and dense layers.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::RopePairing;

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, MlpSpec};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen3";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
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
    f.off("use_sliding_window")?;
    let rope = RopeKeys::new(f)?;
    rope.whole_heads()?;
    let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
    let c = Config {
        vocab_size: f.dim("vocab_size")?,
        hidden_size: f.dim("hidden_size")?,
        num_hidden_layers: keys::n_layers(f)?,
        num_attention_heads,
        num_key_value_heads,
        head_dim: keys::even_dim(f, "head_dim")?,
        intermediate_size: f.dim("intermediate_size")?,
        rms_norm_eps: f.positive("rms_norm_eps")?,
        rope_theta: rope.theta(None)?,
        rope_scaling: rope.scaling(),
        max_position_embeddings: f.dim("max_position_embeddings")?,
        tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
    };
    let rope =
        rope.rope(RopeOf { dims: c.head_dim, theta: c.rope_theta, pairing: RopePairing::HalfSplit })?;
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: Biases::None,
        norms: HeadNorms::Each,
        eps: c.rms_norm_eps as f32,
        rope,
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
            FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden)),
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

//! `qwen3_moe`: Qwen3-30B-A3B, 235B-A22B and Coder. `qwen3_vl_moe`: the text model of Qwen3-VL. They have grouped
//! queries with normed heads, and a softmax router.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{RopePairing, SoftmaxTopK};

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf, SoftmaxMoe};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, MlpSpec, Storage};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen3_moe";

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
    moe_intermediate_size: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    decoder_sparse_step: usize,
    mlp_only_layers: Vec<usize>,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<Self> {
        f.only("hidden_act", "silu")?;
        f.off("attention_bias")?;
        f.off("use_sliding_window")?;
        rope.whole_heads()?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let num_experts = f.count(f.named(&["num_experts", "num_local_experts"]))?;
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: keys::even_dim(f, "head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            num_experts,
            num_experts_per_tok: keys::top_k(f, ("num_experts", num_experts))?,
            norm_topk_prob: f.bool_or("norm_topk_prob", false)?,
            decoder_sparse_step: f.dim_or("decoder_sparse_step", 1)?,
            mlp_only_layers: if f.get("mlp_only_layers").is_some() {
                f.counts("mlp_only_layers")?
            } else {
                Vec::new()
            },
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(None)?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim("max_position_embeddings")?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        })
    }

    /// True if the layer has experts; false if its MLP is dense.
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        !self.mlp_only_layers.contains(&layer_idx)
            && self.num_experts > 0
            && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }
}

/// `qwen3_vl_moe`: the text model inside a model that also sees images.
pub(super) fn within_vision(f: &Fields<'_>) -> Result<Architecture> {
    Ok(Architecture { left_over: keys::LEFT_OVER, ..architecture(f)? })
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope)?;
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
    let moe = SoftmaxMoe {
        n_experts: c.num_experts,
        hidden,
        inter: c.moe_intermediate_size,
        router: Storage::EightBit,
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
            if c.is_moe_layer(layer_idx) {
                FeedForwardSpec::moe(moe.at(at("mlp")))
            } else {
                FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden))
            },
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

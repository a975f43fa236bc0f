//! `qwen2_moe`: Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B. They have grouped queries with biases, a softmax router, and a gated
//! shared expert.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{Renormalize, SoftmaxTopK};

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, RopeKeys, RopeOf, SoftmaxMoe};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MatrixSpec, MixerSpec, MlpSpec, MoeSpec, Storage};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "qwen2_moe";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    /// The width of the MLP in layers without experts.
    intermediate_size: usize,
    moe_intermediate_size: usize,
    shared_expert_intermediate_size: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
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
        f.off("use_sliding_window")?;
        rope.whole_heads()?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let num_experts = f.dim("num_experts")?;
        if f.bool_or("norm_topk_prob", false)? {
            tracing::warn!(
                "norm_topk_prob is not used: mlx-lm never divides the weights of {MODEL_TYPE} by their sum"
            );
        }
        let has_list = f.get("mlp_only_layers").is_some();
        Ok(Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: keys::head_dim(f, num_attention_heads)?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            shared_expert_intermediate_size: f.dim("shared_expert_intermediate_size")?,
            num_experts,
            num_experts_per_tok: keys::top_k(f, ("num_experts", num_experts))?,
            decoder_sparse_step: f.dim_or("decoder_sparse_step", 1)?,
            mlp_only_layers: if has_list { f.counts("mlp_only_layers")? } else { Vec::new() },
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(Some(1e6))?,
            rope_scaling: rope.scaling(),
            max_position_embeddings: f.dim_or("max_position_embeddings", 32_768)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        })
    }

    /// True if the layer has experts; false if its MLP is dense.
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        !self.mlp_only_layers.contains(&layer_idx) && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }

    fn moe(&self, path: String) -> MoeSpec {
        let (hidden, shared) = (self.hidden_size, format!("{path}.shared_expert"));
        let gate = MatrixSpec::new(format!("{path}.shared_expert_gate"), 1, hidden);
        let routed = SoftmaxMoe {
            n_experts: self.num_experts,
            hidden,
            inter: self.moe_intermediate_size,
            router: Storage::Model,
            settings: SoftmaxTopK { top_k: self.num_experts_per_tok, renormalize: Renormalize::No },
        };
        MoeSpec {
            shared: Some(MlpSpec::swiglu(&shared, self.shared_expert_intermediate_size, hidden)),
            shared_gate: Some(gate),
            ..routed.at(path)
        }
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let c = Config::parse(f, &rope)?;
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: Biases::Qkv,
        norms: HeadNorms::None,
        eps: c.rms_norm_eps as f32,
        rope: rope.rope(RopeOf { dims: c.head_dim, theta: c.rope_theta, pairing: keys::pairing(f)? })?,
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
                FeedForwardSpec::moe(c.moe(at("mlp")))
            } else {
                FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden))
            },
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

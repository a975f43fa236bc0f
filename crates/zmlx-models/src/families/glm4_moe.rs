//! `glm4_moe`: GLM-4.5-Air, 4.5, 4.6 and 4.7. They have grouped queries, rope on a part of each head, the router
//! without auxiliary loss, and shared experts.

use serde::Serialize;
use zmlx_kernels::{NoauxTc, RopePairing};

use super::keys::{self, Biases, Frame, Grouped, HeadNorms, NoauxMoe, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, MlpSpec};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "glm4_moe";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    partial_rotary_factor: f64,
    use_qk_norm: bool,
    attention_bias: bool,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    n_routed_experts: usize,
    /// 0 if there is no shared expert.
    n_shared_experts: usize,
    num_experts_per_tok: usize,
    n_group: usize,
    topk_group: usize,
    norm_topk_prob: bool,
    routed_scaling_factor: f64,
    first_k_dense_replace: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<(Self, NoauxTc)> {
        f.only("hidden_act", "silu")?;
        let (num_attention_heads, num_key_value_heads) = keys::heads(f)?;
        let partial_rotary_factor = match rope.partial_rotary_factor()? {
            Some(part) => part,
            None => f.positive("partial_rotary_factor")?,
        };
        let n_routed_experts = f.dim(f.named(&["n_routed_experts", "num_local_experts"]))?;
        let (norm_topk_prob, factor) = (f.bool("norm_topk_prob")?, f.positive("routed_scaling_factor")?);
        let router = keys::noaux_tc(f, n_routed_experts, (norm_topk_prob, factor, 0.0))?;
        let config = Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: f.dim("head_dim")?,
            partial_rotary_factor,
            use_qk_norm: f.bool_or("use_qk_norm", false)?,
            attention_bias: f.bool("attention_bias")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            n_routed_experts,
            n_shared_experts: f.count("n_shared_experts")?,
            num_experts_per_tok: router.top_k,
            n_group: router.n_group,
            topk_group: router.topk_group,
            norm_topk_prob,
            routed_scaling_factor: factor,
            first_k_dense_replace: f.count("first_k_dense_replace")?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(None)?,
            max_position_embeddings: f.dim("max_position_embeddings")?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        };
        Ok((config, router))
    }

    /// Number of dimensions at the start of each head that are rotated.
    fn n_rotated(&self, f: &Fields<'_>) -> Result<usize> {
        let n = (self.head_dim as f64 * self.partial_rotary_factor) as usize;
        let fits = n > 0 && n.is_multiple_of(2) && n <= self.head_dim;
        f.ensure(fits, "partial_rotary_factor", "an even part of head_dim", n)?;
        Ok(n)
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let (c, router) = Config::parse(f, &rope)?;
    if rope.is_scaled()? {
        tracing::warn!(
            "rope_scaling is not used: mlx-lm runs {MODEL_TYPE} with the plain rope, whatever the config says"
        );
    }
    let rope = RopeOf { dims: c.n_rotated(f)?, theta: c.rope_theta, pairing: RopePairing::HalfSplit };
    let hidden = c.hidden_size;
    let attention = Grouped {
        n_heads: c.num_attention_heads,
        n_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        hidden,
        biases: if c.attention_bias { Biases::Qkv } else { Biases::None },
        norms: if c.use_qk_norm { HeadNorms::Each } else { HeadNorms::None },
        eps: c.rms_norm_eps as f32,
        rope: rope.plain(),
    };
    let moe = NoauxMoe {
        n_experts: c.n_routed_experts,
        hidden,
        inter: c.moe_intermediate_size,
        shared_inter: c.n_shared_experts * c.moe_intermediate_size,
        settings: router,
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
            if layer_idx < c.first_k_dense_replace {
                FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden))
            } else {
                FeedForwardSpec::moe(moe.at(at("mlp")))
            },
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

//! `glm4_moe_lite`: GLM-4.7-Flash. It has latent attention, the router without auxiliary loss, and shared experts.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{NoauxTc, RopePairing};

use super::keys::{self, Frame, Latent, NoauxMoe, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, MlpSpec};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "glm4_moe_lite";

/// The hyperparameters, named as Hugging Face names them.
#[derive(Serialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// `None` if queries come from one plain `q_proj`.
    q_lora_rank: Option<usize>,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
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
    moe_layer_freq: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<Value>,
    /// The factor of the attention scores: `(nope + rope)^-1/2`, times `mscale²` if the scaling has it.
    attention_scale: f64,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
}

impl Config {
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<(Self, NoauxTc)> {
        f.only("hidden_act", "silu")?;
        f.off("attention_bias")?;
        rope.whole_heads()?;
        // The key must be present, but its value may be null. With a default, a truncated file would be read as another
        // model.
        let q_lora_rank = match f.get("q_lora_rank") {
            None if f.contains("q_lora_rank") => None,
            _ => Some(f.dim("q_lora_rank")?),
        };
        // Null means 0. A missing key means 1, as in the reference.
        let n_shared = usize::from(!f.contains("n_shared_experts") || f.get("n_shared_experts").is_some());
        let (nope, rope_dim) = (f.dim("qk_nope_head_dim")?, keys::even_dim(f, "qk_rope_head_dim")?);
        let n_routed_experts = f.dim(f.named(&["n_routed_experts", "num_local_experts"]))?;
        let norm_topk_prob = f.bool_or("norm_topk_prob", true)?;
        let factor = f.positive_or("routed_scaling_factor", 1.8)?;
        let router = keys::noaux_tc(f, n_routed_experts, (norm_topk_prob, factor, 1e-20))?;
        let config = Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: keys::n_layers(f)?,
            num_attention_heads: f.dim("num_attention_heads")?,
            q_lora_rank,
            kv_lora_rank: f.dim("kv_lora_rank")?,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope_dim,
            v_head_dim: f.dim("v_head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            n_routed_experts,
            n_shared_experts: f.count_or("n_shared_experts", n_shared)?,
            num_experts_per_tok: router.top_k,
            n_group: router.n_group,
            topk_group: router.topk_group,
            norm_topk_prob,
            routed_scaling_factor: factor,
            first_k_dense_replace: f.count_or("first_k_dense_replace", 1)?,
            moe_layer_freq: f.dim_or("moe_layer_freq", 1)?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: rope.theta(Some(1e6))?,
            rope_scaling: rope.scaling(),
            attention_scale: ((nope + rope_dim) as f64).powf(-0.5) * rope.score_factor()?,
            max_position_embeddings: f.dim_or("max_position_embeddings", 202_752)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        };
        Ok((config, router))
    }

    /// True if the layer has experts; false if its MLP is dense.
    fn is_moe_layer(&self, layer_idx: usize) -> bool {
        layer_idx >= self.first_k_dense_replace && layer_idx.is_multiple_of(self.moe_layer_freq)
    }
}

pub(super) fn architecture(f: &Fields<'_>) -> Result<Architecture> {
    let rope = RopeKeys::new(f)?;
    let (c, router) = Config::parse(f, &rope)?;
    let (theta, pairing) = (c.rope_theta, RopePairing::Interleaved);
    let rope = rope.rope(RopeOf { dims: c.qk_rope_head_dim, theta, pairing })?;
    let hidden = c.hidden_size;
    let attention = Latent {
        hidden,
        n_heads: c.num_attention_heads,
        q_rank: c.q_lora_rank,
        rank: c.kv_lora_rank,
        nope_dim: c.qk_nope_head_dim,
        rope_dim: c.qk_rope_head_dim,
        v_dim: c.v_head_dim,
        is_biased: false,
        eps: c.rms_norm_eps as f32,
        rope,
        scale: c.attention_scale as f32,
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
            MixerSpec::Latent(attention.at(&at("self_attn"))),
            if c.is_moe_layer(layer_idx) {
                FeedForwardSpec::moe(moe.at(at("mlp")))
            } else {
                FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden))
            },
        )
    };
    Ok(frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect()))
}

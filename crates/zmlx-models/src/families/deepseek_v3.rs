//! `deepseek_v3`: DeepSeek V3 and R1, Kimi K2, Moonlight. They have latent attention with a stretched rope, the router
//! without auxiliary loss, and shared experts.

use serde::Serialize;
use serde_json::Value;
use zmlx_kernels::{NoauxTc, RopePairing};

use super::keys::{self, Frame, Latent, NoauxMoe, RopeKeys, RopeOf};
use crate::Result;
use crate::architecture::{Architecture, FeedForwardSpec, MixerSpec, MlpSpec};
use crate::fields::Fields;

pub(super) const MODEL_TYPE: &str = "deepseek_v3";

/// The epsilon of the norms inside attention, whatever `rms_norm_eps` says.
const LATENT_EPS: f32 = 1e-6;

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
    attention_bias: bool,
    intermediate_size: usize,
    moe_intermediate_size: usize,
    /// 0 if every layer is dense.
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
    fn parse(f: &Fields<'_>, rope: &RopeKeys<'_, '_>) -> Result<(Self, Option<NoauxTc>)> {
        f.only("hidden_act", "silu")?;
        rope.whole_heads()?;
        // The key must be present, but its value may be null. With a default, a truncated file would be read as another
        // model.
        let q_lora_rank = match f.get("q_lora_rank") {
            None if f.contains("q_lora_rank") => None,
            _ => Some(f.dim("q_lora_rank")?),
        };
        let (nope, rope_dim) = (f.dim("qk_nope_head_dim")?, keys::even_dim(f, "qk_rope_head_dim")?);
        let n_routed_experts = f.count_or(f.named(&["n_routed_experts", "num_local_experts"]), 0)?;
        let norm_topk_prob = f.bool_or("norm_topk_prob", true)?;
        let factor = f.positive_or("routed_scaling_factor", 1.0)?;
        let router = (n_routed_experts > 0)
            .then(|| keys::noaux_tc(f, n_routed_experts, (norm_topk_prob, factor, 0.0)))
            .transpose()?;
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
            attention_bias: f.bool_or("attention_bias", false)?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            n_routed_experts,
            n_shared_experts: f.count_or("n_shared_experts", 0)?,
            num_experts_per_tok: router.map_or(0, |r| r.top_k),
            n_group: router.map_or(1, |r| r.n_group),
            topk_group: router.map_or(1, |r| r.topk_group),
            norm_topk_prob,
            routed_scaling_factor: factor,
            first_k_dense_replace: f.count_or("first_k_dense_replace", 0)?,
            moe_layer_freq: f.dim_or("moe_layer_freq", 1)?,
            rms_norm_eps: f.positive_or("rms_norm_eps", 1e-6)?,
            rope_theta: rope.theta(Some(1e4))?,
            rope_scaling: rope.scaling(),
            attention_scale: ((nope + rope_dim) as f64).powf(-0.5) * rope.score_factor()?,
            max_position_embeddings: f.dim_or("max_position_embeddings", 2048)?,
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
        is_biased: c.attention_bias,
        eps: LATENT_EPS,
        rope,
        scale: c.attention_scale as f32,
    };
    let moe = router.map(|settings| NoauxMoe {
        n_experts: c.n_routed_experts,
        hidden,
        inter: c.moe_intermediate_size,
        shared_inter: c.n_shared_experts * c.moe_intermediate_size,
        settings,
    });
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
            match moe.as_ref().filter(|_| c.is_moe_layer(layer_idx)) {
                Some(moe) => FeedForwardSpec::moe(moe.at(at("mlp"))),
                None => FeedForwardSpec::dense(MlpSpec::swiglu(&at("mlp"), c.intermediate_size, hidden)),
            },
        )
    };
    Ok(Architecture {
        left_over: keys::LEFT_OVER,
        ..frame.around(MODEL_TYPE, &c, (0..c.num_hidden_layers).map(layer).collect())
    })
}

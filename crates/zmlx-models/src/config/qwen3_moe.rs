//! The hyperparameters of `qwen3_moe`.

use super::fields::Fields;
use super::glm4_moe_lite::{MAX_LAYERS, ensure_addressable};
use crate::Result;

/// The hyperparameters of `qwen3_moe`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are Hugging Face's")]
pub struct Qwen3MoeConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub moe_intermediate_size: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub norm_topk_prob: bool,
    pub decoder_sparse_step: usize,
    pub mlp_only_layers: Vec<usize>,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
}

impl Qwen3MoeConfig {
    /// True if the layer has experts, false if its MLP is dense.
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        !self.mlp_only_layers.contains(&layer_idx)
            && self.num_experts > 0
            && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }

    pub(super) fn parse(f: &Fields<'_>) -> Result<Self> {
        f.only("hidden_act", "silu")?;
        f.off("attention_bias")?;
        f.off("use_sliding_window")?;
        f.plain_rope()?;
        let rope_theta = match f.rope_theta()? {
            Some(theta) => theta,
            None => f.positive("rope_theta")?,
        };
        let config = Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: f.dim("num_hidden_layers")?,
            num_attention_heads: f.dim("num_attention_heads")?,
            num_key_value_heads: f.dim("num_key_value_heads")?,
            head_dim: f.dim("head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            num_experts: f.count("num_experts")?,
            num_experts_per_tok: f.dim("num_experts_per_tok")?,
            norm_topk_prob: f.bool("norm_topk_prob")?,
            decoder_sparse_step: f.dim("decoder_sparse_step")?,
            mlp_only_layers: f.counts("mlp_only_layers")?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta,
            max_position_embeddings: f.dim("max_position_embeddings")?,
            tie_word_embeddings: f.bool("tie_word_embeddings")?,
        };
        config.check(f)?;
        Ok(config)
    }

    fn check(&self, f: &Fields<'_>) -> Result<()> {
        let Self { num_attention_heads: heads, num_key_value_heads: kv, num_experts, .. } = *self;
        f.ensure(
            self.num_hidden_layers <= MAX_LAYERS,
            "num_hidden_layers",
            format!("at most {MAX_LAYERS}"),
            self.num_hidden_layers,
        )?;
        f.ensure(
            heads.is_multiple_of(kv),
            "num_key_value_heads",
            format!("a divisor of the {heads} heads"),
            kv,
        )?;
        f.ensure(self.head_dim.is_multiple_of(2), "head_dim", "an even number (rope pairs)", self.head_dim)?;
        f.ensure(
            num_experts == 0 || self.num_experts_per_tok <= num_experts,
            "num_experts_per_tok",
            format!("at most num_experts = {num_experts}"),
            self.num_experts_per_tok,
        )?;
        ensure_addressable(f, "num_attention_heads", [heads, self.head_dim, self.hidden_size])?;
        ensure_addressable(f, "num_experts", [num_experts, self.moe_intermediate_size, self.hidden_size])
    }
}

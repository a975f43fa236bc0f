//! The hyperparameters of `glm4_moe_lite`.

use super::fields::Fields;
use crate::Result;

/// More layers than this are a broken file; each one lists its missing tensors.
pub(super) const MAX_LAYERS: usize = 4096;

/// The hyperparameters of `glm4_moe_lite`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names are Hugging Face's")]
pub struct Glm4MoeLiteConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// None: queries come from one plain `q_proj`.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub intermediate_size: usize,
    pub moe_intermediate_size: usize,
    pub n_routed_experts: usize,
    /// 0: no shared expert.
    pub n_shared_experts: usize,
    pub num_experts_per_tok: usize,
    pub n_group: usize,
    pub topk_group: usize,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    pub first_k_dense_replace: usize,
    pub moe_layer_freq: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// What multiplies the attention scores: `(nope + rope)^-1/2`, times `mscale²` where `rope_scaling` asks for it.
    pub attention_scale: f64,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
}

impl Glm4MoeLiteConfig {
    /// True if the layer has experts, false if its MLP is dense.
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        layer_idx >= self.first_k_dense_replace && layer_idx.is_multiple_of(self.moe_layer_freq)
    }

    /// Width of one head's query and key: `nope` and `rope` parts.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    pub(super) fn parse(f: &Fields<'_>) -> Result<Self> {
        f.only("hidden_act", "silu")?;
        f.only("scoring_func", "sigmoid")?;
        f.only("topk_method", "noaux_tc")?;
        f.off("attention_bias")?;
        f.plain_rope()?;
        let (nope, rope) = (f.dim("qk_nope_head_dim")?, f.dim("qk_rope_head_dim")?);
        // The key must be there, its value may be null: a default would turn a truncated file into another model.
        let q_lora_rank = match f.get("q_lora_rank") {
            None if f.contains("q_lora_rank") => None,
            _ => Some(f.dim("q_lora_rank")?),
        };
        // null means none; absent means the reference's 1.
        let shared =
            if f.get("n_shared_experts").is_none() && f.contains("n_shared_experts") { 0 } else { 1 };
        let config = Self {
            vocab_size: f.dim("vocab_size")?,
            hidden_size: f.dim("hidden_size")?,
            num_hidden_layers: f.dim("num_hidden_layers")?,
            num_attention_heads: f.dim("num_attention_heads")?,
            q_lora_rank,
            kv_lora_rank: f.dim("kv_lora_rank")?,
            qk_nope_head_dim: nope,
            qk_rope_head_dim: rope,
            v_head_dim: f.dim("v_head_dim")?,
            intermediate_size: f.dim("intermediate_size")?,
            moe_intermediate_size: f.dim("moe_intermediate_size")?,
            n_routed_experts: f.dim("n_routed_experts")?,
            n_shared_experts: f.count_or("n_shared_experts", shared)?,
            num_experts_per_tok: f.dim("num_experts_per_tok")?,
            n_group: f.dim_or("n_group", 1)?,
            topk_group: f.dim_or("topk_group", 1)?,
            norm_topk_prob: f.bool_or("norm_topk_prob", true)?,
            routed_scaling_factor: f.positive_or("routed_scaling_factor", 1.8)?,
            first_k_dense_replace: f.count_or("first_k_dense_replace", 1)?,
            moe_layer_freq: f.dim_or("moe_layer_freq", 1)?,
            rms_norm_eps: f.positive("rms_norm_eps")?,
            rope_theta: f.rope_theta()?.unwrap_or(1e6),
            attention_scale: attention_scale(f, nope + rope)?,
            max_position_embeddings: f.dim_or("max_position_embeddings", 202_752)?,
            tie_word_embeddings: f.bool_or("tie_word_embeddings", false)?,
        };
        config.check(f)?;
        Ok(config)
    }

    fn check(&self, f: &Fields<'_>) -> Result<()> {
        let Self { n_routed_experts: experts, n_group, topk_group, num_experts_per_tok: top_k, .. } = *self;
        let layers = self.num_hidden_layers;
        f.ensure(layers <= MAX_LAYERS, "num_hidden_layers", format!("at most {MAX_LAYERS}"), layers)?;
        let rope = self.qk_rope_head_dim;
        f.ensure(rope.is_multiple_of(2), "qk_rope_head_dim", "an even number (rope pairs)", rope)?;
        f.ensure(
            top_k <= experts,
            "num_experts_per_tok",
            format!("at most n_routed_experts = {experts}"),
            top_k,
        )?;
        let want = format!("a divisor of n_routed_experts = {experts}");
        f.ensure(experts.is_multiple_of(n_group), "n_group", want, n_group)?;
        f.ensure(topk_group <= n_group, "topk_group", format!("at most n_group = {n_group}"), topk_group)?;
        let group = experts / n_group;
        let want = "at least two experts in each group, whose best two are its score";
        f.ensure(n_group == 1 || group >= 2, "n_group", want, n_group)?;
        let reach = topk_group.saturating_mul(group);
        let want = format!("at most the {reach} experts of topk_group = {topk_group} groups");
        f.ensure(top_k <= reach, "num_experts_per_tok", want, top_k)?;

        let heads = self.num_attention_heads;
        ensure_addressable(f, "num_attention_heads", [heads, self.qk_head_dim(), self.hidden_size])?;
        ensure_addressable(f, "v_head_dim", [heads, self.v_head_dim, self.hidden_size])?;
        let kv_b = [heads, self.qk_nope_head_dim + self.v_head_dim, self.kv_lora_rank];
        ensure_addressable(f, "kv_lora_rank", kv_b)?;
        ensure_addressable(f, "n_routed_experts", [experts, self.moe_intermediate_size, self.hidden_size])?;
        let shared = [self.n_shared_experts, self.moe_intermediate_size, self.hidden_size];
        ensure_addressable(f, "n_shared_experts", shared)
    }
}

/// Refuses dimensions whose tensor no machine could address, so that no later product overflows.
pub(super) fn ensure_addressable(f: &Fields<'_>, key: &str, dims: [usize; 3]) -> Result<()> {
    const MAX_ELEMENTS: usize = 1 << 48;
    let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if product.is_some_and(|n| n <= MAX_ELEMENTS) {
        return Ok(());
    }
    Err(f.wrong(key, "a tensor of at most 2^48 elements", format!("{dims:?}")))
}

fn attention_scale(f: &Fields<'_>, qk_head_dim: usize) -> Result<f64> {
    let scale = (qk_head_dim as f64).powf(-0.5);
    let Some(scaling) = f.object("rope_scaling")? else { return Ok(scale) };
    let Some(all_dim) = scaling.get("mscale_all_dim") else { return Ok(scale) };
    if all_dim.as_f64() == Some(0.0) {
        return Ok(scale);
    }
    let (all_dim, factor) = (scaling.positive("mscale_all_dim")?, scaling.positive("factor")?);
    let mscale = if factor > 1.0 { 0.1 * all_dim * factor.ln() + 1.0 } else { 1.0 };
    Ok(scale * mscale * mscale)
}

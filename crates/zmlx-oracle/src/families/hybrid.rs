//! The common parts of Qwen's models with linear attention.

use serde::Deserialize;

use super::rope::RopeConfig;
use super::rules;
use crate::Result;
use crate::ops::{Activation, RopeLayout, SoftmaxTopK};
use crate::plan::{
    Around, AttentionPlan, DeltaPlan, DeltaProjections, GqaPlan, HeadNorms, LayerNorms, LayerPlan, MlpPlan,
    MoePlan, Plan, RouterPlan,
};

#[derive(Deserialize)]
pub(super) struct HybridConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    #[serde(default)]
    intermediate_size: usize,
    #[serde(default = "interval")]
    full_attention_interval: usize,
    #[serde(default = "value_heads")]
    linear_num_value_heads: usize,
    #[serde(default = "key_heads")]
    linear_num_key_heads: usize,
    #[serde(default = "key_dim")]
    linear_key_head_dim: usize,
    #[serde(default = "value_dim")]
    linear_value_head_dim: usize,
    #[serde(default = "interval")]
    linear_conv_kernel_dim: usize,
    #[serde(default)]
    pub(super) num_experts: usize,
    #[serde(default = "rules::one")]
    num_experts_per_tok: usize,
    #[serde(default)]
    moe_intermediate_size: usize,
    #[serde(default)]
    shared_expert_intermediate_size: usize,
    norm_topk_prob: Option<bool>,
    #[serde(default = "eps")]
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
}

fn interval() -> usize {
    4
}

fn value_heads() -> usize {
    64
}

fn key_heads() -> usize {
    16
}

fn key_dim() -> usize {
    192
}

fn value_dim() -> usize {
    128
}

fn eps() -> f64 {
    1e-6
}

impl HybridConfig {
    /// The plan, with experts if `has_experts`. `norm_topk_prob` is used if the config does not have it.
    pub(super) fn plan(
        &self,
        projections: DeltaProjections,
        norm_topk_prob: bool,
        has_experts: impl Fn(usize) -> bool,
    ) -> Result<Plan> {
        let head_dim = self.head_dim.or(self.hidden_size.checked_div(self.num_attention_heads)).unwrap_or(0);
        let n_rotated = (head_dim as f64 * self.rope.partial_rotary_factor().unwrap_or(0.25)) as usize;
        rules::check(&rules::heads(self.num_attention_heads, self.num_key_value_heads, head_dim))?;
        rules::check(&[
            ("partial_rotary_factor", n_rotated.is_multiple_of(2) && (1..=head_dim).contains(&n_rotated)),
            ("full_attention_interval", self.full_attention_interval > 0),
            (
                "linear_num_key_heads",
                self.linear_num_key_heads > 0
                    && self.linear_num_value_heads.is_multiple_of(self.linear_num_key_heads),
            ),
            ("linear_num_value_heads", self.linear_num_value_heads > 0),
            ("linear_key_head_dim", self.linear_key_head_dim > 0),
            ("linear_value_head_dim", self.linear_value_head_dim > 0),
            ("linear_conv_kernel_dim", (2..=1 << 10).contains(&self.linear_conv_kernel_dim)),
            (
                "num_experts_per_tok",
                self.num_experts == 0 || (1..=self.num_experts).contains(&self.num_experts_per_tok),
            ),
            ("hidden_size", self.hidden_size > 0 && self.vocab_size > 0),
        ])?;
        let attention = GqaPlan {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim,
            qk_norm: HeadNorms::Each,
            output_gate: true,
            rope: self.rope.or_theta(100_000.0).plan(n_rotated, RopeLayout::HalfSplit)?,
            scale: 1.0 / (head_dim as f64).sqrt(),
            window: None,
            sinks: false,
            k_is_v: false,
            v_norm: false,
            shares: None,
        };
        let delta = DeltaPlan {
            n_k_heads: self.linear_num_key_heads,
            n_v_heads: self.linear_num_value_heads,
            k_dim: self.linear_key_head_dim,
            v_dim: self.linear_value_head_dim,
            kernel: self.linear_conv_kernel_dim,
            projections,
        };
        let router = SoftmaxTopK {
            n_experts: self.num_experts,
            top_k: self.num_experts_per_tok,
            norm_topk_prob: self.norm_topk_prob.unwrap_or(norm_topk_prob),
        };
        let moe = MoePlan {
            gate: "gate",
            activation: Activation::SwiGlu,
            inner: self.moe_intermediate_size,
            shared_inner: self.shared_expert_intermediate_size,
            shared_gate: true,
            router: RouterPlan::Softmax(router),
        };
        let layer = |layer_idx: usize| LayerPlan {
            attention: if (layer_idx + 1).is_multiple_of(self.full_attention_interval) {
                AttentionPlan::Gqa(attention.clone())
            } else {
                AttentionPlan::Delta(delta)
            },
            mlp: if self.num_experts > 0 && has_experts(layer_idx) {
                MlpPlan::Moe(moe.clone())
            } else {
                MlpPlan::Dense(self.intermediate_size)
            },
            mlp_path: "mlp",
            norms: LayerNorms::Before,
        };
        Ok(Plan {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            rms_norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
            around: Around::default(),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
        })
    }
}

//! What a `config.json` asks for, as plain data: the sizes and settings of every layer.

use crate::ops::{GatedDelta, NoauxTc, RopeLayout, SoftmaxTopK};

/// A model: embedding, layers, a norm, the output projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of the residual stream.
    pub hidden_size: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Whether the embedding is also the output projection.
    pub tie_word_embeddings: bool,
    /// The layers.
    pub layers: Vec<LayerPlan>,
}

/// `h = x + attention(rms_norm(x)); out = h + mlp(rms_norm(h))`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    /// The attention module, at `self_attn`, or `linear_attn` for the delta rule.
    pub attention: AttentionPlan,
    /// The MLP module, at `mlp`.
    pub mlp: MlpPlan,
}

/// An attention module.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionPlan {
    /// Grouped queries.
    Gqa(GqaPlan),
    /// Latent attention.
    Mla(MlaPlan),
    /// Linear attention by the gated delta rule.
    Delta(DeltaPlan),
}

/// Linear attention: a convolution, and [`crate::ops::gated_delta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaPlan {
    /// Heads of queries and keys.
    pub n_k_heads: usize,
    /// Heads of values.
    pub n_v_heads: usize,
    /// Elements of a query or key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Inputs that a result of the convolution depends on.
    pub kernel: usize,
    /// How the projections are stored.
    pub projections: DeltaProjections,
}

/// The layouts of the projections of linear attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaProjections {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a`.
    Apart,
    /// `in_proj_qkvz` with q, k, v and z of one key head after those of another, `in_proj_ba` with b and a likewise.
    ByHead,
}

impl DeltaPlan {
    /// The sizes for so many tokens.
    #[must_use]
    pub fn sizes(&self, n_tokens: usize) -> GatedDelta {
        let Self { n_k_heads, n_v_heads, k_dim, v_dim, .. } = *self;
        GatedDelta { n_tokens, n_k_heads, n_v_heads, k_dim, v_dim }
    }
}

/// Grouped-query attention with scores divided by `√head_dim`.
#[derive(Debug, Clone, PartialEq)]
pub struct GqaPlan {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether queries and keys are normed, head by head, before rope.
    pub qk_norm: bool,
    /// Whether `q_proj` also gives, head by head after the queries, what goes through a sigmoid and multiplies the result.
    pub output_gate: bool,
    /// Rope on queries and keys.
    pub rope: RopePlan,
}

/// Multi-head latent attention.
#[derive(Debug, Clone, PartialEq)]
pub struct MlaPlan {
    /// `None`: one plain `q_proj`.
    pub q_lora_rank: Option<usize>,
    /// Heads and their parts.
    pub sizes: MlaProjections,
    /// Elements of a query head with position, and of the shared key.
    pub qk_rope_head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Rope on these parts.
    pub rope: RopePlan,
}

/// Sizes of `embed_q`, `unembed_out` and `kv_b_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlaProjections {
    /// Heads.
    pub n_heads: usize,
    /// Elements of a query head without position.
    pub qk_nope_head_dim: usize,
    /// Elements of a value head.
    pub v_head_dim: usize,
    /// Elements of the latent.
    pub kv_lora_rank: usize,
}

/// The parameters of [`crate::ops::Rope`] that a model fixes.
#[derive(Debug, Clone, PartialEq)]
pub struct RopePlan {
    /// Radians per position and pair.
    pub frequencies: Vec<f64>,
    /// Factor on what is rotated.
    pub scale: f64,
    /// Which elements make a pair.
    pub layout: RopeLayout,
}

/// An MLP module.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpPlan {
    /// A gated MLP of this inner width.
    Dense(usize),
    /// A mixture of experts.
    Moe(MoePlan),
}

/// A mixture of gated MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct MoePlan {
    /// Inner width of an expert.
    pub inner: usize,
    /// Inner width of the shared experts together; 0 for none.
    pub shared_inner: usize,
    /// Whether their result is multiplied with the sigmoid of `shared_expert_gate`; they are at `shared_expert` then.
    pub shared_gate: bool,
    /// How experts are chosen.
    pub router: RouterPlan,
}

/// The rules by which experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterPlan {
    /// [`crate::ops::softmax_top_k`].
    Softmax(SoftmaxTopK),
    /// [`crate::ops::noaux_tc`], with a bias at `gate.e_score_correction_bias`.
    NoauxTc(NoauxTc),
}

impl RouterPlan {
    /// Routed experts.
    #[must_use]
    pub fn n_experts(&self) -> usize {
        match self {
            Self::Softmax(router) => router.n_experts,
            Self::NoauxTc(router) => router.n_experts,
        }
    }
}

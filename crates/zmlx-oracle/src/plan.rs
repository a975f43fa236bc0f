//! What a `config.json` asks for, as plain data: the sizes and settings of every layer.

use crate::ops::{NoauxTc, RopeLayout, SoftmaxTopK};

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
    /// The attention module, at `self_attn`.
    pub attention: AttentionPlan,
    /// The MLP module.
    pub mlp: MlpPlan,
    /// Where the MLP module is, usually `mlp`.
    pub mlp_path: &'static str,
}

/// An attention module.
#[derive(Debug, Clone, PartialEq)]
pub enum AttentionPlan {
    /// Grouped queries.
    Gqa(GqaPlan),
    /// Latent attention.
    Mla(MlaPlan),
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct GqaPlan {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How queries and keys are normed before rope.
    pub qk_norm: HeadNorms,
    /// Rope on queries and keys.
    pub rope: RopePlan,
    /// Factor on the scores.
    pub scale: f64,
}

/// How queries and keys are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// They are not.
    None,
    /// Head by head.
    Each,
    /// All heads of a token as one vector.
    All,
}

/// Multi-head latent attention.
#[derive(Debug, Clone, PartialEq)]
pub struct MlaPlan {
    /// `None`: one plain `q_proj`.
    pub q_lora_rank: Option<usize>,
    /// Heads and their parts.
    pub sizes: MlaProjections,
    /// Added to the mean square in the norms of the bottlenecks.
    pub eps: f64,
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
    /// How experts are chosen.
    pub router: RouterPlan,
}

/// The rules by which experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterPlan {
    /// [`crate::ops::softmax_top_k`].
    Softmax(SoftmaxTopK),
    /// [`crate::ops::noaux_tc`], with a bias at the path given, below the module.
    NoauxTc(NoauxTc, &'static str),
}

impl RouterPlan {
    /// Routed experts.
    #[must_use]
    pub fn n_experts(&self) -> usize {
        match self {
            Self::Softmax(router) => router.n_experts,
            Self::NoauxTc(router, _) => router.n_experts,
        }
    }
}

//! What a `config.json` asks for, as plain data: the sizes and settings of every layer.

use crate::ops::{Activation, GatedDelta, NoauxTc, RopeLayout, SoftmaxTopK};

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
    /// What some models have around their layers.
    pub around: Around,
    /// The layers.
    pub layers: Vec<LayerPlan>,
}

/// What some models have around their layers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Around {
    /// Factor on the embedding, if not 1.
    pub embed_factor: Option<f64>,
    /// The cap of the logits.
    pub logit_cap: Option<f64>,
    /// Elements of the input that each layer has of its own.
    pub per_layer_input: Option<usize>,
}

/// `h = x + attention(rms_norm(x)); out = h + mlp(rms_norm(h))`, or a sandwich.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    /// The attention module, at `self_attn`, or `linear_attn` for the delta rule.
    pub attention: AttentionPlan,
    /// The MLP module.
    pub mlp: MlpPlan,
    /// Where the MLP module is, usually `mlp`.
    pub mlp_path: &'static str,
    /// Whether there are norms after each part, and what goes with them.
    pub norms: LayerNorms,
}

/// Where a layer has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerNorms {
    /// Before each part.
    Before,
    /// Before and after each part, then perhaps the layer's own input, then a scalar: Gemma 4.
    Sandwich,
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
    /// A convolution of so many inputs between two gates, at `conv`.
    ShortConv(usize),
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
    /// Whether `q_proj` also gives, head by head after the queries, what goes through a sigmoid and multiplies the result.
    pub output_gate: bool,
    /// Rope on queries and keys.
    pub rope: RopePlan,
    /// Factor on the scores.
    pub scale: f64,
    /// Positions that a query sees, its own included; `None` for all.
    pub window: Option<usize>,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Whether values are the raw keys.
    pub k_is_v: bool,
    /// Whether values are normed without a weight.
    pub v_norm: bool,
    /// The earlier layer whose keys and values are used instead of own ones.
    pub shares: Option<usize>,
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
    /// A GeGLU of this inner width, and beside it a mixture if there is one: Gemma 4.
    Gemma(usize, Option<MoePlan>),
}

/// A mixture of gated MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct MoePlan {
    /// Where the router's matrix is, below the module.
    pub gate: &'static str,
    /// What joins an expert's gate and up.
    pub activation: Activation,
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
    /// Softmax over the logits of the `top_k` largest alone.
    SoftmaxOfChosen {
        /// Routed experts.
        n_experts: usize,
        /// Experts chosen for each token.
        top_k: usize,
    },
    /// [`crate::ops::noaux_tc`], with a bias at the path given, below the module; none where that is empty.
    NoauxTc(NoauxTc, &'static str),
}

impl RouterPlan {
    /// Routed experts.
    #[must_use]
    pub fn n_experts(&self) -> usize {
        match self {
            Self::Softmax(router) => router.n_experts,
            Self::SoftmaxOfChosen { n_experts, .. } => *n_experts,
            Self::NoauxTc(router, _) => router.n_experts,
        }
    }
}

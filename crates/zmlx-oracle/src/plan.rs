//! The model that a `config.json` describes, as plain data: the sizes and settings of every layer.

use crate::ops::{Activation, GatedDelta, NoauxTc, RopeLayout, SoftmaxTopK};

/// A model: embedding, layers, a norm, the output projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of the residual stream.
    pub hidden_size: usize,
    /// The epsilon of the norms, which is added to the mean square.
    pub rms_norm_eps: f64,
    /// Whether the embedding is also the output projection.
    pub tie_word_embeddings: bool,
    /// Parts around the layers that only some models have.
    pub around: Around,
    /// The layers.
    pub layers: Vec<LayerPlan>,
}

/// Parts around the layers that only some models have.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Around {
    /// Factor of the embedding; `None` means 1.
    pub embed_factor: Option<f64>,
    /// The cap of the logits.
    pub logit_cap: Option<f64>,
    /// Width of the input that each layer has of its own.
    pub per_layer_input: Option<usize>,
}

/// `h = x + attention(rms_norm(x)); out = h + mlp(rms_norm(h))`, or with norms after each part as well.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    /// The attention module, at `self_attn`, or `linear_attn` for the delta rule.
    pub attention: AttentionPlan,
    /// The MLP module.
    pub mlp: MlpPlan,
    /// The path of the MLP module, usually `mlp`.
    pub mlp_path: &'static str,
    /// Where its norms are.
    pub norms: LayerNorms,
}

/// Where a layer has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerNorms {
    /// Before each part.
    Before,
    /// Before and after each part, then the layer's own input if there is one, then a scalar: Gemma 4.
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
    /// A convolution over this many inputs between two gates, at `conv`.
    ShortConv(usize),
}

/// Linear attention: a convolution, and [`crate::ops::gated_delta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaPlan {
    /// Number of heads of queries and keys.
    pub n_k_heads: usize,
    /// Number of heads of values.
    pub n_v_heads: usize,
    /// Elements of a query or key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Number of inputs that a result of the convolution depends on.
    pub kernel: usize,
    /// How the projections are stored.
    pub projections: DeltaProjections,
}

/// The layouts of the projections of linear attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaProjections {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b`, `in_proj_a`.
    Apart,
    /// `in_proj_qkvz` with q, k, v and z of each key head together, and `in_proj_ba` with b and a likewise.
    ByHead,
}

impl DeltaPlan {
    /// The sizes for this number of tokens.
    #[must_use]
    pub fn sizes(&self, n_tokens: usize) -> GatedDelta {
        let Self { n_k_heads, n_v_heads, k_dim, v_dim, .. } = *self;
        GatedDelta { n_tokens, n_k_heads, n_v_heads, k_dim, v_dim }
    }
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct GqaPlan {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How queries and keys are normed before rope.
    pub qk_norm: HeadNorms,
    /// Whether `q_proj` also gives the output gate, head by head after the queries. Its sigmoid multiplies the result.
    pub output_gate: bool,
    /// The rope of queries and keys.
    pub rope: RopePlan,
    /// Factor of the scores.
    pub scale: f64,
    /// Number of positions that a query sees, its own included; `None` for all.
    pub window: Option<usize>,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Whether values are the raw keys.
    pub k_is_v: bool,
    /// Whether values are normed without a weight.
    pub v_norm: bool,
    /// The earlier layer whose keys and values are used; `None` if the layer has its own.
    pub shares: Option<usize>,
}

/// How queries and keys are normed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    /// They are not normed.
    None,
    /// Each head is normed on its own.
    Each,
    /// All heads of a token are normed as one vector.
    All,
}

/// Multi-head latent attention.
#[derive(Debug, Clone, PartialEq)]
pub struct MlaPlan {
    /// `None` if there is one plain `q_proj`.
    pub q_lora_rank: Option<usize>,
    /// Heads and their parts.
    pub sizes: MlaProjections,
    /// The epsilon of the norms of the bottlenecks.
    pub eps: f64,
    /// Elements of a query head with position, and of the shared key.
    pub qk_rope_head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// The rope of these parts.
    pub rope: RopePlan,
}

/// Sizes of `embed_q`, `unembed_out` and `kv_b_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlaProjections {
    /// Number of heads.
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
    /// Factor of the rotated elements.
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
    /// A GeGLU of this inner width, with a mixture of experts beside it if there is one: Gemma 4.
    Gemma(usize, Option<MoePlan>),
}

/// A mixture of gated MLPs.
#[derive(Debug, Clone, PartialEq)]
pub struct MoePlan {
    /// The path of the router's matrix, relative to the module.
    pub gate: &'static str,
    /// How an expert joins gate and up.
    pub activation: Activation,
    /// Inner width of an expert.
    pub inner: usize,
    /// Inner width of all shared experts together; 0 if there are none.
    pub shared_inner: usize,
    /// Whether their result is multiplied by the sigmoid of `shared_expert_gate`. Then they are at `shared_expert`.
    pub shared_gate: bool,
    /// How experts are chosen.
    pub router: RouterPlan,
}

/// The rules by which experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterPlan {
    /// [`crate::ops::softmax_top_k`].
    Softmax(SoftmaxTopK),
    /// Softmax over only the `top_k` largest logits.
    SoftmaxOfChosen {
        /// Number of routed experts.
        n_experts: usize,
        /// Number of experts chosen for each token.
        top_k: usize,
    },
    /// [`crate::ops::noaux_tc`]. The path of its bias is relative to the module; an empty path means no bias.
    NoauxTc(NoauxTc, &'static str),
}

impl RouterPlan {
    /// Number of routed experts.
    #[must_use]
    pub fn n_experts(&self) -> usize {
        match self {
            Self::Softmax(router) => router.n_experts,
            Self::SoftmaxOfChosen { n_experts, .. } => *n_experts,
            Self::NoauxTc(router, _) => router.n_experts,
        }
    }
}

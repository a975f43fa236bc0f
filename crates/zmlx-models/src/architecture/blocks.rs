//! The blocks that layers are made of.

use super::{DeltaSpec, ShortConvSpec};
use zmlx_kernels::{CacheKind, NoauxTc, Rope, SoftmaxTopK};

/// How converters store a weight, which is how random ones are made. A file's own tensors decide what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the format that `config.json` gives the model.
    Model,
    /// With 8 bits in groups of 64, whatever the model has.
    EightBit,
    /// Never quantised.
    Dense,
}

/// A matrix `[n_out, n_in]` at `path.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// The tensor's name without `.weight`.
    pub path: String,
    /// Rows: the width of the product.
    pub n_out: usize,
    /// Columns: the width of the input.
    pub n_in: usize,
    /// How converters store it.
    pub storage: Storage,
}

impl MatrixSpec {
    pub(crate) fn new(path: impl Into<String>, n_out: usize, n_in: usize) -> Self {
        Self { path: path.into(), n_out, n_in, storage: Storage::Model }
    }

    pub(crate) fn stored(self, storage: Storage) -> Self {
        Self { storage, ..self }
    }
}

/// A matrix and perhaps a bias `[n_out]` at `path.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearSpec {
    /// The matrix.
    pub matrix: MatrixSpec,
    /// Whether there is a bias.
    pub bias: Option<VectorSpec>,
}

impl LinearSpec {
    pub(crate) fn new(path: String, n_out: usize, n_in: usize) -> Self {
        Self { matrix: MatrixSpec::new(path, n_out, n_in), bias: None }
    }

    pub(crate) fn biased(path: String, n_out: usize, n_in: usize) -> Self {
        let bias = Some(VectorSpec::new(format!("{path}.bias"), n_out));
        Self { matrix: MatrixSpec::new(path, n_out, n_in), bias }
    }
}

/// A vector of floats: the weight of a norm, a bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorSpec {
    /// The tensor's full name.
    pub name: String,
    /// Number of values.
    pub len: usize,
    /// Whether files of Hugging Face hold its distance from 1, and converted ones itself.
    pub from_one_if_raw: bool,
}

impl VectorSpec {
    pub(crate) fn new(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), len, from_one_if_raw: false }
    }

    /// The weight of a norm whose distance from 1 is what Hugging Face's files hold.
    pub(crate) fn from_one(name: impl Into<String>, len: usize) -> Self {
        Self { from_one_if_raw: true, ..Self::new(name, len) }
    }
}

/// `h = x + mixer(norm(x)); y = h + feed_forward(norm(h))`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// The weight of the norm before the mixer.
    pub input_norm: VectorSpec,
    /// What lets tokens see each other.
    pub mixer: MixerSpec,
    /// The weight of the norm after the mixer.
    pub post_norm: VectorSpec,
    /// What each token goes through alone.
    pub feed_forward: FeedForwardSpec,
}

impl LayerSpec {
    /// The layer's mixture of experts, if it has one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match &self.feed_forward {
            FeedForwardSpec::Moe(moe) => Some(moe),
            FeedForwardSpec::Dense(_) => None,
        }
    }

    /// The MLP that every token goes through: a dense layer's, or the shared experts.
    pub fn dense_mlp(&self) -> Option<&MlpSpec> {
        match &self.feed_forward {
            FeedForwardSpec::Dense(mlp) => Some(mlp),
            FeedForwardSpec::Moe(moe) => moe.shared.as_ref(),
        }
    }
}

/// The kinds of mixers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MixerSpec {
    /// Grouped-query attention.
    Attention(GqaSpec),
    /// Multi-head latent attention.
    Latent(MlaSpec),
    /// Linear attention by the gated delta rule.
    Delta(DeltaSpec),
    /// A short convolution between two gates.
    ShortConv(ShortConvSpec),
}

impl MixerSpec {
    /// What the layer's cache holds.
    pub fn cache_kind(&self) -> CacheKind {
        match self {
            Self::Attention(a) => CacheKind::Full { n_kv_heads: a.n_kv_heads, head_dim: a.head_dim },
            Self::Latent(a) => CacheKind::Latent { rank: a.rank, rope_dim: a.rope_dim },
            Self::Delta(a) => a.cache_kind(),
            Self::ShortConv(a) => a.cache_kind(),
        }
    }
}

/// Grouped-query attention: `o( attend( rope(q_norm(q(x))), rope(k_norm(k(x))), v(x) ) )`.
#[derive(Clone, Debug, PartialEq)]
pub struct GqaSpec {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[n_heads · head_dim, hidden]`; with an output gate twice as many rows, for each head its queries, then its gates.
    pub q: LinearSpec,
    /// Whether the result of attention is multiplied with the sigmoid of the gates.
    pub output_gate: bool,
    /// `[n_kv_heads · head_dim, hidden]`.
    pub k: LinearSpec,
    /// As `k`.
    pub v: LinearSpec,
    /// `[hidden, n_heads · head_dim]`.
    pub o: LinearSpec,
    /// Norms of each head's query and key, `[head_dim]`, before rope.
    pub qk_norm: Option<[VectorSpec; 2]>,
    /// The epsilon of these norms.
    pub eps: f32,
    /// How queries and keys are rotated.
    pub rope: Rope,
    /// What multiplies the scores.
    pub scale: f32,
}

/// Multi-head latent attention: the cache holds one latent and one rotated key per token for all heads.
#[derive(Clone, Debug, PartialEq)]
pub struct MlaSpec {
    /// The module's path: `embed_q`, `unembed_out` or the older `kv_b_proj` are below it.
    pub path: String,
    /// Heads.
    pub n_heads: usize,
    /// Width of a head's key without its rope part.
    pub nope_dim: usize,
    /// Width of the rotated key.
    pub rope_dim: usize,
    /// Width of a head's value.
    pub v_dim: usize,
    /// Width of the latent.
    pub rank: usize,
    /// How queries come about.
    pub q: QuerySpec,
    /// `[rank + rope_dim, hidden]`.
    pub kv_a: LinearSpec,
    /// `[rank]`.
    pub kv_norm: VectorSpec,
    /// `[hidden, n_heads · v_dim]`.
    pub o: LinearSpec,
    /// The epsilon of the norms of queries and latents.
    pub eps: f32,
    /// How the rope parts are rotated.
    pub rope: Rope,
    /// What multiplies the scores.
    pub scale: f32,
}

/// How latent attention's queries, `n_heads · (nope_dim + rope_dim)` of them, come from the hidden state.
#[derive(Clone, Debug, PartialEq)]
pub enum QuerySpec {
    /// By one matrix.
    Direct(LinearSpec),
    /// Through a normed bottleneck: `b(norm(a(x)))`.
    LowRank {
        /// `[q_lora_rank, hidden]`.
        a: LinearSpec,
        /// `[q_lora_rank]`.
        norm: VectorSpec,
        /// `[n_heads · (nope_dim + rope_dim), q_lora_rank]`.
        b: LinearSpec,
    },
}

/// What follows the mixer.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardSpec {
    /// One MLP for every token.
    Dense(MlpSpec),
    /// A mixture of experts.
    Moe(MoeSpec),
}

/// What joins the two projections of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `silu(gate) · up`.
    SwiGlu,
}

/// `down( activation(gate(x), up(x)) )`.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpSpec {
    /// `[inter, hidden]`.
    pub gate: MatrixSpec,
    /// As `gate`.
    pub up: MatrixSpec,
    /// `[hidden, inter]`.
    pub down: MatrixSpec,
    /// What joins gate and up.
    pub activation: Activation,
}

impl MlpSpec {
    /// `gate_proj`, `up_proj` and `down_proj` below `path`, with SwiGLU.
    pub(crate) fn swiglu(path: &str, inter: usize, hidden: usize) -> Self {
        Self {
            gate: MatrixSpec::new(format!("{path}.gate_proj"), inter, hidden),
            up: MatrixSpec::new(format!("{path}.up_proj"), inter, hidden),
            down: MatrixSpec::new(format!("{path}.down_proj"), hidden, inter),
            activation: Activation::SwiGlu,
        }
    }
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Chooses the experts.
    pub router: RouterSpec,
    /// The routed experts.
    pub experts: ExpertsSpec,
    /// Added for every token, unweighted but for a gate. Several shared experts are one MLP as wide as all.
    pub shared: Option<MlpSpec>,
    /// `[1, hidden]`: its sigmoid multiplies what is shared.
    pub shared_gate: Option<MatrixSpec>,
}

/// The rules by which experts are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum RouterSpec {
    /// Softmax over all experts, the most probable ones chosen.
    SoftmaxTopK {
        /// `[n_experts, hidden]`.
        gate: MatrixSpec,
        /// The rule's settings.
        settings: SoftmaxTopK,
    },
    /// Sigmoid scores with a correction bias that takes part in the choice only.
    NoauxTc {
        /// `[n_experts, hidden]`.
        gate: MatrixSpec,
        /// `[n_experts]`; without one the scores alone count.
        bias: Option<VectorSpec>,
        /// The rule's settings.
        settings: NoauxTc,
    },
}

impl RouterSpec {
    /// The matrix that gives the logits.
    pub fn gate(&self) -> &MatrixSpec {
        match self {
            Self::SoftmaxTopK { gate, .. } | Self::NoauxTc { gate, .. } => gate,
        }
    }

    /// Experts that each token goes to.
    pub fn top_k(&self) -> usize {
        match self {
            Self::SoftmaxTopK { settings, .. } => settings.top_k,
            Self::NoauxTc { settings, .. } => settings.top_k,
        }
    }
}

/// The gated MLPs of all experts.
///
/// Files hold them in one of several layouts: stacked (`switch_mlp.gate_proj`), one by one (`experts.3.gate_proj`), or
/// gate and up in one stack, the rows of gate first (`experts.gate_up_proj`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertsSpec {
    /// The path of the mixture: `model.layers.1.mlp`.
    pub path: String,
    /// Number of experts.
    pub n_experts: usize,
    /// Width of an expert.
    pub inter: usize,
    /// Width of its input and output.
    pub hidden: usize,
    /// What joins gate and up.
    pub activation: Activation,
}

impl ExpertsSpec {
    /// Gate, up and down: each one's name, rows and columns.
    pub(crate) fn projections(&self) -> [(&'static str, usize, usize); 3] {
        let Self { inter, hidden, .. } = *self;
        [("gate_proj", inter, hidden), ("up_proj", inter, hidden), ("down_proj", hidden, inter)]
    }

    /// Where a projection of all experts may be stacked; the first is the usual one.
    pub(crate) fn stacked(&self, projection: &str) -> [String; 2] {
        ["switch_mlp", "experts"].map(|module| format!("{}.{module}.{projection}", self.path))
    }

    /// Where a single expert's projection may be.
    pub(crate) fn one_by_one(&self, expert_idx: usize, projection: &str) -> String {
        format!("{}.experts.{expert_idx}.{projection}", self.path)
    }

    /// Where gate and up of all experts may be in one stack.
    pub(crate) fn gate_up(&self) -> [String; 2] {
        self.stacked("gate_up_proj")
    }
}

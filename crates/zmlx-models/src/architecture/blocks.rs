//! The blocks that layers are made of.

use std::fmt::Display;

use zmlx_kernels::{Activation, CacheKind, NoauxTc, Rope, SoftmaxTopK};

use super::{DeltaSpec, ExpertSplit, ShortConvSpec, Slice, Split};

/// How converters store a weight, which is how random ones are made. A file's own tensors decide what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    /// Which part of the matrix in the files this is: rows and columns are the part's.
    pub split: Split,
}

impl MatrixSpec {
    pub(crate) fn new(path: impl Into<String>, n_out: usize, n_in: usize) -> Self {
        Self { path: path.into(), n_out, n_in, storage: Storage::Model, split: Split::None }
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
    /// Which part of the vector in the files this is, if not all of it; `len` is the part's.
    pub slice: Option<Slice>,
}

impl VectorSpec {
    pub(crate) fn new(name: impl Into<String>, len: usize) -> Self {
        Self { name: name.into(), len, from_one_if_raw: false, slice: None }
    }

    /// The weight of a norm whose distance from 1 is what Hugging Face's files hold.
    pub(crate) fn from_one(name: impl Into<String>, len: usize) -> Self {
        Self { from_one_if_raw: true, ..Self::new(name, len) }
    }
}

/// `h = x + mixer(norm(x)); y = h + feed_forward(norm(h))`, and what some families have besides.
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
    /// What most families lack.
    pub extras: LayerExtras,
}

/// What only some families have in a layer:
///
/// ```text
/// h = x + mixer_norm(mixer(norm(x)));  y = h + feed_forward_norm(feed_forward(norm(h)))
/// y += norm(projection(gelu(gate(y)) · input));  y *= factor
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerExtras {
    /// Norm of what the mixer gives, `[hidden]`.
    pub mixer_norm: Option<VectorSpec>,
    /// Norm of what the feed-forward part gives, `[hidden]`.
    pub feed_forward_norm: Option<VectorSpec>,
    /// What takes in the layer's own embedding of the token.
    pub per_layer_input: Option<PerLayerInputSpec>,
    /// Factor of the result, `[1]`.
    pub factor: Option<VectorSpec>,
}

/// How a layer takes in its own embedding of the token, `width` wide.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerInputSpec {
    /// `[width, hidden]`.
    pub gate: MatrixSpec,
    /// `[hidden, width]`.
    pub projection: MatrixSpec,
    /// `[hidden]`.
    pub norm: VectorSpec,
}

impl LayerSpec {
    /// The layer's mixture of experts, if it has one.
    pub fn moe(&self) -> Option<&MoeSpec> {
        match &self.feed_forward {
            FeedForwardSpec::Moe(moe) => Some(&**moe),
            FeedForwardSpec::Beside(beside) => Some(&beside.moe),
            FeedForwardSpec::Dense(_) => None,
        }
    }

    /// The MLP that every token goes through: a dense layer's, or the shared experts.
    pub fn dense_mlp(&self) -> Option<&MlpSpec> {
        match &self.feed_forward {
            FeedForwardSpec::Dense(mlp) => Some(&**mlp),
            FeedForwardSpec::Moe(moe) => moe.shared.as_ref(),
            FeedForwardSpec::Beside(beside) => Some(&beside.mlp),
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
    /// Grouped-query attention to the keys and values of an earlier layer.
    Shared(SharedGqaSpec),
    /// Linear attention by the gated delta rule.
    Delta(DeltaSpec),
    /// A short convolution between two gates.
    ShortConv(ShortConvSpec),
}

impl MixerSpec {
    /// What the layer's cache holds; `None` for a layer that has none.
    pub fn cache_kind(&self) -> Option<CacheKind> {
        match self {
            Self::Attention(a) => Some(a.cache_kind()),
            Self::Latent(a) => Some(CacheKind::Latent { rank: a.rank, rope_dim: a.rope_dim }),
            Self::Delta(a) => Some(a.cache_kind()),
            Self::ShortConv(a) => Some(a.cache_kind()),
            Self::Shared(_) => None,
        }
    }
}

/// Grouped-query attention: `o( attend( rope(q_norm(q(x))), rope(k_norm(k(x))), v(x) ) )`.
///
/// A norm of queries or keys is of each head if its weight is as wide as one, and of all heads at once if it is as wide as
/// all.
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
    /// As `k`; `None`: the values are what `k` gives, before its norm and rope.
    pub v: Option<LinearSpec>,
    /// `[hidden, n_heads · head_dim]`.
    pub o: LinearSpec,
    /// Norm of the queries before rope.
    pub q_norm: Option<VectorSpec>,
    /// Norm of the keys before rope.
    pub k_norm: Option<VectorSpec>,
    /// Whether each head's value is normed, without a weight.
    pub norms_values: bool,
    /// The epsilon of these norms.
    pub eps: f32,
    /// How queries and keys are rotated.
    pub rope: Rope,
    /// What multiplies the scores.
    pub scale: f32,
    /// Tokens that a token sees, itself included; all before it without a window.
    pub window: Option<usize>,
    /// A score for each head that takes part in the softmax and has no value, `[n_heads]`.
    pub sinks: Option<VectorSpec>,
}

impl GqaSpec {
    fn cache_kind(&self) -> CacheKind {
        let Self { n_kv_heads, head_dim, .. } = *self;
        match self.window {
            Some(window) => CacheKind::Window { n_kv_heads, head_dim, window },
            None => CacheKind::Full { n_kv_heads, head_dim },
        }
    }

    /// Rows of queries, keys and values together.
    pub(crate) fn qkv_width(&self) -> usize {
        let per_query = if self.output_gate { 2 } else { 1 };
        let n_values = self.v.as_ref().map_or(0, |_| self.n_kv_heads);
        (per_query * self.n_heads + self.n_kv_heads + n_values) * self.head_dim
    }
}

/// Grouped queries over the keys and values that an earlier layer has in its cache: the layer has none of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedGqaSpec {
    /// The module's path: files may hold keys and values below it, which are not used.
    pub path: String,
    /// The layer whose cache is used; an earlier one.
    pub of_layer: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// `[n_heads · head_dim, hidden]`.
    pub q: LinearSpec,
    /// Norm of each query before rope, `[head_dim]`.
    pub q_norm: Option<VectorSpec>,
    /// `[hidden, n_heads · head_dim]`.
    pub o: LinearSpec,
    /// The epsilon of the norm.
    pub eps: f32,
    /// How queries are rotated: as the other layer's keys.
    pub rope: Rope,
    /// What multiplies the scores.
    pub scale: f32,
    /// The other layer's window.
    pub window: Option<usize>,
}

/// Multi-head latent attention: the cache holds one latent and one rotated key per token for all heads.
#[derive(Clone, Debug, PartialEq)]
pub struct MlaSpec {
    /// The module's path: `embed_q`, `unembed_out` or the older `kv_b_proj` are below it.
    pub path: String,
    /// Heads.
    pub n_heads: usize,
    /// Which of the heads in the files these are, if not all.
    pub slice: Option<Slice>,
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

impl MlaSpec {
    /// Rows of the low rank queries, the latent and the shared key together; none for queries without a low rank.
    pub(crate) fn qkv_a_width(&self) -> Option<usize> {
        match &self.q {
            QuerySpec::Direct(_) => None,
            QuerySpec::LowRank { a, .. } => Some(a.matrix.n_out + self.kv_a.matrix.n_out),
        }
    }
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
#[non_exhaustive]
pub enum FeedForwardSpec {
    /// One MLP for every token.
    Dense(Box<MlpSpec>),
    /// A mixture of experts.
    Moe(Box<MoeSpec>),
    /// Both, side by side.
    Beside(Box<BesideSpec>),
}

impl FeedForwardSpec {
    /// One MLP for every token.
    pub(crate) fn dense(mlp: MlpSpec) -> Self {
        Self::Dense(Box::new(mlp))
    }

    /// A mixture of experts.
    pub(crate) fn moe(moe: MoeSpec) -> Self {
        Self::Moe(Box::new(moe))
    }
}

/// An MLP beside a mixture: `mlp_norm(mlp(x)) + moe_norm(experts(moe_input_norm(h)))`, h being the residual stream, which
/// the router sees, and x its norm.
#[derive(Clone, Debug, PartialEq)]
pub struct BesideSpec {
    /// The MLP.
    pub mlp: MlpSpec,
    /// Norm of what it gives, `[hidden]`.
    pub mlp_norm: VectorSpec,
    /// The mixture.
    pub moe: MoeSpec,
    /// Norm of what the experts get, `[hidden]`.
    pub moe_input_norm: VectorSpec,
    /// Norm of what they give, `[hidden]`.
    pub moe_norm: VectorSpec,
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
#[non_exhaustive]
pub enum RouterSpec {
    /// Softmax over all experts, the most probable ones chosen.
    SoftmaxTopK {
        /// `[n_experts, hidden]`.
        gate: MatrixSpec,
        /// The rule's settings.
        settings: SoftmaxTopK,
    },
    /// The largest logits chosen, softmax over these alone.
    SoftmaxOfChosen(Box<SoftmaxOfChosen>),
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

/// A router that takes the largest logits, and the softmax of these alone.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxOfChosen {
    /// `[n_experts, hidden]`.
    pub gate: LinearSpec,
    /// A norm before it.
    pub norm: Option<ScaledNorm>,
    /// What multiplies each expert's weight after the softmax, `[n_experts]`.
    pub factors: Option<VectorSpec>,
    /// Experts per token.
    pub top_k: usize,
}

/// A norm whose weight is a vector times a number.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaledNorm {
    /// `[hidden]`.
    pub weight: VectorSpec,
    /// The number.
    pub factor: f32,
    /// The norm's epsilon.
    pub eps: f32,
}

impl RouterSpec {
    /// The matrix that gives the logits.
    pub fn gate(&self) -> &MatrixSpec {
        match self {
            Self::SoftmaxTopK { gate, .. } | Self::NoauxTc { gate, .. } => gate,
            Self::SoftmaxOfChosen(of) => &of.gate.matrix,
        }
    }

    /// Experts that each token goes to.
    pub fn top_k(&self) -> usize {
        match self {
            Self::SoftmaxTopK { settings, .. } => settings.top_k,
            Self::SoftmaxOfChosen(of) => of.top_k,
            Self::NoauxTc { settings, .. } => settings.top_k,
        }
    }
}

/// The gated MLPs of all experts.
///
/// Files hold them in one of several layouts: stacked (`switch_mlp.gate_proj`), one by one (`experts.3.gate_proj` or
/// `experts.3.w1`), or gate and up in one stack: the rows of gate first (`experts.gate_up_proj`), or in turn, in blocks of
/// mxfp4 (`experts.gate_up_proj_blocks`).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// The path of the mixture: `model.layers.1.mlp`.
    pub path: String,
    /// Below it the module that MLX's files stack the experts in: `switch_mlp`.
    pub module: &'static str,
    /// Number of experts.
    pub n_experts: usize,
    /// Width of an expert.
    pub inter: usize,
    /// Width of its input and output.
    pub hidden: usize,
    /// What joins gate and up.
    pub activation: Activation,
    /// Whether each projection has a bias.
    pub is_biased: bool,
    /// Which part of the experts in the files these are: their number and width are the part's.
    pub split: ExpertSplit,
}

impl ExpertsSpec {
    /// Experts without biases, joined by SwiGLU.
    pub(crate) fn swiglu(path: String, n_experts: usize, [inter, hidden]: [usize; 2]) -> Self {
        Self {
            path,
            module: "switch_mlp",
            n_experts,
            inter,
            hidden,
            activation: Activation::SwiGlu,
            is_biased: false,
            split: ExpertSplit::None,
        }
    }

    /// Gate, up and down: each one's name, rows and columns.
    pub(crate) fn projections(&self) -> [(&'static str, usize, usize); 3] {
        let Self { inter, hidden, .. } = *self;
        [("gate_proj", inter, hidden), ("up_proj", inter, hidden), ("down_proj", hidden, inter)]
    }

    /// Where a projection of all experts may be stacked; the first is the place in MLX's files.
    pub(crate) fn stacked(&self, projection: &str) -> [String; 3] {
        let mut modules = ["switch_mlp", "experts", "experts.switch_glu"];
        modules.sort_by_key(|module| *module != self.module);
        modules.map(|module| format!("{}.{module}.{projection}", self.path))
    }

    /// Where a single expert's projection may be; the first is the usual one.
    pub(crate) fn one_by_one(&self, expert_idx: impl Display, projection: &str) -> [String; 2] {
        let short = match projection {
            "gate_proj" => "w1",
            "down_proj" => "w2",
            _ => "w3",
        };
        [projection, short].map(|name| format!("{}.experts.{expert_idx}.{name}", self.path))
    }

    /// Where a projection's biases of all experts may be stacked.
    pub(crate) fn biases(&self, projection: &str) -> [String; 3] {
        self.stacked(projection).map(|path| format!("{path}.bias"))
    }

    /// Where gate and up of all experts may be in one stack.
    pub(crate) fn gate_up(&self) -> [String; 3] {
        self.stacked("gate_up_proj")
    }
}

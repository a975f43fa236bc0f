//! Mixers whose memory of a sequence has a fixed size, whatever its length.

use zmlx_kernels::{CacheKind, DeltaDims};

use super::{LinearSpec, MatrixSpec, VectorSpec};

/// The taps of a convolution for each channel, and perhaps a bias. The shape is `[n_channels, kernel, 1]` in converted
/// files and `[n_channels, 1, kernel]` in those of Hugging Face.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// The name of the tensor without `.weight`.
    pub path: String,
    /// The number of channels.
    pub n_channels: usize,
    /// The number of inputs on which a result depends; at least 2.
    pub kernel: usize,
    /// The bias, `[n_channels]`.
    pub bias: Option<VectorSpec>,
}

/// Linear attention with the gated delta rule:
/// `out( norm(delta(conv(qkv(x)), a(x), b(x))) · silu(z(x)) )`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaSpec {
    /// The sizes.
    pub dims: DeltaDims,
    /// The projections of the hidden state.
    pub projections: DeltaProjections,
    /// The convolution over queries, keys and values, followed by SiLU.
    pub conv: ConvSpec,
    /// The logarithm of the decay's rate for each value head, `[n_v_heads]`.
    pub a_log: VectorSpec,
    /// The bias of the decay's time step, `[n_v_heads]`.
    pub dt_bias: VectorSpec,
    /// The weight of the norm, `[v_dim]`.
    pub norm: VectorSpec,
    /// The epsilon of the norm.
    pub eps: f32,
    /// The output projection, `[hidden, n_v_heads · v_dim]`.
    pub out: MatrixSpec,
}

/// How files store the projections of [`DeltaSpec`].
#[derive(Clone, Debug, PartialEq)]
pub enum DeltaProjections {
    /// One tensor for each kind of projection.
    Apart {
        /// All queries, then all keys, then all values: `[n_channels, hidden]`.
        qkv: MatrixSpec,
        /// The gate: `[n_v_heads · v_dim, hidden]`.
        z: MatrixSpec,
        /// The projection to b, `[n_v_heads, hidden]`.
        b: MatrixSpec,
        /// The projection to a, `[n_v_heads, hidden]`.
        a: MatrixSpec,
    },
    /// Two tensors, whose rows are ordered by key head.
    ByHead {
        /// For each key head, its query, its key, and the values and gates of its value heads.
        qkvz: MatrixSpec,
        /// For each key head, b and a of its value heads.
        ba: MatrixSpec,
    },
}

impl DeltaSpec {
    /// The matrices of the projections.
    pub(crate) fn projections(&self) -> Vec<&MatrixSpec> {
        match &self.projections {
            DeltaProjections::Apart { qkv, z, b, a } => vec![qkv, z, b, a],
            DeltaProjections::ByHead { qkvz, ba } => vec![qkvz, ba],
        }
    }

    /// The number of rows of all projections together.
    pub(crate) fn n_projected(&self) -> usize {
        self.projections().iter().map(|matrix| matrix.n_out).sum()
    }

    pub(crate) fn cache_kind(&self) -> CacheKind {
        CacheKind::Delta(self.dims)
    }
}

/// A short convolution between two gates: `b | c | u = in(x)`, `out(c · conv(b · u))`.
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvSpec {
    /// The input projection, `[3 · hidden, hidden]`.
    pub input: LinearSpec,
    /// The convolution over the hidden width.
    pub conv: ConvSpec,
    /// The output projection, `[hidden, hidden]`.
    pub out: LinearSpec,
}

impl ShortConvSpec {
    pub(crate) fn cache_kind(&self) -> CacheKind {
        CacheKind::Conv { n_channels: self.conv.n_channels, kernel: self.conv.kernel }
    }
}

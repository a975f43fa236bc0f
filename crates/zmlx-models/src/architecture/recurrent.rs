//! Mixers whose memory of a sequence has one size, whatever its length.

use zmlx_kernels::{CacheKind, DeltaDims};

use super::{LinearSpec, MatrixSpec, VectorSpec};

/// The weight of a convolution for each channel, `[n_channels, kernel, 1]` in converted files and `[n_channels, 1, kernel]` in
/// those of Hugging Face, and perhaps a bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// The tensor's name without `.weight`.
    pub path: String,
    /// Channels.
    pub n_channels: usize,
    /// Inputs that a result depends on; at least 2.
    pub kernel: usize,
    /// `[n_channels]`.
    pub bias: Option<VectorSpec>,
}

/// Linear attention by the gated delta rule:
/// `out( norm(delta(conv(qkv(x)), a(x), b(x))) · silu(z(x)) )`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaSpec {
    /// The sizes.
    pub dims: DeltaDims,
    /// The projections of the hidden state.
    pub projections: DeltaProjections,
    /// Over queries, keys and values, with SiLU.
    pub conv: ConvSpec,
    /// `[n_v_heads]`.
    pub a_log: VectorSpec,
    /// `[n_v_heads]`.
    pub dt_bias: VectorSpec,
    /// `[v_dim]`.
    pub norm: VectorSpec,
    /// The epsilon of the norm.
    pub eps: f32,
    /// `[hidden, n_v_heads · v_dim]`.
    pub out: MatrixSpec,
}

/// How files hold the projections of [`DeltaSpec`].
#[derive(Clone, Debug, PartialEq)]
pub enum DeltaProjections {
    /// Each for itself.
    Apart {
        /// All queries, all keys, all values: `[n_channels, hidden]`.
        qkv: MatrixSpec,
        /// The gate: `[n_v_heads · v_dim, hidden]`.
        z: MatrixSpec,
        /// `[n_v_heads, hidden]`.
        b: MatrixSpec,
        /// `[n_v_heads, hidden]`.
        a: MatrixSpec,
    },
    /// Key head by key head.
    ByHead {
        /// Of each key head its query, its key, the values and the gates of its value heads.
        qkvz: MatrixSpec,
        /// Of each key head b and a of its value heads.
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

    /// Rows of a product with all projections.
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
    /// `[3 · hidden, hidden]`.
    pub input: LinearSpec,
    /// Over the hidden width.
    pub conv: ConvSpec,
    /// `[hidden, hidden]`.
    pub out: LinearSpec,
}

impl ShortConvSpec {
    pub(crate) fn cache_kind(&self) -> CacheKind {
        CacheKind::Conv { n_channels: self.conv.n_channels, kernel: self.conv.kernel }
    }
}

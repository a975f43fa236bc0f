//! Layers whose memory of a sequence has one size, whatever its length: what their ops take, as data.

use super::types::copy_references;

/// What the convolution before a layer's state does after its sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvActivation {
    /// Nothing.
    None,
    /// `y / (1 + exp(-y))`.
    Silu,
}

/// Sizes of a layer with the gated delta rule: see [`gated_delta`](crate::Backend::gated_delta).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeltaDims {
    /// Heads of queries and keys; a divisor of `n_v_heads`.
    pub n_k_heads: usize,
    /// Heads of values, gates and states.
    pub n_v_heads: usize,
    /// Values of a query or key.
    pub k_dim: usize,
    /// Values of a value.
    pub v_dim: usize,
    /// Taps of the convolution before it; at least 2.
    pub kernel: usize,
}

impl DeltaDims {
    /// Channels of the convolution: all queries, then all keys, then all values.
    pub const fn n_channels(&self) -> usize {
        2 * self.n_k_heads * self.k_dim + self.n_v_heads * self.v_dim
    }

    /// Whether no size is 0, value heads share key heads evenly, and the convolution looks back.
    pub const fn is_sound(&self) -> bool {
        let Self { n_k_heads, n_v_heads, k_dim, v_dim, kernel } = *self;
        n_k_heads > 0 && n_v_heads > 0 && k_dim > 0 && v_dim > 0 && kernel > 1 && n_v_heads % n_k_heads == 0
    }
}

/// The weights of [`causal_conv`](crate::Backend::causal_conv).
#[derive(Debug)]
pub struct ConvWeights<'a, W> {
    /// `1 × [1, kernel · n_channels]`: the factors of all channels for the oldest input, then for the next one, to the
    /// token's own.
    pub taps: &'a W,
    /// `1 × [1, n_channels]`, added to the sum.
    pub bias: Option<&'a W>,
}

/// Arguments of [`gated_delta`](crate::Backend::gated_delta), a row for each of the step's tokens.
#[derive(Debug)]
pub struct DeltaInputs<'a, T> {
    /// Queries, keys and values as the convolution gives them, `[n, n_channels]`: see [`DeltaDims::n_channels`].
    pub qkv: &'a T,
    /// What the decay follows from, `[n, n_v_heads]`.
    pub a: &'a T,
    /// What the strength of writing follows from, `[n, n_v_heads]`.
    pub b: &'a T,
}

/// The weights of [`gated_delta`](crate::Backend::gated_delta).
#[derive(Debug)]
pub struct DeltaWeights<'a, W> {
    /// Logarithms of the rates of decay, `1 × [1, n_v_heads]`.
    pub a_log: &'a W,
    /// Added to `a`, `1 × [1, n_v_heads]`.
    pub dt_bias: &'a W,
}

copy_references!(ConvWeights, DeltaInputs, DeltaWeights);

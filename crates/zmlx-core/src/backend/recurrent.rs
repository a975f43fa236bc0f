//! Data types of layers with a state: memory of one size for each sequence, whatever its length.

use super::types::copy_references;

/// The activation function of a causal convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvActivation {
    /// No activation.
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
    /// Number of elements in a query or key.
    pub k_dim: usize,
    /// Number of elements in a value.
    pub v_dim: usize,
    /// Number of taps of the convolution before it; at least 2.
    pub kernel: usize,
}

impl DeltaDims {
    /// Channels of the convolution: all queries, then all keys, then all values.
    pub const fn n_channels(&self) -> usize {
        2 * self.n_k_heads * self.k_dim + self.n_v_heads * self.v_dim
    }

    /// Whether no size is 0, each key head serves a whole number of value heads, and the convolution has more than one
    /// tap.
    pub const fn is_sound(&self) -> bool {
        let Self { n_k_heads, n_v_heads, k_dim, v_dim, kernel } = *self;
        n_k_heads > 0 && n_v_heads > 0 && k_dim > 0 && v_dim > 0 && kernel > 1 && n_v_heads % n_k_heads == 0
    }
}

/// The weights of [`causal_conv`](crate::Backend::causal_conv).
#[derive(Debug)]
pub struct ConvWeights<'a, W> {
    /// `1 × [1, kernel · n_channels]`: the factors of all channels for the oldest input, then those for the next input,
    /// up to the token's own.
    pub taps: &'a W,
    /// `1 × [1, n_channels]`, added to the sum.
    pub bias: Option<&'a W>,
}

/// Arguments of [`gated_delta`](crate::Backend::gated_delta), with one row for each token of the step.
#[derive(Debug)]
pub struct DeltaInputs<'a, T> {
    /// Queries, keys and values as the convolution gives them, `[n, n_channels]`: see [`DeltaDims::n_channels`].
    pub qkv: &'a T,
    /// The input of the decay `g`, `[n, n_v_heads]`.
    pub a: &'a T,
    /// The input of the write strength `β`, `[n, n_v_heads]`.
    pub b: &'a T,
}

/// The weights of [`gated_delta`](crate::Backend::gated_delta).
#[derive(Debug)]
pub struct DeltaWeights<'a, W> {
    /// Logarithms of the decay rates, `1 × [1, n_v_heads]`.
    pub a_log: &'a W,
    /// Added to `a`, `1 × [1, n_v_heads]`.
    pub dt_bias: &'a W,
}

copy_references!(ConvWeights, DeltaInputs, DeltaWeights);

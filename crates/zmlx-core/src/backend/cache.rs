//! What a layer's cache holds, as data.

use super::DeltaDims;

/// What the cache of one layer holds, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheSpec {
    /// What it holds.
    pub kind: CacheKind,
    /// How values are stored.
    pub format: KvFormat,
}

/// What a layer's cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheKind {
    /// Keys and values of all tokens.
    Full {
        /// Number of key/value heads.
        n_kv_heads: usize,
        /// Values per head.
        head_dim: usize,
    },
    /// Keys and values of the last tokens.
    Window {
        /// Number of key/value heads.
        n_kv_heads: usize,
        /// Values per head.
        head_dim: usize,
        /// Number of tokens that a token sees, itself included.
        window: usize,
    },
    /// The compressed latent and one rotated key shared by all heads, of all tokens.
    Latent {
        /// Width of the latent.
        rank: usize,
        /// Width of the rotated key.
        rope_dim: usize,
    },
    /// The last inputs of a causal convolution: a state, of one size whatever the number of tokens.
    Conv {
        /// Values of one input.
        n_channels: usize,
        /// Number of taps, at least 2. The last tap multiplies the token's own input.
        kernel: usize,
    },
    /// The state of a gated delta rule and that of the convolution before it.
    Delta(DeltaDims),
}

impl CacheKind {
    /// Whether the cache holds a state instead of entries for tokens. A state does not say how it came about. So such a
    /// sequence can be emptied or kept whole, but not shortened.
    pub const fn is_state(&self) -> bool {
        matches!(self, Self::Conv { .. } | Self::Delta(_))
    }

    /// Number of values that the cache stores for one token.
    pub const fn values_per_token(&self) -> u64 {
        match *self {
            Self::Full { n_kv_heads, head_dim } | Self::Window { n_kv_heads, head_dim, .. } => {
                (n_kv_heads as u64).saturating_mul(2).saturating_mul(head_dim as u64)
            }
            Self::Latent { rank, rope_dim } => (rank as u64).saturating_add(rope_dim as u64),
            Self::Conv { .. } | Self::Delta(_) => 0,
        }
    }

    /// Number of values in the state of one sequence.
    pub const fn state_values(&self) -> u64 {
        const fn conv(n_channels: usize, kernel: usize) -> u64 {
            (n_channels as u64).saturating_mul((kernel as u64).saturating_sub(1))
        }
        match *self {
            Self::Full { .. } | Self::Window { .. } | Self::Latent { .. } => 0,
            Self::Conv { n_channels, kernel } => conv(n_channels, kernel),
            Self::Delta(d) => {
                let of_heads = (d.n_v_heads as u64).saturating_mul(d.v_dim as u64);
                of_heads.saturating_mul(d.k_dim as u64).saturating_add(conv(d.n_channels(), d.kernel))
            }
        }
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// In the backend's own type of about 16 bits.
    #[default]
    Native,
    /// As integers of 8 bits with a scale for each group.
    Int8 {
        /// Values that share a scale.
        group_size: usize,
    },
    /// As integers of 4 bits with a scale for each group.
    Int4 {
        /// Values that share a scale.
        group_size: usize,
    },
}

/// How [`attention`](crate::Backend::attention) turns scores into weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSettings {
    /// Factor of the scores.
    pub scale: f32,
    /// Number of tokens that a token sees, itself included. Without a window it sees all tokens before it.
    pub window: Option<usize>,
}

/// Arguments of [`attention`](crate::Backend::attention).
#[derive(Debug)]
pub struct AttentionInputs<'a, T, W> {
    /// Queries of the new tokens, `[n_tokens, n_heads, head_dim]`.
    pub q: &'a T,
    /// Their keys, `[n_tokens, n_kv_heads, head_dim]`.
    pub k: &'a T,
    /// Their values, `[n_tokens, n_kv_heads, head_dim]`.
    pub v: &'a T,
    /// One score for each head, `1 × [1, n_heads]`. It takes part in the softmax but has no value.
    pub sinks: Option<&'a W>,
}

impl<T, W> Clone for AttentionInputs<'_, T, W> {
    fn clone(&self) -> Self {
        *self
    }
}

// A derived impl would require that the tensors themselves are `Copy`.
impl<T, W> Copy for AttentionInputs<'_, T, W> {}

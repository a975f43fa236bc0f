//! What a layer's cache holds, as data.

/// What the cache of one layer holds, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheSpec {
    /// What it holds per token.
    pub kind: CacheKind,
    /// How values are stored.
    pub format: KvFormat,
}

/// What a layer's cache holds per token.
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
        /// Tokens that a token sees, itself included.
        window: usize,
    },
    /// The compressed latent and one rotated key shared by all heads, of all tokens.
    Latent {
        /// Width of the latent.
        rank: usize,
        /// Width of the rotated key.
        rope_dim: usize,
    },
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// In the backend's own type of about 16 bits.
    #[default]
    Native,
    /// As integers of 8 bits with a scale for each group.
    Int8 {
        /// Values of a group.
        group_size: usize,
    },
    /// As integers of 4 bits with a scale for each group.
    Int4 {
        /// Values of a group.
        group_size: usize,
    },
}

/// How [`attention`](crate::Backend::attention) turns scores into weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSettings {
    /// Factor of the scores.
    pub scale: f32,
    /// Tokens that a token sees, itself included; all before it without a window.
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
    /// A score per head that takes part in the softmax and has no value, `1 × [1, n_heads]`.
    pub sinks: Option<&'a W>,
}

impl<T, W> Clone for AttentionInputs<'_, T, W> {
    fn clone(&self) -> Self {
        *self
    }
}

// Derived, it would ask the tensors themselves to be `Copy`.
impl<T, W> Copy for AttentionInputs<'_, T, W> {}

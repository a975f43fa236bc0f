//! Products with transposed weights, plain and for chosen experts; the weighted sum of experts.

use super::{Real, check_len, dot};

/// `y = x · wᵀ`.
///
/// **Shapes** `x [m, k]`, `w [n, k]`, result `[m, n]`.
///
/// # Panics
/// On lengths that do not fit.
#[must_use]
pub fn matmul<X: Real, W: Real>(x: &[X], w: &[W], m: usize, n: usize, k: usize) -> Vec<f64> {
    check_len("matmul", "x", x, &[m, k]);
    check_len("matmul", "w", w, &[n, k]);
    let mut y = Vec::with_capacity(m * n);
    for row in 0..m {
        for col in 0..n {
            y.push(dot(&x[row * k..(row + 1) * k], &w[col * k..(col + 1) * k]));
        }
    }
    y
}

/// Which rows of `x` the experts of a token get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GatherInput {
    /// `x [n_tokens, k]`: all of a token's experts get its one row (gate and up projections).
    PerToken,
    /// `x [n_tokens, top_k, k]`: each expert gets a row of its own (down projection).
    PerSlot,
}

/// Sizes of [`gather_matmul`].
#[derive(Debug, Clone, Copy)]
pub struct GatherMatmul {
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of experts chosen for each token.
    pub top_k: usize,
    /// Number of experts in the bank.
    pub n_experts: usize,
    /// Number of rows of an expert's weight.
    pub n: usize,
    /// Number of columns of an expert's weight.
    pub k: usize,
    /// The shape of `x`.
    pub input: GatherInput,
}

/// `y[t, s] = x[t] · w[indices[t, s]]ᵀ`, or with `x[t, s]` in place of `x[t]`.
///
/// **Shapes** `x` see [`GatherInput`], `w [n_experts, n, k]`, `indices [n_tokens, top_k]`, result
/// `[n_tokens, top_k, n]`.
///
/// # Panics
/// On lengths that do not fit, or an index that is not below `n_experts`.
#[must_use]
pub fn gather_matmul<X: Real, W: Real>(x: &[X], w: &[W], indices: &[u32], sizes: GatherMatmul) -> Vec<f64> {
    let GatherMatmul { n_tokens, top_k, n_experts, n, k, input } = sizes;
    match input {
        GatherInput::PerToken => check_len("gather_matmul", "x", x, &[n_tokens, k]),
        GatherInput::PerSlot => check_len("gather_matmul", "x", x, &[n_tokens, top_k, k]),
    }
    check_len("gather_matmul", "w", w, &[n_experts, n, k]);
    check_len("gather_matmul", "indices", indices, &[n_tokens, top_k]);
    let mut y = Vec::with_capacity(n_tokens * top_k * n);
    for (slot, &expert) in indices.iter().enumerate() {
        let expert = expert as usize;
        assert!(expert < n_experts, "gather_matmul: expert {expert} of {n_experts}");
        let row = if input == GatherInput::PerSlot { slot } else { slot / top_k };
        y.extend(matmul(&x[row * k..(row + 1) * k], &w[expert * n * k..(expert + 1) * n * k], 1, n, k));
    }
    y
}

/// Sizes of [`combine`].
#[derive(Debug, Clone, Copy)]
pub struct Combine {
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of experts chosen for each token.
    pub top_k: usize,
    /// Elements of an expert's output.
    pub hidden: usize,
}

/// `y[t] = Σ_s weights[t, s] · experts[t, s]`, in the order of the slots.
///
/// **Shapes** `experts [n_tokens, top_k, hidden]`, `weights [n_tokens, top_k]`, result `[n_tokens, hidden]`.
///
/// # Panics
/// On lengths that do not fit.
#[must_use]
pub fn combine<E: Real, W: Real>(experts: &[E], weights: &[W], sizes: Combine) -> Vec<f64> {
    let Combine { n_tokens, top_k, hidden } = sizes;
    check_len("combine", "experts", experts, &[n_tokens, top_k, hidden]);
    check_len("combine", "weights", weights, &[n_tokens, top_k]);
    let mut y = vec![0.0; n_tokens * hidden];
    for (slot, &weight) in weights.iter().enumerate() {
        let token = slot / top_k;
        for i in 0..hidden {
            y[token * hidden + i] += weight.into() * experts[slot * hidden + i].into();
        }
    }
    y
}

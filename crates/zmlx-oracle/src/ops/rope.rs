//! Rotary position embedding.

use super::{Real, check_len};

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Pair `i` is elements `2i` and `2i + 1` ("traditional").
    Interleaved,
    /// Pair `i` of `n` is elements `i` and `i + n`.
    HalfSplit,
}

/// Sizes and parameters of [`rope`].
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Number of tokens.
    pub n_tokens: usize,
    /// Number of heads of each token.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Radians that each pair turns from one position to the next. Elements of a head after the pairs are not changed.
    pub frequencies: &'a [f64],
    /// Factor of the rotated elements.
    pub scale: f64,
    /// Which elements make a pair.
    pub layout: RopeLayout,
}

/// The usual frequencies of `n_rot / 2` pairs: `theta^(-2i/n_rot)`.
#[must_use]
pub fn rope_frequencies(n_rot: usize, theta: f64) -> Vec<f64> {
    (0..n_rot / 2).map(|pair| theta.powf(-2.0 * pair as f64 / n_rot as f64)).collect()
}

/// Rotates pair `i` of every head by `positions[t] · frequencies[i]`:
/// `(a, b) → scale · (a·cos - b·sin, a·sin + b·cos)`.
///
/// **Shapes** `x [n_tokens, n_heads, head_dim]`, `positions [n_tokens]`, result as `x`. **Numerics** the angle is
/// computed in `f64`; an engine with `f32` angles is off by about `position · 6e-8` radians in the first pairs.
///
/// # Panics
/// On lengths that do not fit, or more than `head_dim / 2` frequencies.
#[must_use]
pub fn rope<X: Real>(x: &[X], positions: &[u32], sizes: Rope<'_>) -> Vec<f64> {
    let Rope { n_tokens, n_heads, head_dim, frequencies, scale, layout } = sizes;
    let n_pairs = frequencies.len();
    check_len("rope", "x", x, &[n_tokens, n_heads, head_dim]);
    check_len("rope", "positions", positions, &[n_tokens]);
    assert!(2 * n_pairs <= head_dim, "rope: {n_pairs} pairs of head_dim {head_dim}");
    let mut y: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for (token, &position) in positions.iter().enumerate() {
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            let (sin, cos) = (scale * sin, scale * cos);
            let (first, second) = match layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::HalfSplit => (pair, pair + n_pairs),
            };
            for head in y[token * n_heads * head_dim..][..n_heads * head_dim].chunks_exact_mut(head_dim) {
                let (a, b) = (head[first], head[second]);
                head[first] = a * cos - b * sin;
                head[second] = a * sin + b * cos;
            }
        }
    }
    y
}

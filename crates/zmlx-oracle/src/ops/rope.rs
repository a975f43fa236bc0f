//! Rotary position embedding.

use super::{Real, check_len};

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Pair `i` is elements `2i` and `2i + 1` ("traditional").
    Interleaved,
    /// Pair `i` is elements `i` and `i + n_rot/2`.
    HalfSplit,
}

/// Sizes and parameters of [`rope`].
#[derive(Debug, Clone, Copy)]
pub struct Rope {
    /// Tokens.
    pub n_tokens: usize,
    /// Heads of each token.
    pub n_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How many of them, from the first, are rotated; even. The others pass through.
    pub n_rot: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Factor on the positions: 1, or 1/factor for linear scaling.
    pub position_scale: f64,
    /// Which elements make a pair.
    pub layout: RopeLayout,
}

/// Rotates pair `i` of every head by `positions[t] · position_scale · theta^(-2i/n_rot)`:
/// `(a, b) → (a·cos - b·sin, a·sin + b·cos)`.
///
/// **Shapes** `x [n_tokens, n_heads, head_dim]`, `positions [n_tokens]`, result as `x`. **Numerics** the angle is
/// computed in `f64`; an engine with `f32` angles is off by about `position · 6e-8` radians in the first pairs.
///
/// # Panics
/// On lengths that do not fit, an odd `n_rot`, or `n_rot > head_dim`.
#[must_use]
pub fn rope<X: Real>(x: &[X], positions: &[u32], sizes: Rope) -> Vec<f64> {
    let Rope { n_tokens, n_heads, head_dim, n_rot, theta, position_scale, layout } = sizes;
    check_len("rope", "x", x, &[n_tokens, n_heads, head_dim]);
    check_len("rope", "positions", positions, &[n_tokens]);
    assert!(n_rot.is_multiple_of(2) && n_rot <= head_dim, "rope: n_rot {n_rot} of head_dim {head_dim}");
    let mut y: Vec<f64> = x.iter().map(|&x| x.into()).collect();
    for (token, &position) in positions.iter().enumerate() {
        for pair in 0..n_rot / 2 {
            let frequency = theta.powf(-2.0 * pair as f64 / n_rot as f64);
            let (sin, cos) = (f64::from(position) * position_scale * frequency).sin_cos();
            let (first, second) = match layout {
                RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                RopeLayout::HalfSplit => (pair, pair + n_rot / 2),
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

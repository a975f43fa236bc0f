//! Elementwise functions and softmax.

use super::{Real, check_len};

/// `1 / (1 + e^-x)`.
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `x · sigmoid(x)`.
#[must_use]
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// `silu(gate) · up`, element by element. **Shapes** equal; the result has the same shape.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn swiglu<G: Real, U: Real>(gate: &[G], up: &[U]) -> Vec<f64> {
    check_len("swiglu", "up", up, &[gate.len()]);
    gate.iter().zip(up).map(|(&g, &u)| silu(g.into()) * u.into()).collect()
}

/// How the two projections of a gated MLP are joined, element by element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(gate) · up`.
    SwiGlu,
    /// `gelu_tanh(gate) · up`.
    GeGlu,
    /// `g·sigmoid(alpha·g)·(u + 1)` with `g = min(gate, limit)` and `u` the up projection, limited to `±limit`.
    ClampedSwiGlu {
        /// Steepness of the sigmoid.
        alpha: f64,
        /// The largest magnitude that passes.
        limit: f64,
    },
}

/// `x/2 · (1 + tanh(z))` with `z = √(2/π)·(x + 0.044715·x³)`. It is computed with `(1 + tanh(z))/2 = sigmoid(2z)`, so
/// that small results keep their digits.
#[must_use]
pub fn gelu_tanh(x: f64) -> f64 {
    x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)))
}

/// The activation of both, element by element. **Shapes** equal; the result has the same shape.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn gated<G: Real, U: Real>(gate: &[G], up: &[U], activation: Activation) -> Vec<f64> {
    check_len("gated", "up", up, &[gate.len()]);
    let one = |g: f64, u: f64| match activation {
        Activation::SwiGlu => silu(g) * u,
        Activation::GeGlu => gelu_tanh(g) * u,
        Activation::ClampedSwiGlu { alpha, limit } => {
            let g = g.min(limit);
            g * sigmoid(alpha * g) * (u.clamp(-limit, limit) + 1.0)
        }
    };
    gate.iter().zip(up).map(|(&g, &u)| one(g.into(), u.into())).collect()
}

/// `cap · tanh(x / cap)`, element by element.
#[must_use]
pub fn soft_cap<X: Real>(x: &[X], cap: f64) -> Vec<f64> {
    x.iter().map(|&x| cap * (x.into() / cap).tanh()).collect()
}

/// `a + b`, element by element.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn add<A: Real, B: Real>(a: &[A], b: &[B]) -> Vec<f64> {
    check_len("add", "b", b, &[a.len()]);
    a.iter().zip(b).map(|(&a, &b)| a.into() + b.into()).collect()
}

/// `e^(x_i - max) / Σ e^(x_j - max)` over the whole slice. Entries of -∞ get 0, unless all are -∞: then NaN.
#[must_use]
pub fn softmax<T: Real>(row: &[T]) -> Vec<f64> {
    let most = row.iter().map(|&x| x.into()).fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = row.iter().map(|&x| (x.into() - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

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

/// `silu(gate) · up`, element by element. **Shapes** equal; the result has them too.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn swiglu<G: Real, U: Real>(gate: &[G], up: &[U]) -> Vec<f64> {
    check_len("swiglu", "up", up, &[gate.len()]);
    gate.iter().zip(up).map(|(&g, &u)| silu(g.into()) * u.into()).collect()
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

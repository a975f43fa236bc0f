//! Root mean square normalisation.

use super::Real;

/// `y_i = weight_i · x_i / √(mean(x²) + eps)`, row by row.
///
/// **Shapes** `x [.., n]`, `weight [n]`, result as `x`.
///
/// # Panics
/// If `x` is not a whole number of rows of `weight`'s length.
#[must_use]
pub fn rms_norm<X: Real, W: Real>(x: &[X], weight: &[W], eps: f64) -> Vec<f64> {
    let n = weight.len();
    assert!(n > 0 && x.len().is_multiple_of(n), "rms_norm: x has {} elements, rows have {n}", x.len());
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n) {
        let mean_square = row.iter().map(|&x| x.into() * x.into()).sum::<f64>() / n as f64;
        let factor = 1.0 / (mean_square + eps).sqrt();
        y.extend(row.iter().zip(weight).map(|(&x, &w)| w.into() * (x.into() * factor)));
    }
    y
}

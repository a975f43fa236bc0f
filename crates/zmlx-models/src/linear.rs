//! A product with a matrix, with an optional bias.

use zmlx_kernels::{Backend, Result};

/// `x · weightᵀ + bias`.
#[derive(Debug)]
pub(crate) struct Linear<W> {
    /// `[n_out, n_in]`.
    pub(crate) weight: W,
    /// `[n_out]`.
    pub(crate) bias: Option<W>,
}

impl<W> Linear<W> {
    /// **Shapes** x `[.., n_in]` → `[.., n_out]`.
    pub(crate) fn forward<B: Backend<Weight = W>>(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor> {
        self.add_bias(b, b.linear(x, &self.weight)?)
    }

    /// `y + bias` for a product `y` that was computed elsewhere.
    pub(crate) fn add_bias<B: Backend<Weight = W>>(&self, b: &B, y: B::Tensor) -> Result<B::Tensor> {
        match &self.bias {
            Some(bias) => b.add_vector(&y, bias),
            None => Ok(y),
        }
    }
}

//! A short convolution between two gates.

use zmlx_kernels::{Backend, ConvActivation, ConvWeights, Fusion, Result};

use super::Rows;
use crate::linear::Linear;

/// `b | c | u = input(x)`, `out(c · conv(b · u))`.
#[derive(Debug)]
pub(crate) struct ShortConv<W> {
    pub(crate) n_channels: usize,
    /// `[3 · n_channels, hidden]`.
    pub(crate) input: Linear<W>,
    /// The taps of the convolution.
    pub(crate) taps: W,
    /// `[n_channels]`.
    pub(crate) bias: Option<W>,
    /// `[hidden, n_channels]`.
    pub(crate) out: Linear<W>,
}

impl<W> ShortConv<W> {
    pub(super) fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (cache, step): (&mut B::Cache, &B::Step),
        rows: Rows,
        _: &Fusion,
    ) -> Result<B::Tensor> {
        let n = self.n_channels;
        let all = self.input.forward(b, x)?;
        let [before, after, x] = [0..n, n..2 * n, 2 * n..3 * n].map(|range| b.slice_last(&all, range));
        let weights = ConvWeights { taps: &self.taps, bias: self.bias.as_ref() };
        let y = b.causal_conv(&b.mul(&before?, &x?)?, weights, cache, step, ConvActivation::None)?;
        let y = b.mul(&rows.of(b, after?, step)?, &rows.of(b, y, step)?)?;
        self.out.forward(b, &y)
    }
}

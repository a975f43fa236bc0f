//! A short convolution between two gates.

use candle_core::Tensor;

use super::delta::convolve;
use super::layers::{KvCache, Linear, to_slice, to_tensor};
use crate::Result;
use crate::checkpoint::Checkpoint;

/// ```text
/// B | C | X = in_proj(x);   y = out_proj(C · causal_conv(B · X))
/// ```
#[derive(Debug)]
pub(super) struct ShortConv {
    in_proj: Linear,
    /// `[hidden, kernel]`
    conv: Vec<f32>,
    /// `[hidden]`, or empty.
    bias: Vec<f32>,
    out_proj: Linear,
    kernel: usize,
    hidden: usize,
}

impl ShortConv {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (kernel, hidden): (usize, usize),
    ) -> Result<Self> {
        let at = |part: &str| format!("{path}.{part}");
        let bias = at("conv.bias");
        Ok(Self {
            in_proj: Linear::load(checkpoint, &at("in_proj"), 3 * hidden, hidden)?,
            conv: checkpoint.conv(&at("conv.weight"), hidden, kernel)?,
            bias: if checkpoint.contains(&bias) { checkpoint.floats(&bias, &[hidden])? } else { Vec::new() },
            out_proj: Linear::load(checkpoint, &at("out_proj"), hidden, hidden)?,
            kernel,
            hidden,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, n_tokens: usize, cache: &mut KvCache) -> Result<Tensor> {
        let bcx = self.in_proj.forward(x)?;
        let part = |i: usize| to_slice(&bcx.narrow(1, i * self.hidden, self.hidden)?.contiguous()?);
        let (b, c, x) = (part(0)?, part(1)?, part(2)?);
        let gated: Vec<f32> = b.iter().zip(&x).map(|(b, x)| (f64::from(*b) * f64::from(*x)) as f32).collect();
        let y = convolve(cache, &gated, (&self.conv, &self.bias), (self.hidden, self.kernel, false));
        let y: Vec<f64> = y.iter().zip(&c).map(|(y, c)| y * f64::from(*c)).collect();
        self.out_proj.forward(&to_tensor(&y, &[n_tokens, self.hidden])?)
    }
}

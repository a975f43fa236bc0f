//! Linear layers, norms, and the way from tensors to slices and back.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::rms_norm;

/// `y = x · weightᵀ + bias`.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[out, in]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn from_weight(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// Reads `path.weight`, quantised or not, and `path.bias` if there is one.
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, out: usize, input: usize) -> Result<Self> {
        let bias_name = format!("{path}.bias");
        let bias = if checkpoint.contains(&bias_name) {
            Some(Tensor::from_vec(checkpoint.floats(&bias_name, &[out])?, out, &Device::Cpu)?)
        } else {
            None
        };
        Ok(Self { weight: checkpoint.weight(path, &[out, input])?, bias })
    }

    /// `x [n_tokens, in]` → `[n_tokens, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

/// Root mean square normalisation over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Vec<f32>,
    eps: f64,
}

impl Norm {
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, n: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: checkpoint.floats(&format!("{path}.weight"), &[n])?, eps })
    }

    /// `x [.., n]` → the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        to_tensor(&rms_norm(&to_slice(x)?, &self.weight, self.eps), x.dims())
    }

    /// As [`Self::forward`] on a slice of rows, unrounded.
    pub(super) fn rows(&self, x: &[f32]) -> Vec<f64> {
        rms_norm(x, &self.weight, self.eps)
    }
}

/// The elements, row-major.
pub(super) fn to_slice(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.flatten_all()?.to_vec1()?)
}

/// A tensor of these elements, rounded to `f32`.
pub(super) fn to_tensor(x: &[f64], shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(to_f32(x), shape, &Device::Cpu)?)
}

pub(super) fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|&x| x as f32).collect()
}

//! Linear layers, norms, rotations, caches, and conversions between tensors and slices.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{Real, Rope, rms_norm, rope};
use crate::plan::RopePlan;

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

    pub(super) fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Loads `path.weight`, quantised or not, and `path.bias` if it exists.
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
        Ok(Self { weight: checkpoint.norm(&format!("{path}.weight"), n)?, eps })
    }

    /// `x [.., n]` → the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        to_tensor(&rms_norm(&to_slice(x)?, &self.weight, self.eps), x.dims())
    }

    /// As [`Self::forward`], on a slice of rows and without rounding.
    pub(super) fn rows(&self, x: &[f32]) -> Vec<f64> {
        rms_norm(x, &self.weight, self.eps)
    }
}

/// Rope on heads of `head_dim` elements.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) head_dim: usize,
    pub(super) plan: RopePlan,
}

impl Rotation {
    /// `x [n_tokens, n_heads, head_dim]` → the same shape.
    pub(super) fn apply<X: Real>(&self, x: &[X], positions: &[u32], n_heads: usize) -> Vec<f64> {
        let RopePlan { frequencies, scale, layout } = &self.plan;
        let (n_tokens, head_dim) = (positions.len(), self.head_dim);
        let sizes = Rope { n_tokens, n_heads, head_dim, frequencies, scale: *scale, layout: *layout };
        rope(x, positions, sizes)
    }
}

/// Keys `[n_kv, n_kv_heads, head_dim]` and values `[n_kv, n_kv_heads, v_head_dim]`, or a state.
#[derive(Debug, Default)]
pub(super) struct KvCache {
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// The last inputs of a convolution.
    pub(super) conv: Vec<f32>,
    /// The state of a delta rule.
    pub(super) state: Vec<f64>,
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

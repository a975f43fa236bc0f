//! The two projections of latent attention, read from either layout.

use candle_core::{Device, Tensor};

use super::Checkpoint;
use crate::plan::MlaProjections;
use crate::quant::{QuantizedMatrix, StorageDtype, quantize};
use crate::{Error, Result};

/// How a quantised `kv_b_proj` is split. It makes no difference for files that hold `embed_q` and `unembed_out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBSplit {
    /// Dequantise it to `f32` and split it: the values that the file represents.
    Plain,
    /// As MLX does at load: dequantise in bfloat16, split, and quantise both parts again with the same bits and group.
    /// The key part is transposed, so its groups run along other elements, and the values change by up to half a
    /// quantisation step.
    Requantized,
}

impl Checkpoint {
    /// `embed_q [n_heads, kv_lora_rank, qk_nope_head_dim]` and `unembed_out [n_heads, v_head_dim, kv_lora_rank]` of the
    /// attention module `prefix`. They are read as they are, or split from
    /// `kv_b_proj [n_heads·(qk_nope_head_dim + v_head_dim), kv_lora_rank]`, whose rows are, head by head, the key part
    /// and the value part.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn mla_projections(
        &self,
        prefix: &str,
        sizes: MlaProjections,
        split: KvBSplit,
    ) -> Result<(Tensor, Tensor)> {
        let MlaProjections { n_heads, qk_nope_head_dim: nope, v_head_dim, kv_lora_rank: rank } = sizes;
        let kv_b = format!("{prefix}.kv_b_proj");
        if !self.contains(&format!("{kv_b}.weight")) {
            let embed_q = self.weight(&format!("{prefix}.embed_q"), &[n_heads, rank, nope])?;
            let unembed_out = self.weight(&format!("{prefix}.unembed_out"), &[n_heads, v_head_dim, rank])?;
            return Ok((embed_q, unembed_out));
        }
        let shape = [n_heads * (nope + v_head_dim), rank];
        let requantize =
            split == KvBSplit::Requantized && self.is_quantized(&kv_b) && !self.has_global_scale(&kv_b);
        if !requantize {
            return halves(self.weight(&kv_b, &shape)?, sizes);
        }
        let stored = self.quantized(&kv_b, &shape)?;
        let values = stored.dequantize_in(StorageDtype::BF16);
        let (embed_q, unembed_out) = halves(Tensor::from_vec(values, &shape, &Device::Cpu)?, sizes)?;
        Ok((requantized(&embed_q, &stored)?, requantized(&unembed_out, &stored)?))
    }
}

fn halves(kv_b: Tensor, sizes: MlaProjections) -> Result<(Tensor, Tensor)> {
    let MlaProjections { n_heads, qk_nope_head_dim: nope, v_head_dim, kv_lora_rank: rank } = sizes;
    let by_head = kv_b.reshape((n_heads, nope + v_head_dim, rank))?;
    let embed_q = by_head.narrow(1, 0, nope)?.transpose(1, 2)?.contiguous()?;
    let unembed_out = by_head.narrow(1, nope, v_head_dim)?.contiguous()?;
    Ok((embed_q, unembed_out))
}

fn requantized(weight: &Tensor, like: &QuantizedMatrix) -> Result<Tensor> {
    let cols = weight.dims().last().copied().unwrap_or(0);
    if !cols.is_multiple_of(like.format.group_size) {
        // The groups do not fit the rows, so the part stays dense.
        return Ok(weight.clone());
    }
    let values = weight.flatten_all()?.to_vec1::<f32>()?;
    let matrix = quantize(&values, cols, like.format, StorageDtype::BF16).map_err(|error| match error {
        Error::Quantized { why, .. } => Error::Quantized { name: "kv_b_proj".into(), why },
        other => other,
    })?;
    Ok(Tensor::from_vec(matrix.dequantize(), weight.dims(), &Device::Cpu)?)
}

//! The older layout of latent attention: one `kv_b_proj` instead of `embed_q` and `unembed_out`.

use zmlx_kernels::quant::quantize;
use zmlx_kernels::{DType, HostWeight, WeightBytes, WeightFormat};

use super::reader::{TensorReader, placeholder};
use crate::architecture::MlaSpec;
use crate::{Result, WeightProblem, floats};

/// The dimensions of a `kv_b_proj` `[n_heads · (qk_nope_head_dim + v_head_dim), kv_lora_rank]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBDims {
    /// Number of heads.
    pub n_heads: usize,
    /// Width of a head's key without its rope part.
    pub qk_nope_head_dim: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Width of the latent.
    pub kv_lora_rank: usize,
}

impl TensorReader<'_> {
    /// `embed_q` and `unembed_out` of a latent attention, in either layout.
    pub fn heads_of(&mut self, spec: &MlaSpec) -> (HostWeight, HostWeight) {
        let n_problems = self.n_problems();
        let (embed_q, unembed_out) = self.all_heads_of(spec);
        let Some(part) = spec.slice else { return (embed_q, unembed_out) };
        let mut held =
            |weight| self.part_of(&spec.path, (weight, n_problems), |all| all.mats(part.range(spec.n_heads)));
        (held(embed_q), held(unembed_out))
    }

    fn all_heads_of(&mut self, spec: &MlaSpec) -> (HostWeight, HostWeight) {
        let MlaSpec { path, nope_dim, v_dim, rank, .. } = spec;
        let n_heads = &spec.slice.map_or(spec.n_heads, |part| part.of);
        let old_layout = format!("{path}.kv_b_proj");
        if self.contains(&format!("{old_layout}.weight")) {
            let dims = KvBDims {
                n_heads: *n_heads,
                qk_nope_head_dim: *nope_dim,
                v_head_dim: *v_dim,
                kv_lora_rank: *rank,
            };
            return self.kv_b_proj(&old_layout, dims);
        }
        (
            self.heads(&format!("{path}.embed_q"), *n_heads, *rank, *nope_dim),
            self.heads(&format!("{path}.unembed_out"), *n_heads, *v_dim, *rank),
        )
    }

    /// Splits the `kv_b_proj` at `path` into `embed_q` `n_heads × [kv_lora_rank, qk_nope_head_dim]` (each head's key
    /// rows, transposed) and `unembed_out` `n_heads × [v_head_dim, kv_lora_rank]` (its value rows).
    ///
    /// A quantised weight is dequantised and quantised again in the same format, as the reference does; where that
    /// format's groups do not divide the rows, the part stays dense. A dense weight stays dense in its own type.
    pub fn kv_b_proj(&mut self, path: &str, dims: KvBDims) -> (HostWeight, HostWeight) {
        let n_problems = self.n_problems();
        let n_out = dims.n_heads.saturating_mul(dims.qk_nope_head_dim.saturating_add(dims.v_head_dim));
        let weight = self.matrix(path, n_out, dims.kv_lora_rank);
        if self.n_problems() > n_problems {
            return (placeholder(), placeholder());
        }
        split(&weight, dims).unwrap_or_else(|e| {
            let want = "a weight that can be split into embed_q and unembed_out".into();
            let problem = WeightProblem::Format { name: path.into(), got: e.to_string(), want };
            (self.problem(problem), placeholder())
        })
    }
}

fn split(weight: &HostWeight, dims: KvBDims) -> Result<(HostWeight, HostWeight)> {
    let KvBDims { n_heads, qk_nope_head_dim: nope, v_head_dim: v, kv_lora_rank: rank } = dims;
    let all = dequantized(weight);
    let mut keys = Vec::with_capacity(n_heads * nope * rank);
    let mut values = Vec::with_capacity(n_heads * v * rank);
    for head in all.chunks_exact((nope + v) * rank) {
        let (key_rows, value_rows) = head.split_at(nope * rank);
        keys.extend((0..rank).flat_map(|r| (0..nope).map(move |n| key_rows[n * rank + r])));
        values.extend_from_slice(value_rows);
    }
    // What has a second scale cannot be quantised again without it.
    let format = if weight.has_factors() { WeightFormat::Dense(DType::BF16) } else { weight.format() };
    Ok((store(format, [n_heads, rank, nope], keys)?, store(format, [n_heads, v, rank], values)?))
}

/// Weights in `format`, or dense in the type of its values if its groups do not divide `n_in`.
fn store(format: WeightFormat, shape: [usize; 3], w: Vec<f32>) -> Result<HostWeight> {
    let n_in = shape[2];
    let dense = match format {
        WeightFormat::Dense(dtype) => dtype,
        WeightFormat::Quantized { spec, scale_dtype } => {
            if n_in.is_multiple_of(spec.group_size()) {
                let q = quantize(spec, scale_dtype, &w, n_in)?;
                let bytes =
                    WeightBytes { data: q.data.into(), scales: q.scales.into(), biases: q.biases.into() };
                return Ok(HostWeight::new(format, shape, bytes)?);
            }
            floats::dequantized_dtype(spec, scale_dtype)
        }
    };
    let dense = if matches!(dense, DType::F16 | DType::BF16) { dense } else { DType::F32 };
    Ok(HostWeight::new(WeightFormat::Dense(dense), shape, floats::to_bytes(dense, &w).into())?)
}

/// The weights as the reference dequantises them.
fn dequantized(weight: &HostWeight) -> Vec<f32> {
    match weight.format() {
        WeightFormat::Quantized { spec, scale_dtype } if !weight.has_factors() => {
            let WeightBytes { data, scales, biases } = weight.mat(0);
            floats::dequantized(spec, scale_dtype, [data, scales, biases])
        }
        _ => weight.to_f32_vec(),
    }
}

//! `gather_qmm_swiglu` on the arrays of an mlx-rs program: fused with Metal, MLX's own ops without.
//!
//! `cargo run -p zmlx-kernels --features mlx --example gather_qmm_swiglu`

use zmlx_kernels::mlx::mlx_rs::{Array, Dtype, error::Exception, ops, random};
use zmlx_kernels::mlx::{MlxBackend, MlxIndices, MlxWeight, Numerics, QuantizedExperts};
use zmlx_kernels::{Backend, GateUp, QuantMode, QuantSpec, stock};

fn normal(shape: &[i32]) -> Result<Array, Exception> {
    random::normal::<f32>(shape, None, 0.05, None)?.as_dtype(Dtype::Bfloat16)
}

/// In a real model: the weight, scales and biases of `mlp.switch_mlp.gate_proj` and `up_proj`.
fn bank(n_experts: i32, n_out: i32, n_in: i32) -> Result<MlxWeight, Box<dyn std::error::Error>> {
    let (weight, scales, biases) = ops::quantize(normal(&[n_experts, n_out, n_in])?, 64, 4)?;
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    Ok(MlxWeight::from_experts(QuantizedExperts::new(weight, scales, Some(biases), spec)?)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MlxBackend::new(Numerics::Exact)?;
    let (gate, up) = (bank(16, 128, 256)?, bank(16, 128, 256)?);
    let weights = GateUp { gate: &gate, up: &up };
    let x = normal(&[2, 256])?;
    // Four of sixteen experts for each of two tokens.
    let experts = Array::from_slice(&[3_u32, 14, 1, 5, 9, 2, 6, 0], &[2, 4]);
    let experts = MlxIndices::from_array(experts, 16)?;

    let y = backend.gather_qmm_swiglu(&x, weights, &experts)?;
    let composed = stock::gather_qmm_swiglu(&backend, &x, weights, &experts)?;
    println!("{:?} of {:?}; has the bits of MLX's own ops: {}", y.shape(), y.dtype(), y.eq_exact(&composed)?);
    Ok(())
}

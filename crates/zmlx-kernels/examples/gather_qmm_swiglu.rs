//! `gather_qmm_swiglu` on the arrays of an mlx-rs program: one kernel with Metal, MLX's own ops without.
//!
//! `cargo run -p zmlx-kernels --features mlx --example gather_qmm_swiglu`

use zmlx_kernels::mlx::mlx_rs::{Array, Dtype, error::Exception, ops, random};
use zmlx_kernels::mlx::{GatherOptions, QuantizedExperts, gather_qmm_swiglu, self_check};
use zmlx_kernels::{QuantMode, QuantSpec};

fn normal(shape: &[i32]) -> Result<Array, Exception> {
    random::normal::<f32>(shape, None, 0.05, None)?.as_dtype(Dtype::Bfloat16)
}

/// In a real model: the weight, scales and biases of `mlp.switch_mlp.gate_proj` and `up_proj`.
fn bank(n_experts: i32, n_out: i32, n_in: i32) -> Result<QuantizedExperts, Box<dyn std::error::Error>> {
    let (weight, scales, biases) = ops::quantize(normal(&[n_experts, n_out, n_in])?, 64, 4)?;
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    Ok(QuantizedExperts::new(weight, scales, Some(biases), spec)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (gate, up) = (bank(16, 128, 256)?, bank(16, 128, 256)?);
    // Four of sixteen experts for each of two tokens.
    let x = normal(&[2, 1, 1, 256])?;
    let experts = Array::from_slice(&[3_u32, 14, 1, 5, 9, 2, 6, 0], &[2, 4]);
    let options = GatherOptions::default();

    let y = gather_qmm_swiglu(&x, &gate, &up, &experts, &options)?;
    println!("{:?} of {:?}", y.shape(), y.dtype());
    println!("{:?}", self_check::gather_qmm_swiglu(&x, &gate, &up, &experts, &options)?);
    Ok(())
}

//! A mixture-of-experts block on the arrays of an mlx-rs program, stock and fused, with random weights.
//!
//! `cargo run -p zmlx-moe --features mlx --example moe_block`

use zmlx_kernels::mlx::mlx_rs::{Array, Dtype, error::Exception, ops, random};
use zmlx_kernels::mlx::{MlxBackend, MlxWeight, Numerics, QuantizedExperts};
use zmlx_kernels::{Fusion, QuantMode, QuantSpec, Renormalize, SoftmaxTopK};
use zmlx_moe::{ExpertBank, MoeBlock, Router};

fn normal(shape: &[i32]) -> Result<Array, Exception> {
    random::normal::<f32>(shape, None, 0.05, None)?.as_dtype(Dtype::Bfloat16)
}

/// In a real model these are the weight, scales and biases of tensors such as `mlp.switch_mlp.gate_proj`.
fn bank(shape: &[i32]) -> Result<MlxWeight, Box<dyn std::error::Error>> {
    let (weight, scales, biases) = ops::quantize(normal(shape)?, 64, 4)?;
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    Ok(MlxWeight::from_experts(QuantizedExperts::new(weight, scales, Some(biases), spec)?)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = MlxBackend::new(Numerics::Exact)?;
    let (n_experts, hidden, inter) = (16, 256, 128);
    let up = [n_experts, inter, hidden];
    let block = MoeBlock {
        router: Router::SoftmaxTopK {
            gate: MlxWeight::from_dense(normal(&[n_experts, hidden])?)?,
            settings: SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes },
        },
        experts: ExpertBank::new(bank(&up)?, bank(&up)?, bank(&[n_experts, hidden, inter])?),
        shared: None,
        shared_gate: None,
    };
    let x = normal(&[3, hidden])?;
    let stock = block.forward(&backend, &x, &Fusion::STOCK)?;
    let fused = block.forward(&backend, &x, &Fusion::FUSED)?;
    println!("{stock}\nfused has the same bits: {}", stock.eq_exact(&fused)?);
    Ok(())
}

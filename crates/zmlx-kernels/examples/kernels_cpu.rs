//! The fused op of a mixture of experts, and the same as a composition of plain ops, on the CPU.
//!
//! `cargo run --package zmlx-kernels --example kernels_cpu`

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, GateUp, HostWeight, QuantMode, QuantSpec, Result, stock};

fn main() -> Result<()> {
    let (n_experts, inter, hidden) = (16, 64, 128);
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    let cpu = CpuBackend::new(None)?;
    let bank = |seed: f32| {
        let values: Vec<f32> =
            (0..n_experts * inter * hidden).map(|i| (i as f32 * seed).sin() * 0.1).collect();
        cpu.upload(HostWeight::quantize(spec, &values, [n_experts, inter, hidden])?)
    };
    let (gate, up) = (bank(0.37)?, bank(0.73)?);

    // Two tokens, each of which goes to four of the sixteen experts.
    let x = cpu.tensor(&vec![0.25; 2 * hidden], &[2, hidden])?;
    let experts = cpu.indices(&[3, 14, 1, 5, 9, 2, 6, 0], &[2, 4])?;
    let weights = GateUp::swiglu(&gate, &up);
    let fused = cpu.gather_qmm_swiglu(&x, weights, &experts)?;
    let composed = stock::gather_qmm_swiglu(&cpu, &x, weights, &experts)?;

    let (mut a, mut b) = (Vec::new(), Vec::new());
    cpu.read(&fused, &mut a)?;
    cpu.read(&composed, &mut b)?;
    println!("shape {:?}; fused and composed have equal bits: {}", cpu.shape(&fused), a == b);
    Ok(())
}

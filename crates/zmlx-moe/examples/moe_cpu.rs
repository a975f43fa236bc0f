//! A mixture-of-experts block with random weights on the CPU, stock and fused.
//!
//! `cargo run --package zmlx-moe --example moe_cpu`

use zmlx_moe::kernels::cpu::CpuBackend;
use zmlx_moe::kernels::{
    Backend, Fusion, HostWeight, QuantMode, QuantSpec, Renormalize, Result, SoftmaxTopK,
};
use zmlx_moe::{ExpertBank, MoeBlock, Router};

fn main() -> Result<()> {
    let (n_experts, hidden, inter) = (16, 128, 64);
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;
    let cpu = CpuBackend::new(None)?;
    let random = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919) as f32).sin() * 0.1).collect() };
    let bank = |n_out: usize, n_in: usize| {
        let values = random(n_experts * n_out * n_in);
        cpu.upload(HostWeight::quantize(spec, &values, [n_experts, n_out, n_in])?)
    };
    let block = MoeBlock {
        router: Router::SoftmaxTopK {
            gate: cpu.upload(HostWeight::from_f32(&random(n_experts * hidden), n_experts, hidden)?)?,
            settings: SoftmaxTopK { top_k: 4, renormalize: Renormalize::Yes },
        },
        experts: ExpertBank::new(bank(inter, hidden)?, bank(inter, hidden)?, bank(hidden, inter)?),
        shared: None,
        shared_gate: None,
    };
    let x = cpu.tensor(&random(3 * hidden), &[3, hidden])?;
    let (mut stock, mut fused) = (Vec::new(), Vec::new());
    cpu.read(&block.forward(&cpu, &x, &Fusion::STOCK)?, &mut stock)?;
    cpu.read(&block.forward(&cpu, &x, &Fusion::FUSED)?, &mut fused)?;
    println!("{:.4?}… fused has the same bits: {}", &fused[..4], stock == fused);
    Ok(())
}

//! Multiplies a vector by a 4-bit matrix on the CPU.
//!
//! `cargo run --package zmlx-cpu --example cpu_linear`

use zmlx_core::{Backend, HostWeight, QuantMode, QuantSpec, Result};
use zmlx_cpu::CpuBackend;

fn main() -> Result<()> {
    let (n_out, n_in) = (8, 128);
    let values: Vec<f32> = (0..n_out * n_in).map(|i| (i as f32 * 0.37).sin()).collect();
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64)?;

    // `None` takes one thread for each physical core.
    let cpu = CpuBackend::new(None)?;
    let weight = cpu.upload(HostWeight::quantize(spec, &values, [1, n_out, n_in])?)?;
    let x = cpu.tensor(&vec![0.5; n_in], &[1, n_in])?;
    let y = cpu.linear(&x, &weight)?;

    let mut out = Vec::new();
    cpu.read(&y, &mut out)?;
    println!("{} with {} threads: {out:.3?}", cpu.level().name(), cpu.n_threads());
    Ok(())
}

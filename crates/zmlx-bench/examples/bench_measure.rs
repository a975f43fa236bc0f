//! Measures how fast a model with random weights decodes on the CPU, stock and fused.
//!
//! `cargo run --release --package zmlx-bench --example bench_measure`

use std::error::Error;

use zmlx_bench::BackendInfo;
use zmlx_bench::measure::{Bench, Plan};
use zmlx_bench::table::Width;
use zmlx_kernels::{Fusion, cpu::CpuBackend};
use zmlx_models::Checkpoint;
use zmlx_oracle::golden::Rounding;

fn main() -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::synthetic("qwen3-30b-a3b,layers=1,vocab=256", 1)?;
    let plan = Plan {
        n_prompt: vec![16],
        n_generate: vec![8],
        depths: vec![0],
        batches: vec![1],
        repetitions: 3,
        fusions: vec![Fusion::STOCK, Fusion::FUSED],
        profile: false,
    };
    let cpu = CpuBackend::new(None)?;
    let info = BackendInfo {
        name: "cpu",
        engine: None,
        description: format!("cpu ({})", cpu.level().name()),
        n_threads: cpu.n_threads(),
        rounding: Rounding::F32,
        compiles_at_first_use: false,
    };
    let mut bench = Bench::new(&checkpoint, &plan)?;
    bench.add(cpu, info, None, &mut |_, _, _| ())?;
    let measured = bench.run(&mut |_| None, &mut |_, _, _| ())?;
    print!("{}", measured.markdown(Width::Narrow));
    Ok(())
}

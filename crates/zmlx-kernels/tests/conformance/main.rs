//! The conformance suite: every op of a backend against the oracle's `f64`, and every fused op against its
//! composition, on one list of cases.
//!
//! | module | what |
//! |---|---|
//! | `suite` | what a backend declares, and the list of tests |
//! | `cases`, `inputs`, `bounds`, `session` | formats and sizes, weights as bytes, error bounds, attention's driver |
//! | the others | tests by op family, generic over the backend |
//!
//! In builds with debug assertions a CPU buffer is filled with NaN (words: `u32::MAX`) before an op writes it, and
//! every comparison passes only if a difference is at most its bound, which NaN is not: a value that an op forgot to
//! write fails. `buffers` notes when a build lacks this.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]
#![allow(unreachable_pub, reason = "a test program exports nothing")]

#[macro_use]
mod suite;
mod attention;
mod bounds;
mod buffers;
mod cases;
mod elementwise;
mod embed_concat;
mod errors;
mod extremes;
mod fused;
mod gather;
mod inputs;
mod invariance;
mod linear;
mod rope_norm;
mod router;
mod session;
mod weights;

use suite::{Grid, Instance};
use zmlx_kernels::WeightFormat;
use zmlx_kernels::cpu::{CpuBackend, Level};

// One line per backend.
conformance!(cpu, crate::cpu_instances);

fn cpu_instance(level: Level, n_threads: usize) -> Instance<CpuBackend> {
    Instance {
        name: format!("cpu {} on {n_threads} threads", level.name()),
        backend: CpuBackend::with_level(level, Some(n_threads)).unwrap(),
        // What more threads change is how rows are shared out, which a part of the sizes shows.
        grid: if n_threads == 1 { Grid::Full } else { Grid::Thinned },
        // From 8 rows on, by tiles. The bf16 level decides by other counts: within rounding is all it promises.
        same_path_below: if level == Level::Avx512Bf16 { 0 } else { 8 },
        product_error: if level == Level::Avx512Bf16 { bf16_parts } else { |_| 1.0 },
        // Angles are computed in f64.
        angle_error: 0.0,
    }
}

/// Activations of 16 bits of mantissa where codes have four: off by 2^-17 of each product before the bias, which is up
/// to three times the whole. That is 48 times the bound of f32.
fn bf16_parts(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::Quantized { spec, .. } if spec.bits() == 4 => 48.0,
        _ => 1.0,
    }
}

/// Every level that this machine can run, alone and on a team.
fn cpu_instances() -> Vec<Instance<CpuBackend>> {
    let levels = Level::supported().into_iter();
    levels.flat_map(|level| [1, 2].map(|n_threads| cpu_instance(level, n_threads))).collect()
}

#[test]
fn cpu_on_three_threads() {
    let best = Level::supported().pop().unwrap();
    let instances = [cpu_instance(best, 3)];
    linear::all_formats(&instances);
    gather::per_token_and_per_slot(&instances);
    fused::gather_qmm_combine(&instances);
    attention::grouped_heads(&instances);
    elementwise::large_tensors(&instances);
}

//! The conformance suite: every op of a backend against the oracle's `f64`, and every fused op against its
//! composition, on one list of cases.
//!
//! | module | what |
//! |---|---|
//! | `suite` | what a backend declares, and the list of tests |
//! | `cases`, `inputs`, `bounds`, `session` | formats and sizes, weights as bytes, error bounds, attention's driver |
//! | `int8` | the CPU's activations of 8 bits |
//! | `cpu_attention` | the CPU's attention in integers |
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
mod cpu_attention;
mod elementwise;
mod embed_concat;
mod errors;
mod extremes;
mod fused;
mod gather;
mod inputs;
mod int8;
mod invariance;
mod linear;
mod rope_norm;
mod router;
mod session;
mod weights;

use cases::Grid;
use suite::Instance;
use zmlx_kernels::cpu::{Activations, CpuBackend, Level};
use zmlx_kernels::{QuantMode, QuantSpec, WeightFormat};

// One line per backend.
conformance!(cpu, crate::cpu_instances);
conformance!(cpu_int8, crate::cpu_int8_instances);
#[cfg(feature = "mlx")]
conformance!(mlx, crate::mlx_instances);

fn cpu_instance(level: Level, n_threads: usize) -> Instance<CpuBackend> {
    Instance {
        name: format!("cpu {} on {n_threads} threads", level.name()),
        backend: CpuBackend::with_level(level, Some(n_threads)).unwrap(),
        // What more threads change is how rows are shared out, which a part of the sizes shows.
        grid: if n_threads == 1 { Grid::Full } else { Grid::Thinned },
        // From 5 rows on some levels go by tiles.
        same_path_below: 5,
        product_error: activations_of_16_bits,
        // Queries, keys, values and weights are integers of 15 bits, off by up to 2^-15 of the largest of their row (about
        // 3): each 5e-5 of a value in the root mean square. Of results of up to 6 one was off by 5.4e-4.
        attention_error: 60.0,
        exponential_error: 1.0,
        // Angles are computed in f64.
        angle_error: 0.0,
    }
}

/// Activations are integers of 16 bits wherever codes are: each is off by up to 2^-16 of the largest of its group, evenly
/// spread, so by 2^-16/√3 in the root mean square. Six times that, times the norms, is 111 times the bound of f32.
fn activations_of_16_bits(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::Quantized { spec, .. } if spec.mode() != QuantMode::Mxfp8 => 112.0,
        _ => 1.0,
    }
}

/// The same of 8 bits: by up to 1/254 of the largest, 258 times as much.
fn activations_of_8_bits(format: WeightFormat) -> f64 {
    let is_wide = |spec: QuantSpec| spec.bits() == 8;
    match format {
        WeightFormat::Quantized { spec, .. } if !is_wide(spec) => 258.0 * activations_of_16_bits(format),
        _ => activations_of_16_bits(format),
    }
}

/// The best level with activations of 8 bits; `int8` holds every level's products to tighter bounds.
fn cpu_int8_instances() -> Vec<Instance<CpuBackend>> {
    let instance = cpu_instance(Level::fastest(), 2);
    vec![Instance {
        name: format!("{}, int8", instance.name),
        backend: instance.backend.with_activations(Activations::Int8),
        product_error: activations_of_8_bits,
        ..instance
    }]
}

/// Every level that this machine can run, alone and on a team.
fn cpu_instances() -> Vec<Instance<CpuBackend>> {
    let levels = Level::supported().into_iter();
    levels.flat_map(|level| [1, 2].map(|n_threads| cpu_instance(level, n_threads))).collect()
}

/// MLX in f32: in bf16 it is held to mlx-lm's recorded bits, not to the oracle.
#[cfg(feature = "mlx")]
fn mlx_instances() -> Vec<Instance<zmlx_kernels::mlx::MlxBackend>> {
    use zmlx_kernels::mlx::{MlxBackend, Numerics};
    vec![Instance {
        name: "mlx, accurate".to_owned(),
        backend: MlxBackend::new(Numerics::Accurate).unwrap(),
        grid: Grid::Full,
        // A dense product of several rows is another routine than that of one.
        same_path_below: 0,
        product_error: |_| 1.0,
        attention_error: 1.0,
        // Its polynomial reduces the argument in f32: up to 1.3 times, where sigmoid is 1e-8 and less, was measured.
        exponential_error: 2.0,
        // Frequencies in f32 as powers, angles as f32 products.
        angle_error: 1.0 / (1 << 23) as f64,
    }]
}

#[test]
fn cpu_on_three_threads() {
    let best = Level::fastest();
    let instances = [cpu_instance(best, 3)];
    linear::all_formats(&instances);
    gather::per_token_and_per_slot(&instances);
    fused::gather_qmm_combine(&instances);
    attention::grouped_heads(&instances);
    elementwise::large_tensors(&instances);
}

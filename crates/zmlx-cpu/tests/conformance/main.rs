//! The conformance suite on every level of the CPU backend, and what only this backend promises.
//!
//! | module | what |
//! |---|---|
//! | `attention` | attention in integers |
//! | `int8` | activations of 8 bits |
//! | `op_goldens` | the quantised formats against what MLX recorded |
//!
//! In builds with debug assertions a buffer is filled with NaN (words: `u32::MAX`) before an op writes it. So a value
//! that an op forgot to write fails a test. The profiles that tests use have these assertions by default.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod attention;
mod int8;
mod op_goldens;

use zmlx_conformance::suite::Host;
use zmlx_conformance::{Grid, Instance, conformance, elementwise, fused, gather, linear};
use zmlx_core::{Backend, Error, QuantMode, QuantSpec, WeightFormat};
use zmlx_cpu::{Activations, CpuBackend, Level};

conformance!(cpu, crate::cpu_instances);
conformance!(cpu_int8, crate::cpu_int8_instances);

fn cpu_instance(level: Level, n_threads: usize) -> Instance<CpuBackend> {
    Instance {
        name: format!("cpu {} on {n_threads} threads", level.name()),
        backend: CpuBackend::with_level(level, Some(n_threads)).unwrap(),
        // More threads only change how rows are divided, which some of the sizes show.
        grid: if n_threads == 1 { Grid::Full } else { Grid::Thinned },
        // From 5 rows on, some levels use tiles.
        same_path_below: 5,
        product_error: activations_of_16_bits,
        // Queries, keys, values and weights are integers of 15 bits. Each is off by up to 2^-15 of the largest of its
        // row (about 3), which is 5e-5 of a value in the root mean square. One of the results of up to 6 was off by
        // 5.4e-4.
        attention_error: 60.0,
        chunk_error: 1.0,
        exponential_error: 1.0,
        // Angles are computed in f64.
        angle_error: 0.0,
    }
}

/// Activations are integers of 16 bits if the weights are codes. Each is off by up to 2^-16 of the largest of its
/// group, evenly distributed, so by 2^-16/√3 in the root mean square. Six times that, times the norms, is 111 times the
/// bound of f32.
fn activations_of_16_bits(format: WeightFormat, _: usize) -> f64 {
    match format {
        WeightFormat::Quantized { spec, .. } if spec.mode() != QuantMode::Mxfp8 => 112.0,
        _ => 1.0,
    }
}

/// The same with 8 bits: off by up to 1/254 of the largest, which is 258 times as much.
fn activations_of_8_bits(format: WeightFormat, n_tokens: usize) -> f64 {
    let is_wide = |spec: QuantSpec| spec.bits() == 8;
    match format {
        WeightFormat::Quantized { spec, .. } if !is_wide(spec) => {
            258.0 * activations_of_16_bits(format, n_tokens)
        }
        _ => activations_of_16_bits(format, n_tokens),
    }
}

/// The best level with activations of 8 bits. The module `int8` holds every level's products to tighter bounds.
fn cpu_int8_instances() -> Vec<Instance<CpuBackend>> {
    let instance = cpu_instance(Level::fastest(), 2);
    vec![Instance {
        name: format!("{}, int8", instance.name),
        backend: instance.backend.with_activations(Activations::Int8),
        product_error: activations_of_8_bits,
        ..instance
    }]
}

/// The levels that these tests run: those in the variable `ZMLX_TEST_LEVELS`, separated by commas, or all that this
/// machine can run.
///
/// # Panics
/// If a named level is unknown or cannot run here, so that a requested level is never skipped silently.
fn levels() -> Vec<Level> {
    let Ok(names) = std::env::var("ZMLX_TEST_LEVELS") else { return Level::supported() };
    let level = |name: &str| {
        let level =
            Level::from_name(name).unwrap_or_else(|| panic!("ZMLX_TEST_LEVELS: no level is named {name:?}"));
        assert!(level.is_supported(), "ZMLX_TEST_LEVELS: this machine cannot run {name}");
        level
    };
    names.split(',').map(level).collect()
}

/// Every level, with one thread and with a team.
fn cpu_instances() -> Vec<Instance<CpuBackend>> {
    levels().into_iter().flat_map(|level| [1, 2].map(|n_threads| cpu_instance(level, n_threads))).collect()
}

/// The suite covers the levels that this machine supports. Here the system's own list of the processor's features is
/// compared with these levels, so that none is skipped silently.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn no_level_is_left_out() {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap();
    let has = |names: &[&str]| names.iter().all(|name| flags.split_whitespace().any(|flag| flag == *name));
    let wide = ["avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"];
    let vnni = [&wide[..], &["avx512_vnni", "avx512vbmi"]].concat();
    for (level, names) in
        [(Level::Avx2, &["avx2", "fma", "f16c"][..]), (Level::Avx512, &wide), (Level::Avx512Vnni, &vnni)]
    {
        assert!(
            !has(names) || level.is_supported(),
            "{level:?} is not used, but the processor has {names:?}"
        );
    }
}

#[test]
fn cpu_on_three_threads() {
    let best = Level::fastest();
    let instances = [cpu_instance(best, 3)];
    linear::all_formats(&instances);
    gather::per_token_and_per_slot(&instances);
    fused::gather_qmm_combine(&instances);
    zmlx_conformance::attention::grouped_heads(&instances);
    elementwise::large_tensors(&instances);
}

#[test]
fn messages_name_op_argument_and_both_shapes() {
    let b = CpuBackend::new(Some(1)).unwrap();
    let error = b.add(&b.put(&[0.0; 6], &[2, 3]), &b.put(&[0.0; 6], &[3, 2])).unwrap_err();
    let text = error.to_string();
    assert!(["add", "b", "[2, 3]", "[3, 2]"].iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn levels_that_this_machine_lacks() {
    for level in Level::ALL.into_iter().filter(|l| !l.is_supported()) {
        let error = CpuBackend::with_level(level, Some(1)).err().unwrap();
        assert!(matches!(error, Error::Unavailable { backend: "cpu", .. }), "{error}");
    }
    assert!(Level::supported().contains(&Level::Scalar));
}

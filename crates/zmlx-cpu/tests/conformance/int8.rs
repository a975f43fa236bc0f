//! Activations of 8 bits. The rounding is known, so values that 8 bits represent exactly meet the bounds of f32:
//! integers up to 127 times a power of two, with 127 in each group.

use zmlx_conformance::bounds;
use zmlx_conformance::cases::{self, EXPERTS, Experts, N_GROUPS, N_OUT, N_TOKENS, REAL_WIDTHS};
use zmlx_conformance::inputs::{Place, Raw, TestWeight};
use zmlx_conformance::suite::Host;
use zmlx_core::{Backend, Down, GateUp, WeightFormat};
use zmlx_cpu::{Activations, CpuBackend, Level};
use zmlx_oracle::testing::{random_experts, random_f32};

/// Number of values in the smallest groups.
const GROUP: usize = 16;

fn backends(activations: Activations) -> Vec<(String, CpuBackend)> {
    let backend = |level: Level| {
        let b = CpuBackend::with_level(level, Some(2)).unwrap().with_activations(activations);
        (format!("{}, {}", level.name(), activations.name()), b)
    };
    crate::levels().into_iter().map(backend).collect()
}

/// The formats whose products take activations of 8 bits.
fn formats() -> impl Iterator<Item = (usize, WeightFormat)> {
    let is_narrow = |f: &WeightFormat| matches!(f, WeightFormat::Quantized { spec, .. } if spec.bits() < 8);
    cases::quantised().into_iter().filter(is_narrow).enumerate()
}

/// Values that 8 bits represent exactly.
fn round_values(n: usize, seed: u64) -> Vec<f32> {
    let mut values = random_f32(n, 1.0, seed);
    for (i, v) in values.iter_mut().enumerate() {
        let integer =
            if i % GROUP == i / GROUP % GROUP { 127.0f32.copysign(*v) } else { (40.0 * *v).round() };
        *v = integer.clamp(-127.0, 127.0) / 64.0;
    }
    values
}

/// Every format in every batch size, each with one of the row sizes in turn.
#[test]
fn linear_is_exact_for_round_activations() {
    let backends = backends(Activations::Int8);
    for (f, format) in formats() {
        let sizes = (0..4).map(|i| {
            (N_OUT[(f + 3 * i) % N_OUT.len()], N_GROUPS[(f + i) % N_GROUPS.len()] * cases::group_size(format))
        });
        for (n_out, n_in) in sizes.chain([(13, REAL_WIDTHS[f % 3])]) {
            let w = TestWeight::random(format, [1, n_out, n_in], f as u64);
            let x = round_values(64 * n_in, 7 + f as u64);
            let want = bounds::linear(&x, &w);
            for (level, b) in &backends {
                let weight = b.load(&w);
                for n in N_TOKENS {
                    let y = b.get(&b.linear(&b.put(&x[..n * n_in], &[n, n_in]), &weight).unwrap());
                    let what = format_args!("{level}: {n} × {n_in} to {n_out} in {}", cases::name(format));
                    want.first(n * n_out).check(&y, what);
                }
            }
        }
    }
}

/// The fused ops of a mixture of experts.
#[test]
fn experts_are_exact_for_round_activations() {
    let backends = backends(Activations::Int8);
    for (f, format) in formats() {
        let Experts { n_tokens, top_k, n_experts, n_out, n_groups } = EXPERTS[f % EXPERTS.len()];
        let n_in = n_groups * cases::group_size(format);
        let bank = |seed| TestWeight::random(format, [n_experts, n_out, n_in], seed);
        let (gate, up) = (bank(f as u64), bank(100 + f as u64));
        let experts = random_experts(n_tokens, top_k, n_experts, 90 + f as u64);
        let (x, h) =
            (round_values(n_tokens * n_in, f as u64), round_values(n_tokens * top_k * n_in, 8 + f as u64));
        let weights = random_f32(n_tokens * top_k, 0.5, 60 + f as u64);
        let gathered = |w: &TestWeight| bounds::gather(&x, w, &experts, top_k);
        let swiglu = bounds::swiglu(&gathered(&gate), &gathered(&up));
        let combine = bounds::combine(&bounds::gather(&h, &up, &experts, top_k), &weights, top_k);
        for (level, b) in &backends {
            let what = format_args!("{level}: {:?}, {}", EXPERTS[f % EXPERTS.len()], cases::name(format));
            let (x, h) = (b.put(&x, &[n_tokens, n_in]), b.put(&h, &[n_tokens, top_k, n_in]));
            let (gate, up) = (b.load(&gate), b.load(&up));
            let experts = b.put_indices(&experts, &[n_tokens, top_k]);
            let y = b.gather_qmm_swiglu(&x, GateUp::swiglu(&gate, &up), &experts).unwrap();
            swiglu.check(&b.get(&y), what);
            let weights = b.put(&weights, &[n_tokens, top_k]);
            combine.check(
                &b.get(&b.gather_qmm_combine(&h, Down::plain(&up), &experts, &weights).unwrap()),
                what,
            );
        }
    }
}

/// The largest weights and activations of one sign, whose sums are nearest to overflow; also with 16 bits.
#[test]
fn the_largest_sums_do_not_overflow() {
    let backends = [Activations::Int8, Activations::Int16].map(backends);
    for (f, format) in cases::quantised().into_iter().enumerate() {
        let n_in = 2 * cases::group_size(format).max(64);
        let mut raw = Raw::random(format, [1, 16, n_in], f as u64);
        // The largest code; for e2m1 and e4m3 the code of the largest value.
        let byte =
            if raw.biases.is_empty() { [0x77, 0x7e][usize::from(raw.data.len() == 16 * n_in)] } else { 0xff };
        raw.data.fill(byte);
        let mut w = raw.at(Place::Odd);
        w.values = w.host.to_f32_vec().into_iter().map(f64::from).collect();
        for sign in [1.0, -1.0] {
            let x = vec![sign; 16 * n_in];
            let want = bounds::linear(&x, &w);
            for (level, b) in backends.iter().flatten() {
                for n in [1, 2, 4, 9, 16] {
                    let y = b.linear(&b.put(&x[..n * n_in], &[n, n_in]), &b.load(&w)).unwrap();
                    let what = format_args!("{level}: {n} × {n_in} in {}", cases::name(format));
                    want.first(n * 16).check(&b.get(&y), what);
                }
            }
        }
    }
}

//! Activations other than SwiGLU, biases of experts, and the elementwise ops that go with them.

use zmlx_core::{Activation, Backend, DType, Down, GateUp, WeightFormat, stock};
use zmlx_oracle::ops;
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds::{self, Bounded, U, check_bits};
use crate::cases::{self, EXPERTS, Experts};
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

/// Every activation, with the oracle's version of it.
const ALL: [(Activation, ops::Activation); 4] = [
    (Activation::SwiGlu, ops::Activation::SwiGlu),
    (Activation::GeGlu, ops::Activation::GeGlu),
    (
        Activation::ClampedSwiGlu { alpha: 1.75, limit: 7.0 },
        ops::Activation::ClampedSwiGlu { alpha: 1.75, limit: 7.0 },
    ),
    // The limit is so small that many values are clamped.
    (
        Activation::ClampedSwiGlu { alpha: 1.0, limit: 0.5 },
        ops::Activation::ClampedSwiGlu { alpha: 1.0, limit: 0.5 },
    ),
];

const WIDTHS: [usize; 10] = [1, 2, 7, 8, 9, 15, 16, 17, 64, 257];

/// Values that are exact, without a tolerance.
fn exact(v: &[f32]) -> Bounded {
    Bounded::uniform(v.iter().map(|v| f64::from(*v)).collect(), 0.0)
}

/// `gated` of exact inputs, including large ones.
pub fn elementwise<B: Backend>(instances: &[Instance<B>]) {
    for (activation, theirs) in ALL {
        for width in WIDTHS {
            let (mut gate, mut up) = (random_f32(3 * width, 4.0, 1), random_f32(3 * width, 2.0, 2));
            (gate[0], up[width]) = (-300.0, 40.0);
            let want = bounds::gated(&exact(&gate), &exact(&up), theirs);
            for Instance { name, backend: b, exponential_error, .. } in instances {
                let y = b.gated(&b.put(&gate, &[3, width]), &b.put(&up, &[3, width]), activation).unwrap();
                assert_eq!(b.shape(&y), [3, width]);
                let what = format_args!("{name}: {activation:?}, {width} wide");
                want.times(*exponential_error).check(&b.get(&y), what);
            }
        }
    }
}

/// The exponential, the sum and the quotient are all near 1, with two units in the last place, times the cap.
pub fn soft_cap<B: Backend>(instances: &[Instance<B>]) {
    for (width, cap) in WIDTHS.into_iter().zip([30.0f32, 1.0, 50.0, 7.5, 0.25].into_iter().cycle()) {
        let mut x = random_f32(2 * width, 2.0 * f64::from(cap), width as u64);
        x[0] = 1000.0 * cap;
        let want = ops::soft_cap(&x, f64::from(cap));
        let want = Bounded::uniform(want, 16.0 * U * f64::from(cap));
        for Instance { name, backend: b, exponential_error, .. } in instances {
            let y = b.soft_cap(&b.put(&x, &[2, width]), cap).unwrap();
            assert_eq!(b.shape(&y), [2, width]);
            want.times(*exponential_error)
                .check(&b.get(&y), format_args!("{name}: {width} wide, up to {cap}"));
        }
    }
}

fn biases([n, len]: [usize; 2], seed: u64) -> TestWeight {
    let dtype = [DType::F32, DType::BF16, DType::F16][seed as usize % 3];
    TestWeight::random(WeightFormat::Dense(dtype), [n, 1, len], seed)
}

/// Gate and up of chosen experts, with or without biases.
fn check_experts<B: Backend>(i: &Instance<B>, f: usize, format: WeightFormat, is_biased: bool) {
    let b = &i.backend;
    let sizes = EXPERTS[(f * 3 + usize::from(is_biased)) % EXPERTS.len()];
    let (activation, theirs) = ALL[f % ALL.len()];
    let Experts { n_tokens, top_k, n_experts, n_out, n_groups } = sizes;
    let (n_in, seed) = (n_groups * cases::group_size(format), 10 * f as u64);
    let bank = |seed| TestWeight::random(format, [n_experts, n_out, n_in], seed);
    let (gate, up) = (bank(seed), bank(seed + 1));
    let of = [biases([n_experts, n_out], seed + 2), biases([n_experts, n_out], seed + 2)];
    let x = random_f32(n_tokens * n_in, 1.0, seed + 4);
    let experts = random_experts(n_tokens, top_k, n_experts, seed + 5);
    let mats = || experts.iter().map(|e| *e as usize);
    let mut wants = [&gate, &up].map(|w| bounds::gather(&x, w, &experts, top_k));
    if is_biased {
        wants = [bounds::plus(&wants[0], &of[0], mats()), bounds::plus(&wants[1], &of[1], mats())];
    }
    let want = bounds::gated(&wants[0], &wants[1], theirs);
    let what = format!("{}: {sizes:?}, {}, {activation:?}, {is_biased}", i.name, cases::name(format));
    let ([gate, up], of) = ([b.load(&gate), b.load(&up)], of.each_ref().map(|w| b.load(w)));
    let (x, chosen) = (b.put(&x, &[n_tokens, n_in]), b.put_indices(&experts, &[n_tokens, top_k]));
    let weights = GateUp { gate: &gate, up: &up, biases: is_biased.then_some([&of[0], &of[1]]), activation };
    let y = b.gather_qmm_swiglu(&x, weights, &chosen).unwrap();
    assert_eq!(b.shape(&y), [n_tokens, top_k, n_out]);
    let fused = b.get(&y);
    want.on(i).check(&fused, &what);
    let stock = b.get(&stock::gather_qmm_swiglu(b, &x, weights, &chosen).unwrap());
    want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
    let joined = b.concat_rows(&[&gate, &up]).unwrap();
    let concat = b.get(&stock::gather_concat_swiglu(b, &x, (&joined, weights), &chosen).unwrap());
    want.around(&concat).on(i).check(&fused, format_args!("{what}: against the concatenation"));
}

/// Every format, with the activations in turn.
pub fn experts_with_biases<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            check_experts(i, f, format, true);
        }
    }
}

/// The same without biases.
pub fn experts_without_biases<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            check_experts(i, f + 1, format, false);
        }
    }
}

/// A dense MLP, with biases and without.
pub fn dense<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let (n_in, n_out) = (128, cases::N_OUT[f % cases::N_OUT.len()]);
        let (activation, theirs) = ALL[(f + 1) % ALL.len()];
        let weight = |seed| TestWeight::random(format, [1, n_out, n_in], seed);
        let (gate, up) = (weight(f as u64), weight(100 + f as u64));
        let of = [biases([1, n_out], f as u64), biases([1, n_out], 1 + f as u64)];
        for n in [1, 9] {
            let x = random_f32(n * n_in, 1.0, 200 + f as u64);
            for is_biased in [true, false] {
                let mut wants = [bounds::linear(&x, &gate), bounds::linear(&x, &up)];
                if is_biased {
                    let zeros = || std::iter::repeat_n(0, n);
                    wants =
                        [bounds::plus(&wants[0], &of[0], zeros()), bounds::plus(&wants[1], &of[1], zeros())];
                }
                let want = bounds::gated(&wants[0], &wants[1], theirs);
                for i @ Instance { name, backend: b, .. } in instances {
                    let of = of.each_ref().map(|w| b.load(w));
                    let (gate, up) = (b.load(&gate), b.load(&up));
                    let biases = is_biased.then_some([&of[0], &of[1]]);
                    let weights = GateUp { gate: &gate, up: &up, biases, activation };
                    let x = b.put(&x, &[n, n_in]);
                    let fused = b.get(&b.qmm_swiglu(&x, weights).unwrap());
                    let what = format_args!("{name}: {n} × {n_out}, {}, {is_biased}", cases::name(format));
                    want.on(i).check(&fused, what);
                    let stock = b.get(&stock::qmm_swiglu(b, &x, weights).unwrap());
                    want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
                }
            }
        }
    }
}

/// The biases of the down projection are weighted as the experts are.
pub fn combine_with_biases<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        let b = &i.backend;
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            let sizes = EXPERTS[(f + 3) % EXPERTS.len()];
            let Experts { n_tokens, top_k, n_experts, n_out, n_groups } = sizes;
            let n_in = n_groups * cases::group_size(format);
            let down = TestWeight::random(format, [n_experts, n_out, n_in], f as u64);
            let bias = biases([n_experts, n_out], f as u64);
            let experts = random_experts(n_tokens, top_k, n_experts, 90 + f as u64);
            let x = random_f32(n_tokens * top_k * n_in, 1.0, 30 + f as u64);
            let weights = random_f32(n_tokens * top_k, 0.5, 60 + f as u64);
            let products = bounds::gather(&x, &down, &experts, top_k);
            let terms = bounds::plus(&products, &bias, experts.iter().map(|e| *e as usize));
            let want = bounds::combine(&terms, &weights, top_k);
            let what = format_args!("{}: {sizes:?}, {}", i.name, cases::name(format));
            let (weight, bias) = (b.load(&down), b.load(&bias));
            let down = Down { weight: &weight, bias: Some(&bias) };
            let (x, chosen) =
                (b.put(&x, &[n_tokens, top_k, n_in]), b.put_indices(&experts, &[n_tokens, top_k]));
            let weights = b.put(&weights, &[n_tokens, top_k]);
            let fused = b.get(&b.gather_qmm_combine(&x, down, &chosen, &weights).unwrap());
            want.on(i).check(&fused, what);
            let stock = b.get(&stock::gather_qmm_combine(b, &x, down, &chosen, &weights).unwrap());
            want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
        }
    }
}

/// `gather_add` and `mul_taken`: one rounding, so exactly the f32 result.
pub fn chosen_values<B: Backend>(instances: &[Instance<B>]) {
    for (n, top_k, n_experts, width) in [(1, 1, 1, 1), (1, 4, 9, 17), (3, 2, 5, 64), (33, 3, 4, 257)] {
        let x = random_f32(n * top_k * width, 1.0, 1);
        let bank = TestWeight::random(WeightFormat::Dense(DType::F32), [n_experts, 1, width], 2);
        let experts = random_experts(n, top_k, n_experts, 3);
        let rows = experts.iter().zip(x.chunks_exact(width));
        let of = |e: &u32| bank.mat(*e as usize).iter().map(|v| *v as f32).collect::<Vec<_>>();
        let sums: Vec<f32> =
            rows.flat_map(|(e, x)| x.iter().zip(of(e)).map(|(x, b)| x + b).collect::<Vec<_>>()).collect();
        let (factors, weights) = (random_f32(n_experts, 1.0, 4), random_f32(n * top_k, 1.0, 5));
        let products: Vec<f32> =
            weights.iter().zip(&experts).map(|(w, e)| w * factors[*e as usize]).collect();
        for Instance { name, backend: b, .. } in instances {
            let chosen = b.put_indices(&experts, &[n, top_k]);
            let y = b.gather_add(&b.put(&x, &[n, top_k, width]), &b.load(&bank), &chosen).unwrap();
            assert_eq!(b.shape(&y), [n, top_k, width]);
            check_bits(&b.get(&y), &sums, name);
            let y = b.mul_taken(&b.put(&weights, &[n, top_k]), &b.load_vector(&factors), &chosen).unwrap();
            assert_eq!(b.shape(&y), [n, top_k]);
            check_bits(&b.get(&y), &products, name);
        }
    }
}

//! Fused ops, compared with the oracle and with their compositions of plain ops.

use zmlx_core::{Backend, Down, GateUp, WeightFormat, stock};
use zmlx_oracle::ops;
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds::{self, U, check_bits};
use crate::cases::{self, EXPERTS, Experts, N_OUT};
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

/// A gate bank and an up bank, with tokens for them.
struct Case {
    gate: TestWeight,
    up: TestWeight,
    x: Vec<f32>,
    experts: Vec<u32>,
    sizes: Experts,
}

impl Case {
    fn new([gate, up]: [WeightFormat; 2], n_in: usize, sizes: Experts, seed: u64) -> Self {
        let Experts { n_tokens, top_k, n_experts, n_out, .. } = sizes;
        let bank = |format, seed| TestWeight::random(format, [n_experts, n_out, n_in], seed);
        Self {
            gate: bank(gate, seed),
            up: bank(up, seed + 1),
            x: random_f32(n_tokens * n_in, 1.0, seed + 2),
            experts: random_experts(n_tokens, top_k, n_experts, seed + 3),
            sizes,
        }
    }

    fn check<B: Backend>(&self, i: &Instance<B>) {
        let Experts { n_tokens, top_k, n_out, .. } = self.sizes;
        let b = &i.backend;
        let what = format!(
            "{}: {:?}, gate {}, up {}",
            i.name,
            self.sizes,
            cases::name(self.gate.host.format()),
            cases::name(self.up.host.format())
        );
        let (gate, up) = (b.load(&self.gate), b.load(&self.up));
        let x = b.put(&self.x, &[n_tokens, self.gate.n_in]);
        let experts = b.put_indices(&self.experts, &[n_tokens, top_k]);
        let weights = GateUp::swiglu(&gate, &up);
        let fused = b.gather_qmm_swiglu(&x, weights, &experts).unwrap();
        assert_eq!(b.shape(&fused), [n_tokens, top_k, n_out]);
        let fused = b.get(&fused);
        let want = bounds::swiglu(
            &bounds::gather(&self.x, &self.gate, &self.experts, top_k),
            &bounds::gather(&self.x, &self.up, &self.experts, top_k),
        );
        want.on(i).check(&fused, &what);
        let stock = b.get(&stock::gather_qmm_swiglu(b, &x, weights, &experts).unwrap());
        want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
        let gate_up = b.concat_rows(&[&gate, &up]).unwrap();
        let concat = b.get(&stock::gather_concat_swiglu(b, &x, (&gate_up, weights), &experts).unwrap());
        want.around(&concat).on(i).check(&fused, format_args!("{what}: against the concatenation"));
    }
}

/// Every format with two of the cases, in turn.
pub fn gather_qmm_swiglu<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            for sizes in [EXPERTS[f % 8], EXPERTS[(f * 3 + 4) % 8]] {
                let n_in = sizes.n_groups * cases::group_size(format);
                Case::new([format; 2], n_in, sizes, 10 * f as u64).check(i);
            }
        }
    }
}

/// Gate and up with different formats: different mode, bits, group, or only the type of scales.
pub fn gather_qmm_swiglu_of_two_formats<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    for f in 0..formats.len() {
        // Neighbouring formats differ in the type of scales, and those further away differ in the rest.
        let pair = [formats[f], formats[(f + [1, 3, 20][f % 3]) % formats.len()]];
        let sizes = EXPERTS[f % 8];
        for i in instances.iter().filter(|i| i.is_full() || f % 4 == 0) {
            Case::new(pair, 128, sizes, f as u64).check(i);
        }
    }
}

/// A dense MLP.
pub fn qmm_swiglu<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    for (f, format) in formats.iter().copied().enumerate() {
        let up_format = if f % 5 == 4 { formats[(f + 7) % formats.len()] } else { format };
        let (n_in, n_out) = (128 * (1 + f % 2), N_OUT[f % N_OUT.len()]);
        let gate = TestWeight::random(format, [1, n_out, n_in], f as u64);
        let up = TestWeight::random(up_format, [1, n_out, n_in], 100 + f as u64);
        for n in [1, 3, 9] {
            let x = random_f32(n * n_in, 1.0, 200 + f as u64);
            let want = bounds::swiglu(&bounds::linear(&x, &gate), &bounds::linear(&x, &up));
            for i @ Instance { name, backend: b, .. } in instances {
                let what = format_args!("{name}: {n} × {n_out}, {}", cases::name(format));
                let x = b.put(&x, &[n, n_in]);
                let (gate_weight, up_weight) = (b.load(&gate), b.load(&up));
                let weights = GateUp::swiglu(&gate_weight, &up_weight);
                let fused = b.qmm_swiglu(&x, weights).unwrap();
                assert_eq!(b.shape(&fused), [n, n_out]);
                let fused = b.get(&fused);
                want.on(i).check(&fused, what);
                let stock = b.get(&stock::qmm_swiglu(b, &x, weights).unwrap());
                want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
            }
        }
    }
}

/// Down projection and weighted sum; also with one expert twice, and with weights that are positive, negative and zero.
pub fn gather_qmm_combine<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        let b = &i.backend;
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            for sizes in [EXPERTS[(f + 1) % 8], EXPERTS[(f * 3 + 2) % 8]] {
                let Experts { n_tokens, top_k, n_experts, n_out, n_groups } = sizes;
                let n_in = n_groups * cases::group_size(format);
                let down = TestWeight::random(format, [n_experts, n_out, n_in], f as u64);
                let mut experts = random_experts(n_tokens, top_k, n_experts, 90 + f as u64);
                experts[top_k - 1] = experts[0];
                let x = random_f32(n_tokens * top_k * n_in, 1.0, 30 + f as u64);
                let mut weights = random_f32(n_tokens * top_k, 0.5, 60 + f as u64);
                weights[(n_tokens - 1) * top_k] = 0.0;
                let want = bounds::combine(&bounds::gather(&x, &down, &experts, top_k), &weights, top_k);
                let what = format_args!("{}: {sizes:?}, {}", i.name, cases::name(format));
                let (x, down) = (b.put(&x, &[n_tokens, top_k, n_in]), b.load(&down));
                let (experts, weights) =
                    (b.put_indices(&experts, &[n_tokens, top_k]), b.put(&weights, &[n_tokens, top_k]));
                let fused = b.gather_qmm_combine(&x, Down::plain(&down), &experts, &weights).unwrap();
                assert_eq!(b.shape(&fused), [n_tokens, n_out]);
                let fused = b.get(&fused);
                want.on(i).check(&fused, what);
                let stock =
                    b.get(&stock::gather_qmm_combine(b, &x, Down::plain(&down), &experts, &weights).unwrap());
                want.around(&stock).on(i).check(&fused, format_args!("{what}: against the composition"));
            }
        }
    }
}

/// What a token's experts give, plus what an MLP that all tokens share gives, plus a residual: a backend may make that of fewer
/// kernels, where the shared matrices have the experts' size and format, and where they do not.
pub fn experts_and_a_shared_mlp<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        let b = &i.backend;
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            let group = cases::group_size(format);
            let sizes = [(1, 64, 128), (3, 96, 128), (15, 128, 256), (17, 128, 128), (2, 64, 64)][f % 5];
            let (n, top_k, n_experts) = (sizes.0, 1 + f % 4, 5);
            let (inter, hidden) =
                (sizes.1.max(group).next_multiple_of(group), sizes.2.max(group).next_multiple_of(group));
            let shared_inter = if f % 7 == 6 { inter + group } else { inter };
            let shared_format = if f % 7 == 5 { cases::formats()[0] } else { format };
            let weight = |format, dims, seed: usize| TestWeight::random(format, dims, (10 * f + seed) as u64);
            let [gate, up] = [0, 1].map(|s| weight(format, [n_experts, inter, hidden], s));
            let down = weight(format, [n_experts, hidden, inter], 2);
            let [shared_gate, shared_up] =
                [3, 4].map(|s| weight(shared_format, [1, shared_inter, hidden], s));
            let shared_down = weight(shared_format, [1, hidden, shared_inter], 5);
            let x = random_f32(n * hidden, 1.0, 6 + f as u64);
            let residual = random_f32(n * hidden, 1.0, 7 + f as u64);
            let experts = random_experts(n, top_k, n_experts, 8 + f as u64);
            let weights = random_f32(n * top_k, 0.5, 9 + f as u64);

            let banks = [&gate, &up, &down, &shared_gate, &shared_up, &shared_down].map(|w| b.load(w));
            let [of_gate, of_up, of_down, of_shared_gate, of_shared_up, of_shared_down] = &banks;
            let put_experts = b.put_indices(&experts, &[n, top_k]);
            let put_weights = b.put(&weights, &[n, top_k]);
            let put_x = b.put(&x, &[n, hidden]);
            let parts = || {
                let routed =
                    b.gather_qmm_swiglu(&put_x, GateUp::swiglu(of_gate, of_up), &put_experts).unwrap();
                let shared = b.qmm_swiglu(&put_x, GateUp::swiglu(of_shared_gate, of_shared_up)).unwrap();
                (routed, shared)
            };
            // What lies between, read: nothing of these is one kernel with what follows.
            let (routed, shared) = parts();
            let (routed, shared) = (b.get(&routed), b.get(&shared));
            let of_experts =
                bounds::combine(&bounds::gather(&routed, &down, &experts, top_k), &weights, top_k);
            let of_shared = bounds::linear(&shared, &shared_down);
            let (of_experts, of_shared) = (of_experts.on(i), of_shared.on(i));
            let want: Vec<f64> = (0..n * hidden)
                .map(|at| of_experts.want[at] + of_shared.want[at] + f64::from(residual[at]))
                .collect();
            // Two sums are rounded. Between gate, up and down a backend that fuses rounds in another order at most, which is
            // within as much again.
            let allowed = |at: usize| {
                2.0 * (of_experts.allowed[at] + of_shared.allowed[at]) + 4.0 * U * want[at].abs().max(1.0)
            };
            let want = bounds::Bounded {
                allowed: (0..want.len()).map(allowed).collect(),
                want: want.clone(),
                formats: Vec::new(),
                per_token: hidden,
            };

            let (routed, shared) = parts();
            let y = b.gather_qmm_combine(&routed, Down::plain(of_down), &put_experts, &put_weights).unwrap();
            let y = b.add(&y, &b.linear(&shared, of_shared_down).unwrap()).unwrap();
            let y = b.add(&b.put(&residual, &[n, hidden]), &y).unwrap();
            assert_eq!(b.shape(&y), [n, hidden]);
            let what = format!("{}: {n} × {top_k}, {}", i.name, cases::name(format));
            want.check(&b.get(&y), &what);
            // The ops that take both.
            let [of_gate_up, of_shared_gate_up] =
                [GateUp::swiglu(of_gate, of_up), GateUp::swiglu(of_shared_gate, of_shared_up)];
            let (routed, shared) =
                b.gather_qmm_swiglu_shared(&put_x, of_gate_up, of_shared_gate_up, &put_experts).unwrap();
            assert_eq!(b.shape(&routed), [n, top_k, inter]);
            assert_eq!(b.shape(&shared), [n, shared_inter]);
            let y = b
                .gather_qmm_combine_shared(
                    [&routed, &shared],
                    Down::plain(of_down),
                    of_shared_down,
                    &put_experts,
                    &put_weights,
                )
                .unwrap();
            let y = b.add(&b.put(&residual, &[n, hidden]), &y).unwrap();
            assert_eq!(b.shape(&y), [n, hidden]);
            want.check(&b.get(&y), format_args!("{what}: with the shared expert"));
        }
    }
}

/// Sum and norm: the bits of the composition, and the values of the oracle.
pub fn add_rms_norm<B: Backend>(instances: &[Instance<B>]) {
    for (n, width) in [(1, 1), (1, 7), (3, 8), (2, 9), (5, 64), (1, 257), (2, 2048), (33, 1536)] {
        let x = random_f32(n * width, 1.0, 1);
        let residual = random_f32(n * width, 3.0, 2);
        let weight = random_f32(width, 1.0, 3);
        // The sum is an output in f32, and the norm is that of the rounded sum.
        let sum: Vec<f32> = x.iter().zip(&residual).map(|(a, b)| a + b).collect();
        let eps = 1e-6f32;
        // A mean of up to 2048 squares in f32, two roundings of the factor, two of the products.
        let normed = bounds::Bounded::relative(ops::rms_norm(&sum, &weight, f64::from(eps)), 0.0, 16.0 * U);
        for Instance { name, backend: b, .. } in instances {
            let what = format_args!("{name}: {n} × {width}");
            let (x, residual) = (b.put(&x, &[n, width]), b.put(&residual, &[n, width]));
            let weight = b.load_vector(&weight);
            let (got_sum, got_normed) = b.add_rms_norm(&x, &residual, &weight, eps).unwrap();
            assert_eq!((b.shape(&got_sum), b.shape(&got_normed)), (vec![n, width], vec![n, width]));
            check_bits(&b.get(&got_sum), &sum, what);
            normed.check(&b.get(&got_normed), what);
            let (stock_sum, stock_normed) = stock::add_rms_norm(b, &x, &residual, &weight, eps).unwrap();
            check_bits(&b.get(&got_sum), &b.get(&stock_sum), what);
            check_bits(&b.get(&got_normed), &b.get(&stock_normed), what);
        }
    }
}

/// Norm and gate: the values of the oracle and of the composition.
pub fn rms_norm_gated<B: Backend>(instances: &[Instance<B>]) {
    for (n, heads, width) in
        [(1, 1, 1), (1, 2, 7), (3, 1, 8), (2, 3, 9), (5, 4, 64), (1, 32, 128), (67, 5, 129)]
    {
        let x = random_f32(n * heads * width, 1.0, 1);
        let gate = random_f32(n * heads * width, 3.0, 2);
        let weight = random_f32(width, 1.0, 3);
        let eps = 1e-6f32;
        // A norm as above; exponential, sum and quotient of SiLU; the product.
        let want = ops::rms_norm_gated(&x, &gate, &weight, f64::from(eps));
        let want = bounds::Bounded::relative(want, 0.0, 32.0 * U);
        for Instance { name, backend: b, exponential_error, .. } in instances {
            let what = format_args!("{name}: {n} × {heads} × {width}");
            let shape = [n, heads, width];
            let (x, gate) = (b.put(&x, &shape), b.put(&gate, &shape));
            let weight = b.load_vector(&weight);
            let y = b.rms_norm_gated(&x, &gate, &weight, eps).unwrap();
            assert_eq!(b.shape(&y), shape);
            let (want, y) = (want.times(*exponential_error), b.get(&y));
            want.check(&y, what);
            let stock = b.get(&stock::rms_norm_gated(b, &x, &gate, &weight, eps).unwrap());
            want.around(&stock).check(&y, format_args!("{what}: against the composition"));
            let other = b.reshape(&gate, &[heads, n, width]).unwrap();
            assert!(n == heads || b.rms_norm_gated(&x, &other, &weight, eps).is_err(), "{what}");
        }
    }
}

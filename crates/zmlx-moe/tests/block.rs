//! Routers, experts and whole blocks against the oracle's formulas in f64.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{
    Activation, Backend, DType, Fusion, HostWeight, NoauxTc, QuantMode, QuantSpec, Renormalize, SoftmaxTopK,
    WeightBytes, WeightFormat,
};
use zmlx_moe::{ExpertBank, Mlp, MoeBlock, Router};
use zmlx_oracle::compare::{differing_expert_sets, rel_rms};
use zmlx_oracle::ops;
use zmlx_oracle::quant::{Format, StorageDtype};
use zmlx_oracle::testing::{random_f32, random_quantized};

const HIDDEN: usize = 128;
const INTER: usize = 64;
const N_EXPERTS: usize = 8;
const TOP_K: usize = 3;

/// A random 4-bit weight, as a weight of the backend and as numbers.
fn weight(b: &CpuBackend, shape: [usize; 3], seed: u64) -> (<CpuBackend as Backend>::Weight, Vec<f64>) {
    let w = random_quantized(Format::affine(4, 64), StorageDtype::BF16, &shape, seed);
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).unwrap();
    let format = WeightFormat::Quantized { spec, scale_dtype: DType::BF16 };
    let biases = w.biases.clone().unwrap();
    let bytes =
        WeightBytes { data: w.weight.clone().into(), scales: w.scales.clone().into(), biases: biases.into() };
    (b.upload(HostWeight::new(format, shape, bytes).unwrap()).unwrap(), w.values_f64)
}

fn dense(b: &CpuBackend, values: &[f32], n_out: usize) -> <CpuBackend as Backend>::Weight {
    b.upload(HostWeight::from_f32(values, n_out, values.len() / n_out).unwrap()).unwrap()
}

fn mlp(x: &[f64], n: usize, gate: &[f64], up: &[f64], down: &[f64]) -> Vec<f64> {
    let inter = gate.len() / HIDDEN;
    let h = ops::swiglu(&ops::matmul(x, gate, n, inter, HIDDEN), &ops::matmul(x, up, n, inter, HIDDEN));
    ops::matmul(&h, down, n, HIDDEN, inter)
}

/// `Σ_s weight · expert(x)`, token by token from the formula.
fn experts(x: &[f64], routing: &ops::Routing, [gate, up, down]: [&[f64]; 3]) -> Vec<f64> {
    let of = |w: &[f64], e: u32| w[e as usize * INTER * HIDDEN..][..INTER * HIDDEN].to_vec();
    let mut y = vec![0.0; x.len()];
    for (t, (x, y)) in x.chunks_exact(HIDDEN).zip(y.chunks_exact_mut(HIDDEN)).enumerate() {
        for s in t * TOP_K..(t + 1) * TOP_K {
            let e = routing.indices[s];
            let out = mlp(x, 1, &of(gate, e), &of(up, e), &of(down, e));
            y.iter_mut().zip(out).for_each(|(y, v)| *y += routing.weights[s] * v);
        }
    }
    y
}

#[rstest]
fn a_block_is_its_formula(
    #[values(1, 2, 7, 64)] n_tokens: usize,
    #[values("stock", "concat", "fused")] fusion: &str,
    #[values("softmax_top_k", "noaux_tc", "noaux_tc in groups")] router: &str,
    #[values(0, 1)] n_shared: usize,
) {
    let fusion: Fusion = fusion.parse().unwrap();
    let b = CpuBackend::new(Some(2)).unwrap();
    let x = random_f32(n_tokens * HIDDEN, 1.0, 5);
    let x64: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let gate_values = random_f32(N_EXPERTS * HIDDEN, 0.1, 6);
    let bias_values = random_f32(N_EXPERTS, 0.2, 7);
    let logits = ops::matmul(&x, &gate_values, n_tokens, N_EXPERTS, HIDDEN);
    let gate = dense(&b, &gate_values, N_EXPERTS);

    let (router, want_routing) = if router == "softmax_top_k" {
        let settings = SoftmaxTopK { top_k: TOP_K, renormalize: Renormalize::Yes };
        let of = ops::SoftmaxTopK { n_experts: N_EXPERTS, top_k: TOP_K, norm_topk_prob: true };
        (Router::SoftmaxTopK { gate, settings }, ops::softmax_top_k(&logits, of))
    } else {
        let (n_group, topk_group) = if router == "noaux_tc" { (1, 1) } else { (4, 2) };
        let settings = NoauxTc {
            top_k: TOP_K,
            n_group,
            topk_group,
            renormalize: Renormalize::Yes,
            eps: 1e-20,
            routed_scaling_factor: 1.8,
        };
        let of = ops::NoauxTc {
            n_experts: N_EXPERTS,
            top_k: TOP_K,
            n_group,
            topk_group,
            norm_topk_prob: true,
            eps: 1e-20,
            routed_scaling_factor: f64::from(1.8f32),
        };
        let bias = dense(&b, &bias_values, 1);
        (Router::NoauxTc { gate, bias, settings }, ops::noaux_tc(&logits, &bias_values, of))
    };
    let (gate, gate_values) = weight(&b, [N_EXPERTS, INTER, HIDDEN], 8);
    let (up, up_values) = weight(&b, [N_EXPERTS, INTER, HIDDEN], 9);
    let (down, down_values) = weight(&b, [N_EXPERTS, HIDDEN, INTER], 10);
    let mut want = experts(&x64, &want_routing, [&gate_values, &up_values, &down_values]);
    let shared = (n_shared > 0).then(|| {
        let (gate, gate_values) = weight(&b, [1, 2 * INTER, HIDDEN], 11);
        let (up, up_values) = weight(&b, [1, 2 * INTER, HIDDEN], 12);
        let (down, down_values) = weight(&b, [1, HIDDEN, 2 * INTER], 13);
        let y = mlp(&x64, n_tokens, &gate_values, &up_values, &down_values);
        want = ops::add(&want, &y);
        Mlp { gate, up, down, activation: Activation::SwiGlu }
    });

    let block = MoeBlock { router, experts: ExpertBank::new(gate, up, down), shared, shared_gate: None };
    let x = b.tensor(&x, &[n_tokens, HIDDEN]).unwrap();
    let (y, routing) = block.forward_routed(&b, &x, &fusion).unwrap();
    let (mut got, mut chosen) = (Vec::new(), Vec::new());
    b.read_indices(&routing.experts, &mut chosen).unwrap();
    // The smallest margin of these scores is far above f32 rounding.
    assert!(want_routing.margins.iter().all(|m| *m > 1e-5));
    assert_eq!(differing_expert_sets(&chosen, &want_routing.indices, TOP_K), [0usize; 0]);
    b.read(&routing.weights, &mut got).unwrap();
    // In the backend's order.
    let weight_of = |(i, expert): (usize, &u32)| {
        let row = i / TOP_K * TOP_K..(i / TOP_K + 1) * TOP_K;
        let at = want_routing.indices[row.clone()].iter().position(|e| e == expert).unwrap();
        want_routing.weights[row.start + at]
    };
    let want_weights: Vec<f64> = chosen.iter().enumerate().map(weight_of).collect();
    // f32 against f64: a softmax or sigmoid, one division, one product.
    assert!(rel_rms(&got, &want_weights) <= 1e-6, "{}", rel_rms(&got, &want_weights));
    b.read(&y, &mut got).unwrap();
    // Two products one after the other, each with activations of 16 bits.
    assert!(rel_rms(&got, &want) <= 1e-4, "{}", rel_rms(&got, &want));
}

/// The parts of a bank that hold some experts each add up to the whole bank.
#[test]
fn parts_of_a_bank_add_up() {
    let b = CpuBackend::new(Some(1)).unwrap();
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).unwrap();
    let weights = [(INTER, HIDDEN, 1), (INTER, HIDDEN, 2), (HIDDEN, INTER, 3)].map(|(n_out, n_in, seed)| {
        HostWeight::quantize(spec, &random_f32(N_EXPERTS * n_out * n_in, 0.1, seed), [N_EXPERTS, n_out, n_in])
            .unwrap()
    });
    let bank = |held: std::ops::Range<usize>| {
        let [gate, up, down] = weights.each_ref().map(|w| b.upload(w.mats(held.clone()).unwrap()).unwrap());
        ExpertBank::new(gate, up, down)
    };
    let x = b.tensor(&random_f32(3 * HIDDEN, 1.0, 4), &[3, HIDDEN]).unwrap();
    let chosen = (&b.indices(&[0, 7, 2, 3, 6, 1], &[3, 2]).unwrap(), &b.tensor(&[0.5; 6], &[3, 2]).unwrap());
    for fusion in [Fusion::STOCK, Fusion::FUSED] {
        let run = |bank: ExpertBank<_>| {
            let mut y = Vec::new();
            b.read(&bank.forward(&b, &x, chosen, &fusion).unwrap(), &mut y).unwrap();
            y
        };
        let want: Vec<f64> = run(bank(0..N_EXPERTS)).into_iter().map(f64::from).collect();
        let parts = [0..3, 3..N_EXPERTS].map(|held| run(bank(held.clone()).holding(held)));
        let sum: Vec<f32> = parts[0].iter().zip(&parts[1]).map(|(a, b)| a + b).collect();
        // The same products, added in another order.
        assert!(rel_rms(&sum, &want) <= 1e-6, "{fusion}: {}", rel_rms(&sum, &want));
    }
}

//! The routers.

use zmlx_kernels::metal::{self, Numerics};
use zmlx_kernels::{DType, NoauxTc, Renormalize, SoftmaxTopK};
use zmlx_oracle::ops;

use crate::inputs::{Buffer, activations, half_ulp, round};
use crate::{sim, stock};

const TYPES: [DType; 3] = [DType::BF16, DType::F32, DType::F16];
/// Experts: fewer than a thread's four, those of GLM and Qwen, a rest of a simdgroup, several simdgroups.
const EXPERTS: [usize; 6] = [3, 64, 128, 131, 256, 1024];

fn settings(top_k: usize, renormalize: Renormalize) -> SoftmaxTopK {
    SoftmaxTopK { top_k, renormalize }
}

/// Indices and weights of a row in exact mode: softmax, argpartition, take, sum and divide of stock MLX.
fn stock_softmax_top_k(dtype: DType, row: &[f32], settings: SoftmaxTopK) -> (Vec<u32>, Vec<f32>) {
    let gates = stock::softmax(dtype, row);
    let chosen = stock::argsort(&gates)[row.len() - settings.top_k..].to_vec();
    let scores: Vec<f32> = chosen.iter().map(|&e| gates[e as usize]).collect();
    let sum = stock::row_sum(dtype, &scores);
    match settings.renormalize {
        Renormalize::No => (chosen, scores),
        Renormalize::Yes => (chosen, scores.iter().map(|s| round(dtype, s / sum)).collect()),
    }
}

#[test]
fn exact_softmax_equals_the_stock_ops_also_where_scores_are_equal() {
    if !msl_sim::available() {
        return;
    }
    for dtype in TYPES {
        for n_experts in EXPERTS {
            for (top_k, renormalize) in [(1, Renormalize::Yes), (3, Renormalize::No), (8, Renormalize::Yes)] {
                let settings = settings(top_k.min(n_experts), renormalize);
                // The last row has few different values: many ties.
                let mut logits = activations(dtype, &[3, n_experts], 5).floats();
                logits[2 * n_experts..].iter_mut().for_each(|v| *v = v.round());
                let input = Buffer::of_floats(dtype, &logits, &[3, n_experts]);
                let spec = metal::route_softmax_top_k(dtype, [3, n_experts], &settings, Numerics::Exact);
                let out = sim::run(&spec.unwrap(), &[&input]);
                let (indices, weights) = (out[0].words(), out[1].floats());
                for (t, row) in logits.chunks_exact(n_experts).enumerate() {
                    let (want, want_weights) = stock_softmax_top_k(dtype, row, settings);
                    let of_row = t * settings.top_k..(t + 1) * settings.top_k;
                    assert_eq!(indices[of_row.clone()], want, "{dtype:?}, {n_experts} experts, row {t}");
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(
                        bits(&weights[of_row]),
                        bits(&want_weights),
                        "{dtype:?}, {n_experts}, row {t}"
                    );
                }
            }
        }
    }
}

#[test]
fn accurate_softmax_is_near_the_oracle_and_prefers_the_lower_index() {
    if !msl_sim::available() {
        return;
    }
    for n_experts in EXPERTS {
        let top_k = 8.min(n_experts);
        for renormalize in [Renormalize::Yes, Renormalize::No] {
            let settings = settings(top_k, renormalize);
            // Logits of bf16 tie often; the oracle's rule is that of the trait.
            let input = activations(DType::BF16, &[4, n_experts], 6);
            let spec = metal::route_softmax_top_k(DType::BF16, [4, n_experts], &settings, Numerics::Accurate)
                .unwrap();
            let out = sim::run(&spec, &[&input]);
            let norm_topk_prob = renormalize == Renormalize::Yes;
            let router = ops::SoftmaxTopK { n_experts, top_k, norm_topk_prob };
            let want = ops::softmax_top_k(&input.floats(), router);
            assert_eq!(out[0].words(), want.indices, "{n_experts} experts");
            for (got, want) in out[1].floats().iter().zip(&want.weights) {
                // exp, a sum of up to 1,024 and two divisions in f32.
                assert!(
                    (f64::from(*got) - want).abs() <= 1e-5 * want,
                    "{n_experts} experts: {got} for {want}"
                );
            }
        }
    }
}

#[test]
fn noaux_tc_is_near_the_oracle_and_equals_the_stock_order() {
    if !msl_sim::available() {
        return;
    }
    for dtype in TYPES {
        for n_experts in EXPERTS {
            for (top_k, renormalize) in [(1, Renormalize::Yes), (4, Renormalize::Yes), (8, Renormalize::No)] {
                let settings = NoauxTc {
                    top_k: top_k.min(n_experts),
                    n_group: 1,
                    topk_group: 1,
                    renormalize,
                    eps: 1e-20,
                    routed_scaling_factor: 1.8,
                };
                let logits = activations(dtype, &[3, n_experts], 7);
                // Zero for half of the experts: their scores tie where their logits do.
                let of_bias = if top_k == 4 { dtype } else { DType::F32 };
                let mut bias = activations(of_bias, &[n_experts], 8);
                let halved: Vec<f32> = bias
                    .floats()
                    .iter()
                    .enumerate()
                    .map(|(e, v)| if e % 2 == 0 { 0.0 } else { *v })
                    .collect();
                bias = Buffer::of_floats(of_bias, &halved, &[n_experts]);
                let factors = Buffer::of_floats(DType::F32, &[1.8, 1e-20], &[2]);
                let spec = metal::route_noaux_tc(dtype, [3, n_experts], &settings).unwrap();
                let out = sim::run(&spec, &[&logits, &bias, &factors]);
                let (indices, weights) = (out[0].words(), out[1].floats());
                for (t, row) in logits.floats().chunks_exact(n_experts).enumerate() {
                    // The stock ops in f32, one after the other.
                    let s: Vec<f32> = row.iter().map(|&v| stock::sigmoid(DType::F32, v)).collect();
                    let negated: Vec<f32> = s.iter().zip(&halved).map(|(s, b)| -(s + b)).collect();
                    let chosen = &stock::argsort(&negated)[..settings.top_k];
                    let scores: Vec<f32> = chosen.iter().map(|&e| s[e as usize]).collect();
                    let divided = settings.renormalize == Renormalize::Yes && settings.top_k > 1;
                    let by = if divided { stock::row_sum(DType::F32, &scores) + 1e-20 } else { 1.0 };
                    let of_row = t * settings.top_k..(t + 1) * settings.top_k;
                    assert_eq!(&indices[of_row.clone()], chosen, "{dtype:?}, {n_experts} experts");
                    for (got, s) in weights[of_row].iter().zip(&scores) {
                        assert_eq!(got.to_bits(), (s / by * 1.8).to_bits(), "{dtype:?}, {n_experts} experts");
                    }
                }
                let router = ops::NoauxTc {
                    n_experts,
                    top_k: settings.top_k,
                    n_group: 1,
                    topk_group: 1,
                    norm_topk_prob: renormalize == Renormalize::Yes,
                    eps: 1e-20,
                    routed_scaling_factor: 1.8,
                };
                let want = ops::noaux_tc(&logits.floats(), &halved, router);
                for (t, margin) in want.margins.iter().enumerate() {
                    // f32's sigmoid may order scores otherwise that differ by its last bits only.
                    if *margin > 1e-6 {
                        let of_row = t * settings.top_k..(t + 1) * settings.top_k;
                        let mut sets = [indices[of_row.clone()].to_vec(), want.indices[of_row].to_vec()];
                        sets.iter_mut().for_each(|s| s.sort_unstable());
                        assert_eq!(sets[0], sets[1], "{dtype:?}, {n_experts} experts");
                    }
                }
            }
        }
    }
}

#[test]
fn probabilities_are_rounded_once_in_exact_mode() {
    if !msl_sim::available() {
        return;
    }
    let input = activations(DType::BF16, &[1, 128], 9);
    let all = settings(32, Renormalize::No);
    let spec = metal::route_softmax_top_k(DType::BF16, [1, 128], &all, Numerics::Exact).unwrap();
    let out = sim::run(&spec, &[&input]);
    let truth = ops::softmax(&input.floats());
    for (e, got) in out[0].words().iter().zip(out[1].floats()) {
        let want = truth[*e as usize];
        assert!((f64::from(got) - want).abs() <= 1.01 * half_ulp(DType::BF16) * want, "{got} for {want}");
    }
}

#[test]
fn logits_that_are_no_numbers_choose_different_experts_all_the_same() {
    if !msl_sim::available() {
        return;
    }
    for numerics in [Numerics::Exact, Numerics::Accurate] {
        let input = Buffer::of_floats(DType::F32, &[f32::NAN; 64], &[1, 64]);
        let spec = metal::route_softmax_top_k(DType::F32, [1, 64], &settings(8, Renormalize::Yes), numerics)
            .unwrap();
        let mut indices = sim::run(&spec, &[&input])[0].words();
        indices.sort_unstable();
        indices.dedup();
        assert!(indices.len() == 8 && indices.iter().all(|&e| e < 64), "{indices:?}");
    }
}

#[test]
fn noaux_tc_orders_infinities_and_what_is_no_number() {
    if !msl_sim::available() {
        return;
    }
    // Biases decide: infinity, a large one, minus infinity, no number; the rest are scores of one value.
    let (n_experts, top_k) = (70, 6);
    let mut bias = vec![f32::NEG_INFINITY; n_experts];
    (bias[69], bias[3], bias[40]) = (f32::INFINITY, 4.0, f32::INFINITY);
    bias[5] = f32::NAN;
    let settings = NoauxTc {
        top_k,
        n_group: 1,
        topk_group: 1,
        renormalize: Renormalize::No,
        eps: 1e-20,
        routed_scaling_factor: 1.0,
    };
    let choose = |bias: &[f32]| {
        let inputs = [
            Buffer::of_floats(DType::F32, &vec![0.5; n_experts], &[1, n_experts]),
            Buffer::of_floats(DType::F32, bias, &[n_experts]),
            Buffer::of_floats(DType::F32, &[1.0, 1e-20], &[2]),
        ];
        let spec = metal::route_noaux_tc(DType::F32, [1, n_experts], &settings).unwrap();
        sim::run(&spec, &inputs.iter().collect::<Vec<_>>())[0].words()
    };
    assert_eq!(choose(&bias), [40, 69, 3, 0, 1, 2]);
    // No number stands last, and of several the lower index stands first.
    let mut bias = vec![f32::NAN; n_experts];
    (bias[33], bias[50]) = (f32::NEG_INFINITY, -1.0);
    assert_eq!(choose(&bias), [50, 33, 0, 1, 2, 3]);
}

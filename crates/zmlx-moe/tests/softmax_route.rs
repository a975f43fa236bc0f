//! A softmax router that chooses from logits: the same experts with the same weights, and what it refuses.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Error, Fusion, HostWeight, Renormalize, SoftmaxRoute, SoftmaxTopK};
use zmlx_moe::Router;
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::testing::random_f32;

const HIDDEN: usize = 64;
const N_EXPERTS: usize = 16;
const TOP_K: usize = 4;
const N_TOKENS: usize = 9;

/// Experts and weights of random tokens.
fn route(fusion: &Fusion, renormalize: Renormalize) -> zmlx_kernels::Result<(Vec<u32>, Vec<f32>)> {
    let b = CpuBackend::new(Some(1)).unwrap();
    let gate = HostWeight::from_f32(&random_f32(N_EXPERTS * HIDDEN, 0.2, 1), N_EXPERTS, HIDDEN).unwrap();
    let settings = SoftmaxTopK { top_k: TOP_K, renormalize };
    let router = Router::SoftmaxTopK { gate: b.upload(gate).unwrap(), settings };
    let x = b.tensor(&random_f32(N_TOKENS * HIDDEN, 1.0, 2), &[N_TOKENS, HIDDEN]).unwrap();
    let routing = router.route(&b, &x, fusion)?;
    let (mut experts, mut weights) = (Vec::new(), Vec::new());
    b.read_indices(&routing.experts, &mut experts).unwrap();
    b.read(&routing.weights, &mut weights).unwrap();
    Ok((experts, weights))
}

fn by(softmax_route: SoftmaxRoute) -> Fusion {
    Fusion { softmax_route, ..Fusion::FUSED }
}

#[rstest]
#[case(SoftmaxRoute::Logits, Renormalize::Yes)]
#[case(SoftmaxRoute::Logits, Renormalize::No)]
#[case(SoftmaxRoute::ChosenLogits, Renormalize::Yes)]
fn the_choice_and_the_weights_are_the_same(
    #[case] softmax_route: SoftmaxRoute,
    #[case] renormalize: Renormalize,
) {
    let (want_experts, want) = route(&Fusion::STOCK, renormalize).unwrap();
    let (experts, got) = route(&by(softmax_route), renormalize).unwrap();
    assert_eq!(experts, want_experts);
    // Two ways through f32: an exponential, a sum of 16 terms and a division each.
    assert!(rel_rms(&got, &want) <= 1e-6, "{}", rel_rms(&got, &want));
}

#[test]
fn chosen_logits_need_renormalised_weights() {
    let error = route(&by(SoftmaxRoute::ChosenLogits), Renormalize::No).unwrap_err();
    assert!(matches!(&error, Error::Precondition { what: "softmax_route", .. }), "{error}");
    assert!(error.to_string().contains("norm_topk_prob"), "{error}");
}

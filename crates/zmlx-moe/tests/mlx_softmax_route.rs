//! On MLX with bf16 logits: choosing from logits gives the experts of the probabilities, with the same weights.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::cell::RefCell;

use half::bf16;
use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{
    Backend, DType, Fusion, Hooked, Hooks, HostWeight, Renormalize, Result, SoftmaxRoute, SoftmaxTopK,
    WeightBytes, WeightFormat,
};
use zmlx_moe::Router;
use zmlx_oracle::testing::random_f32;

const HIDDEN: usize = 64;
const N_EXPERTS: usize = 16;
const TOP_K: usize = 4;
const N_TOKENS: usize = 9;

/// The names of the ops that ran.
#[derive(Default)]
struct Seen(RefCell<Vec<&'static str>>);

impl<B: Backend> Hooks<B> for Seen {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        self.0.borrow_mut().push(op);
        run()
    }
}

fn random_bf16(n_rows: usize, seed: u64, std_dev: f64) -> HostWeight {
    let values = random_f32(n_rows * HIDDEN, std_dev, seed);
    let data: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let bytes = WeightBytes { data: data.into(), scales: Default::default(), biases: Default::default() };
    HostWeight::new(WeightFormat::Dense(DType::BF16), [1, n_rows, HIDDEN], bytes).unwrap()
}

/// A token's experts, ascending, each with its weight.
type Chosen = Vec<(u32, f32)>;

/// What the router chose for each token, and the ops that it took.
fn route(fusion: &Fusion, renormalize: Renormalize) -> (Vec<Chosen>, Vec<&'static str>) {
    let b = Hooked::new(MlxBackend::new(Numerics::Exact).unwrap(), Seen::default());
    let settings = SoftmaxTopK { top_k: TOP_K, renormalize };
    let router = Router::SoftmaxTopK { gate: b.upload(random_bf16(N_EXPERTS, 1, 0.2)).unwrap(), settings };
    let table = b.upload(random_bf16(N_TOKENS, 2, 1.0)).unwrap();
    let ids: Vec<u32> = (0..N_TOKENS as u32).collect();
    let x = b.embed(&table, &b.indices(&ids, &[N_TOKENS]).unwrap()).unwrap();
    let routing = router.route(&b, &x, fusion).unwrap();
    let (mut logits, mut experts, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    b.read(&routing.logits, &mut logits).unwrap();
    assert!(logits.iter().all(|l| bf16::from_f32(*l).to_f32() == *l), "the logits are bf16");
    b.read_indices(&routing.experts, &mut experts).unwrap();
    b.read(&routing.weights, &mut weights).unwrap();
    let chosen = experts.chunks(TOP_K).zip(weights.chunks(TOP_K)).map(|(experts, weights)| {
        let mut chosen: Chosen = experts.iter().copied().zip(weights.iter().copied()).collect();
        chosen.sort_by_key(|(expert, _)| *expert);
        chosen
    });
    (chosen.collect(), b.hooks().0.take())
}

#[rstest]
#[case(SoftmaxRoute::Logits, Renormalize::Yes)]
#[case(SoftmaxRoute::Logits, Renormalize::No)]
#[case(SoftmaxRoute::ChosenLogits, Renormalize::Yes)]
fn the_choice_and_the_weights_are_the_same(
    #[case] softmax_route: SoftmaxRoute,
    #[case] renormalize: Renormalize,
) {
    let (want, stock_ops) = route(&Fusion::STOCK, renormalize);
    let (got, ops) = route(&Fusion { softmax_route, ..Fusion::STOCK }, renormalize);
    // The setting has an effect: other ops ran.
    assert!(
        stock_ops.contains(&"stock_route_softmax_top_k") && !stock_ops.contains(&"top_k"),
        "{stock_ops:?}"
    );
    assert!(!ops.contains(&"stock_route_softmax_top_k") && ops.contains(&"top_k"), "{ops:?}");
    for (got, want) in got.iter().zip(&want) {
        for ((expert, weight), (want_expert, want_weight)) in got.iter().zip(want) {
            assert_eq!(expert, want_expert);
            // Probabilities, their sum and the quotient are each rounded to bf16, by at most 2^-8.
            assert!((weight / want_weight - 1.0).abs() <= 3.0 / 256.0, "{weight} {want_weight}");
        }
    }
}

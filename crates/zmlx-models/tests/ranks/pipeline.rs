//! Layers shared out among ranks.

use std::ops::ControlFlow;

use rstest::rstest;
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{Error, Model, Request, generate};
use zmlx_oracle::golden::{Golden, Outcome, check_greedy};

use crate::group::{GLM, MARGIN_BOUND, Parallel, QWEN, checkpoint, fixtures, led, logits, refusal};

/// The tiny models with every number of ranks that fits.
#[rstest]
fn greedy_tokens_are_those_of_the_f32_truth(
    #[values((GLM, 2), (GLM, 3), (GLM, 4), (QWEN, 2), (QWEN, 3))] (name, n_ranks): (&str, usize),
    #[values("stock", "fused")] fusion: &str,
) {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let fusion: Fusion = fusion.parse().unwrap();
    let prompt = golden.prompt("novel").unwrap();
    let checkpoint = checkpoint(&format!("models/{name}"));
    let (_, tokens) = led(&checkpoint, n_ranks, Parallel::Pipeline, fusion, |model| {
        let request = Request::new(prompt.prompt_tokens.clone(), golden.decode.tokens);
        generate(model, None, fusion, request, |_| ControlFlow::Continue(())).unwrap().tokens
    });
    let verdict = check_greedy(&prompt.truth_f32, &tokens, MARGIN_BOUND);
    assert_eq!(verdict.outcome, Outcome::Equal, "{name} {n_ranks}: {verdict:?}");
}

/// Every kind of layer, with heads of their own and embeddings as heads, has the bits of one rank.
#[rstest]
#[case("families/deepseek_v3", 3)]
#[case("families/gemma4", 2)]
#[case("families/gpt_oss", 4)]
#[case("families/lfm2_moe", 3)]
#[case("families/minimax", 3)]
#[case("families/qwen3", 2)]
#[case("families/qwen3_5_moe", 2)]
#[case("families/qwen3_next", 4)]
fn logits_are_those_of_one_rank(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = checkpoint(name);
    let tokens = [3, 250, 17, 4, 4, 99, 1, 42];
    let whole = Model::load(CpuBackend::new(Some(1)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
    let want = logits(&whole, &tokens);
    let (n_bytes, got) =
        led(&checkpoint, n_ranks, Parallel::Pipeline, Fusion::FUSED, |model| logits(model, &tokens));
    assert!(got == want && got.iter().all(|v| v.is_finite()), "{name} {n_ranks}");
    // Only an embedding that is the head too is there twice.
    let is_tied = n_bytes.iter().sum::<u64>() - whole.weight_bytes();
    assert!(
        is_tied == 0 || name.contains("gemma4") || name.contains("qwen3") || name.contains("lfm2"),
        "{is_tied}"
    );
}

/// Each rank holds the tensors of its layers; the first has the embedding, the last the norm and the head.
#[rstest]
#[case(QWEN, 2)]
#[case(QWEN, 3)]
#[case(GLM, 4)]
fn a_rank_loads_its_layers_only(#[case] name: &str, #[case] n_ranks: usize) {
    let checkpoint = checkpoint(&format!("models/{name}"));
    let n_layers = checkpoint.architecture().layers.len();
    let (loaded, ()) = led(&checkpoint, n_ranks, Parallel::Pipeline, Fusion::FUSED, |_| ());
    for (rank, n_bytes) in loaded.into_iter().enumerate() {
        let own = rank * n_layers / n_ranks..(rank + 1) * n_layers / n_ranks;
        let is_held = |name: &str| match name.strip_prefix("model.layers.") {
            Some(rest) => own.contains(&rest.split('.').next().unwrap().parse().unwrap()),
            None if name.starts_with("model.embed_tokens") => rank == 0,
            None => rank + 1 == n_ranks,
        };
        let want = checkpoint.tensors().filter(|t| is_held(t.name)).map(|t| t.n_bytes as u64).sum::<u64>();
        assert_eq!(n_bytes, want, "{name} rank {rank} of {n_ranks}");
    }
}

#[rstest]
#[case("models/austen-qwen3-moe-4bit", 4, "among 4 ranks, as it has 3 layers")]
#[case("families/gemma4_e", 2, "has attention to another layer's keys")]
fn what_cannot_be_shared_out_is_refused(#[case] name: &str, #[case] n_ranks: usize, #[case] want: &str) {
    let error = refusal(&checkpoint(name), n_ranks, Parallel::Pipeline);
    assert!(matches!(error, Error::Stages { .. }), "{error}");
    assert!(error.to_string().contains(want), "{error}");
}

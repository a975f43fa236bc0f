//! A golden regression as it may look in any test: recorded tokens, a decoder, a verdict.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::ops::ControlFlow;
use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{Checkpoint, Model, Request, generate};
use zmlx_oracle::golden::{GoldenFile, Outcome, Rounding};

#[rstest]
#[case("austen-glm4-moe-lite-4bit")]
#[case("austen-qwen3-moe-4bit")]
fn the_model_says_what_was_recorded(#[case] name: &str) {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let golden = GoldenFile::open(fixtures.join(format!("golden/{name}.json")), Rounding::F32).unwrap();
    let checkpoint = Checkpoint::open(&fixtures.join("models").join(name)).unwrap();
    let model = Model::load(CpuBackend::new(Some(2)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
    let checked = golden.check(Rounding::F32, |prompt, n_tokens| {
        let request = Request::new(prompt.to_vec(), n_tokens);
        generate(&model, None, Fusion::FUSED, request, |_| ControlFlow::Continue(())).map(|g| g.tokens)
    });
    let checked = checked.unwrap();
    assert_eq!(checked.len(), 7);
    for prompt in checked {
        assert_eq!(prompt.verdict.outcome, Outcome::Equal, "{prompt:?}");
    }
}

//! Perplexity, compared with the reference implementation's logits and with recordings of mlx-lm.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::ops::ControlFlow;
use std::path::PathBuf;

use rstest::rstest;
use serde_json::Value;
use zmlx_kernels::Fusion;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::{Checkpoint, Error, Model, Perplexity, PerplexityOptions, Predictions, perplexity};
use zmlx_oracle::golden::Golden;
use zmlx_oracle::model::Model as Oracle;

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn model(name: &str) -> Model<CpuBackend> {
    let checkpoint = Checkpoint::open(&fixtures().join("models").join(name)).unwrap();
    Model::load(CpuBackend::new(Some(2)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap()
}

/// The 300 tokens of a recorded prompt.
fn text(name: &str) -> Vec<u32> {
    let golden = Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap();
    golden.prompt("long").unwrap().prompt_tokens.clone()
}

fn measure(model: &Model<CpuBackend>, tokens: &[u32], options: &PerplexityOptions) -> Perplexity {
    let mut go_on = |_, _| ControlFlow::Continue(());
    perplexity(model, tokens, options, &Fusion::FUSED, &mut go_on).unwrap()
}

/// `-ln p` of each token except the first, by the reference implementation.
fn oracle_nlls(oracle: &Oracle, tokens: &[u32]) -> Vec<f64> {
    let logits = oracle.logits(&tokens[..tokens.len() - 1]).unwrap().data;
    let vocab = logits.len() / (tokens.len() - 1);
    let nll = |(row, &target): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(row[target as usize])
    };
    logits.chunks(vocab).zip(&tokens[1..]).map(nll).collect()
}

/// Perplexity and its standard error.
fn estimate(nlls: &[f64]) -> (f64, f64) {
    let n = nlls.len() as f64;
    let mean = nlls.iter().sum::<f64>() / n;
    let variance = nlls.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean.exp(), mean.exp() * (variance / n).sqrt())
}

/// The error of a logarithm due to activations of 16 bits, on average over a text: 2e-4 was measured.
const BOUND: f64 = 2e-3;

#[track_caller]
fn close(got: f64, want: f64, bound: f64, what: &str) {
    assert!((got - want).abs() <= bound * want, "{what}: {got}, expected {want}");
}

#[rstest]
fn windows_are_those_of_the_oracle(#[values(GLM, QWEN)] name: &str, #[values(31, 64)] context: usize) {
    let (model, tokens) = (model(name), text(name));
    let oracle = Oracle::load(fixtures().join("models").join(name)).unwrap();
    let tokens = &tokens[..200];
    let found = measure(&model, tokens, &PerplexityOptions::new(context));
    let (mut every, mut half) = (Vec::new(), Vec::new());
    for window in tokens.chunks_exact(context) {
        let nlls = oracle_nlls(&oracle, window);
        half.extend_from_slice(&nlls[context / 2..]);
        every.extend(nlls);
    }
    assert_eq!((found.n_windows, found.n_computed), (200 / context, 200 / context * (context - 1)));
    let second_half = found.second_half.unwrap();
    for (got, want, what) in [(found.every_token, every, "every token"), (second_half, half, "second half")] {
        assert_eq!(got.n_scored, want.len(), "{what}");
        let (perplexity, error) = estimate(&want);
        close(got.perplexity, perplexity, BOUND, what);
        close(got.standard_error, error, BOUND, what);
        close(got.mean_nll, perplexity.ln(), BOUND, what);
    }
}

#[test]
fn windows_that_overlap_score_every_token_once() {
    let (model, tokens) = (model(QWEN), text(QWEN));
    let oracle = Oracle::load(fixtures().join("models").join(QWEN)).unwrap();
    let tokens = &tokens[..64];
    let (context, stride) = (24, 10);
    let options = PerplexityOptions { stride, ..PerplexityOptions::new(context) };
    let found = measure(&model, tokens, &options);
    let mut nlls = oracle_nlls(&oracle, &tokens[..context]);
    for at in (stride..=tokens.len() - context).step_by(stride) {
        let window = oracle_nlls(&oracle, &tokens[at..at + context]);
        nlls.extend_from_slice(&window[window.len() - stride..]);
    }
    assert_eq!((found.n_windows, found.second_half), (5, None));
    assert_eq!(found.every_token.n_scored, nlls.len());
    close(found.every_token.perplexity, estimate(&nlls).0, BOUND, "perplexity");
    // Tokens that are new in only one window: first `context - 1`, then `stride` for each window.
    assert_eq!(nlls.len(), context - 1 + 4 * stride);
}

#[test]
fn the_first_token_can_be_another() {
    let (model, tokens) = (model(QWEN), text(QWEN));
    let oracle = Oracle::load(fixtures().join("models").join(QWEN)).unwrap();
    let options =
        PerplexityOptions { first_token: Some(5), max_windows: Some(2), ..PerplexityOptions::new(20) };
    let found = measure(&model, &tokens, &options);
    let windows = tokens.chunks_exact(20).take(2).map(|window| {
        let mut window = window.to_vec();
        window[0] = 5;
        oracle_nlls(&oracle, &window)
    });
    let nlls: Vec<f64> = windows.flatten().collect();
    close(found.every_token.perplexity, estimate(&nlls).0, BOUND, "perplexity");
    let plain = PerplexityOptions { first_token: None, ..options };
    assert_ne!(measure(&model, &tokens, &plain).every_token, found.every_token);
}

/// mlx-lm computes in bf16 and rounds logits to its eight bits: 2 % was measured.
#[rstest]
fn numbers_are_those_of_mlx_lm(#[values(GLM, QWEN)] name: &str) {
    let recorded = std::fs::read(fixtures().join("perplexity/recorded.json")).unwrap();
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    let (model, tokens) = (model(name), text(name));
    for (context, want) in recorded["models"][name].as_object().unwrap() {
        let found = measure(&model, &tokens, &PerplexityOptions::new(context.parse().unwrap()));
        assert_eq!(found.n_windows as u64, want["windows"].as_u64().unwrap());
        close(found.every_token.perplexity, want["perplexity"].as_f64().unwrap(), 0.03, context);
        close(found.every_token.standard_error, want["standard_error"].as_f64().unwrap(), 0.1, context);
    }
}

#[test]
fn predictions_of_one_model_do_not_diverge_but_of_two_do() {
    let tokens = &text(QWEN)[..40];
    let predictions = |name, fusion| Predictions::of(&model(name), tokens, &fusion).unwrap();
    let (stock, fused) = (predictions(QWEN, Fusion::STOCK), predictions(QWEN, Fusion::FUSED));
    let same = stock.divergence(&fused).unwrap();
    assert!(same.mean_kl <= 1e-4 && same.same_top >= 0.95, "{same:?}");
    assert_eq!(same.n_tokens, 40);
    let other = stock.divergence(&predictions(GLM, Fusion::FUSED)).unwrap();
    assert!(other.mean_kl >= 1e-2 && other.largest_kl >= other.mean_kl, "{other:?}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let (model, tokens) = (model(QWEN), text(QWEN));
    let refused = |tokens: &[u32], options: PerplexityOptions| {
        let mut go_on = |_, _| ControlFlow::Continue(());
        perplexity(&model, tokens, &options, &Fusion::FUSED, &mut go_on).unwrap_err().to_string()
    };
    let windows = PerplexityOptions::new(64);
    assert!(refused(&tokens[..63], windows).contains("63 tokens, fewer than one window of 64"));
    assert!(refused(&[], windows).contains("0 tokens"));
    assert!(refused(&tokens, PerplexityOptions::new(1)).contains("at least two tokens"));
    for stride in [0, 65] {
        assert!(refused(&tokens, PerplexityOptions { stride, ..windows }).contains("stride"));
    }
    let unknown = PerplexityOptions { first_token: Some(1 << 20), ..windows };
    assert!(refused(&tokens, unknown).contains("1048576"));
    let long = vec![1; 3000];
    assert!(refused(&long, PerplexityOptions::new(3000)).contains("max_position_embeddings"));
    let mut n_calls = 0;
    let mut stop = |_, _| {
        n_calls += 1;
        if n_calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = perplexity(&model, &tokens, &PerplexityOptions::new(20), &Fusion::FUSED, &mut stop);
    assert!(matches!(stopped, Err(Error::Stopped)));
}

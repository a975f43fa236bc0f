//! Both tiny models, compared with the recorded engine. Its `f32` run is the truth that this crate reproduces.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[path = "common/fixtures.rs"]
mod common;

use common::{MODELS, golden, model_dir, taps};
use rstest::rstest;
use zmlx_oracle::compare::{
    argmax, differing_expert_sets, log_softmax, logits_difference, margin, max_abs, rel_rms,
};
use zmlx_oracle::golden::{Outcome, check_greedy};
use zmlx_oracle::model::Model;

/// The relative RMS between two `f32` computations of the same formulas that add in different orders. The largest
/// measured value is 1.8e-6, after the final norm. A wrong formula anywhere gives more than 1e-3.
const SAME_F32: f64 = 1e-5;

/// Two `f32` computations may choose different best tokens if the margin is below this, and their margins and
/// log-probabilities may differ by as much: SAME_F32 of logits up to ±30 (the largest measured value is 2.7e-4, after
/// position 300).
const F32_MARGIN: f64 = 1e-3;

#[rstest]
fn taps_and_decode_logits_agree(#[values(MODELS[0], MODELS[1])] name: &str) {
    let model = Model::load(model_dir(name)).unwrap();
    let taps = taps(name);
    let tokens = taps.ints("tokens").unwrap().data;
    let mut session = model.session();
    let trace = session.step_traced(&tokens).unwrap();
    let mut n_compared = 0;
    for tap in taps.names().filter_map(|name| name.strip_prefix("f32.")) {
        let close = |got: &[f32]| {
            let error = rel_rms(got, &taps.floats(&format!("f32.{tap}")).unwrap().data);
            assert!(error <= SAME_F32, "{tap}: relative RMS {error:e}");
        };
        n_compared += 1;
        if tap == "decode_logits" {
            let decode_tokens = taps.ints("decode_tokens").unwrap().data;
            let rows = decode_tokens.iter().map(|&token| session.step(&[token]).unwrap().data);
            close(&rows.collect::<Vec<_>>().concat());
        } else if tap.ends_with("expert_indices") {
            let want = taps.ints(&format!("f32.{tap}")).unwrap();
            let differing = differing_expert_sets(trace.indices(tap).unwrap(), &want.data, want.shape[1]);
            assert!(differing.is_empty(), "{tap}: tokens {differing:?}");
        } else if let Some(layer) = tap.strip_suffix(".expert_weights") {
            // The engine's order of experts differs from ours, so both are sorted by expert.
            let sorted = |indices: &[u32], weights: &[f32], top_k: usize| {
                let mut slots: Vec<_> =
                    indices.iter().zip(weights).enumerate().map(|(i, (&e, &w))| (i / top_k, e, w)).collect();
                slots.sort_by_key(|&(token, expert, _)| (token, expert));
                slots.into_iter().map(|(_, _, w)| w).collect::<Vec<_>>()
            };
            let indices = format!("{layer}.expert_indices");
            let want_indices = taps.ints(&format!("f32.{indices}")).unwrap();
            let want = taps.floats(&format!("f32.{tap}")).unwrap();
            let (top_k, got) = (want.shape[1], trace.get(tap).unwrap());
            let got = sorted(trace.indices(&indices).unwrap(), &got.data, top_k);
            let error = rel_rms(&got, &sorted(&want_indices.data, &want.data, top_k));
            assert!(error <= SAME_F32, "{tap}: relative RMS {error:e}");
        } else {
            close(&trace.get(tap).unwrap().data);
        }
    }
    assert_eq!(n_compared, trace.names().count() + 1, "every recorded tap, and decode_logits, compared");
}

#[rstest]
fn greedy_tokens_agree_with_the_truth(#[values(MODELS[0], MODELS[1])] name: &str) {
    let model = Model::load(model_dir(name)).unwrap();
    let golden = golden(name);
    for prompt in &golden.prompts {
        let got = model.session().greedy(&prompt.prompt_tokens, golden.decode.tokens).unwrap();
        let verdict = check_greedy(&prompt.truth_f32, &got, F32_MARGIN);
        assert!(verdict.outcome != Outcome::Mismatch, "{}: {verdict:?}", prompt.name);
        if ["novel", "mid_sentence"].contains(&prompt.name.as_str()) {
            assert_eq!(verdict.outcome, Outcome::Equal, "{}: {verdict:?}", prompt.name);
        }
    }
}

#[rstest]
fn forced_passes_agree_with_the_truth(#[values(MODELS[0], MODELS[1])] name: &str) {
    let model = Model::load(model_dir(name)).unwrap();
    for prompt in &golden(name).prompts {
        let (want, fed) = (&prompt.truth_f32_forced, &prompt.bf16.tokens);
        let tokens: Vec<u32> = prompt.prompt_tokens.iter().chain(&fed[..fed.len() - 1]).copied().collect();
        let logits = model.logits(&tokens).unwrap();
        let (mut margins, mut log_probs) = (Vec::new(), Vec::new());
        for (step, &token) in fed.iter().enumerate() {
            let row = logits.row(prompt.prompt_tokens.len() - 1 + step);
            let equal = argmax(row) == Some(want.argmax[step] as usize);
            assert!(equal || want.top1_top2_margin[step] < F32_MARGIN, "{} step {step}", prompt.name);
            margins.push(margin(row));
            log_probs.push(log_softmax(row)[token as usize]);
        }
        for (what, got, want) in
            [("margins", margins, &want.top1_top2_margin), ("log-probabilities", log_probs, &want.logprobs)]
        {
            let error = max_abs(&got, want);
            assert!(error <= F32_MARGIN, "{}: {what} off by {error:e}", prompt.name);
        }
    }
}

#[rstest]
fn sessions_equal_full_passes(#[values(MODELS[0], MODELS[1])] name: &str) {
    let model = Model::load(model_dir(name)).unwrap();
    let golden = golden(name);
    let tokens = &golden.prompt("novel").unwrap().prompt_tokens[..40];
    let full = model.logits(tokens).unwrap();
    for pieces in [vec![1; 40], vec![17, 1, 1, 20, 1], vec![39, 1]] {
        let mut session = model.session();
        for n in pieces {
            let from = session.n_seen();
            let logits = session.step(&tokens[from..from + n]).unwrap();
            for row in 0..n {
                // Only the order of additions within a matrix product may differ with its shape.
                let difference = logits_difference(logits.row(row), full.row(from + row));
                assert!(difference.max <= 1e-3 && difference.kl <= 1e-6, "{} {difference:?}", from + row);
                assert!(difference.argmax_equal, "position {}", from + row);
            }
        }
        assert_eq!(session.n_seen(), tokens.len());
    }
}

/// The recorded bfloat16 engine is near enough to the truth to tell right from wrong, but not nearer than bfloat16
/// allows.
#[rstest]
fn the_bf16_recording_is_within_its_declared_distance(#[values(MODELS[0], MODELS[1])] name: &str) {
    let model = Model::load(model_dir(name)).unwrap();
    let taps = taps(name);
    let trace = model.forward(&taps.ints("tokens").unwrap().data).unwrap();
    for (tap, bound) in [("embed", 0.01), ("layers.0.attn", 0.05), ("logits", 0.15)] {
        let want = taps.floats(&format!("bf16.{tap}")).unwrap().data;
        let error = rel_rms(&trace.get(tap).unwrap().data, &want);
        // The README of the recordings gives 0.005 after the embedding, 0.01 to 0.03 after the first layers, and 0.02
        // to 0.1 in the logits.
        assert!(error > 1e-4 && error <= bound, "{tap}: relative RMS {error:e}");
    }
}

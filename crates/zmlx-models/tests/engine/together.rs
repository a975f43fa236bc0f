//! Sixteen requests that join and leave at random.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rstest::rstest;
use zmlx_models::{Engine, EngineOptions, Request, RequestId, SamplingParams};
use zmlx_oracle::golden::{Outcome, check_greedy};

use crate::support::{Alone, GLM, MARGIN_BOUND, QWEN, Seen, alone, caching, golden, load, plain};

/// Number of tokens of a recorded text that are compared.
const N_TOKENS: usize = 48;

struct Case {
    prompt: Vec<u32>,
    n_tokens: usize,
    /// Its result when it runs alone.
    want: Alone,
}

/// The recorded prompts, and as many others that begin as one of them and its continuation.
fn cases(name: &str) -> Vec<Case> {
    let model = load(name);
    let mut rng = ChaCha8Rng::seed_from_u64(22);
    let golden = golden(name);
    let mut cases = Vec::new();
    for p in &golden.prompts {
        let want = alone(&model, Request::new(p.prompt_tokens.clone(), N_TOKENS));
        let mut truth = p.truth_f32.clone();
        truth.tokens.truncate(N_TOKENS);
        let verdict = check_greedy(&truth, &want.tokens, f64::from(MARGIN_BOUND));
        assert_ne!(verdict.outcome, Outcome::Mismatch, "{name} {}: {verdict:?}", p.name);
        cases.push(Case { prompt: p.prompt_tokens.clone(), n_tokens: N_TOKENS, want });
    }
    for _ in 0..9 {
        let n_cases = golden.prompts.len();
        let of = &cases[rng.random_range(0..n_cases)];
        let whole: Vec<u32> = of.prompt.iter().chain(&of.want.tokens).copied().collect();
        let mut prompt = whole[..rng.random_range(1..whole.len())].to_vec();
        prompt.extend((0..rng.random_range(0..20)).map(|_| rng.random_range(0..3072u32)));
        let n_tokens = rng.random_range(1..40);
        let want = alone(&model, Request::new(prompt.clone(), n_tokens));
        cases.push(Case { prompt, n_tokens, want });
    }
    assert_eq!(cases.len(), 16);
    cases
}

#[rstest]
fn tokens_are_those_of_each_alone(#[values(GLM, QWEN)] name: &str) {
    let cases = cases(name);
    let model = load(name);
    let small = EngineOptions { max_sequences: 5, prefill_chunk: Some(48), ..caching() };
    for (seed, options) in [plain(), caching(), small].into_iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        let mut engine = Engine::new(&model, None, options.clone()).unwrap();
        let mut seen = Seen::default();
        let mut left: Vec<&Case> = cases.iter().collect();
        let mut ids: Vec<(RequestId, &Case)> = Vec::new();
        let mut cancelled = Vec::new();
        while !left.is_empty() || !engine.is_idle() {
            for _ in 0..rng.random_range(0..3).min(left.len()) {
                let case = left.swap_remove(rng.random_range(0..left.len()));
                ids.push((engine.submit(Request::new(case.prompt.clone(), case.n_tokens)).unwrap(), case));
            }
            if cancelled.len() < 4
                && rng.random_range(0..12) == 0
                && let Some(&(id, _)) = ids.choose(&mut rng)
                && let Some(finished) = engine.cancel(id)
            {
                assert_eq!(finished.n_generated_tokens, seen.ids(id).len());
                cancelled.push(id);
                // It cannot be cancelled twice.
                assert!(engine.cancel(id).is_none());
            }
            seen.step(&mut engine);
        }
        assert!(seen.failed.is_empty(), "{:?}", seen.failed);
        assert_eq!(seen.finished.len() + cancelled.len(), 16);
        for (id, case) in ids {
            let got = seen.ids(id);
            case.want.assert_beginning(&got);
            if let Some(finished) = seen.finished.get(&id) {
                assert_eq!(got.len(), case.n_tokens);
                assert_eq!(
                    (finished.n_prompt_tokens, finished.n_generated_tokens),
                    (case.prompt.len(), case.n_tokens)
                );
                assert!(finished.n_cached_tokens < case.prompt.len());
            }
        }
        let stats = engine.stats();
        assert_eq!((stats.n_running, stats.n_waiting, stats.n_preemptions), (0, 0, 0));
        assert_eq!(stats.n_prefix_hits > 0, !options.prefix_cache.is_off(), "{stats:?}");
        engine.clear_idle();
        assert_eq!(engine.stats().kv_bytes, 0);
    }
}

#[test]
fn a_seed_gives_the_same_text_alone_and_among_others() {
    let model = load(QWEN);
    let golden = golden(QWEN);
    let request = |i: usize| {
        let sampling = SamplingParams {
            temperature: 0.8,
            top_p: Some(0.95),
            repetition_penalty: Some(1.1),
            frequency_penalty: 0.2,
            seed: i as u64,
            ..SamplingParams::greedy()
        };
        Request { sampling, ..Request::new(golden.prompts[i].prompt_tokens.clone(), 30) }
    };
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let ids: Vec<_> = (0..7).map(|i| engine.submit(request(i)).unwrap()).collect();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    for (i, id) in ids.into_iter().enumerate() {
        assert_eq!(seen.ids(id), alone(&model, request(i)).tokens, "{i}");
    }
}

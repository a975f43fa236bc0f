//! Both tiny models on MLX: chunks, batches, replays, stops, and the step that is started ahead.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::ops::ControlFlow;
use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{
    CachePool, Checkpoint, GenerateOptions, Generation, Input, Logits, Model, PoolOptions, SamplingParams,
    Slot, StopReason, generate,
};
use zmlx_oracle::compare::rel_rms;

/// Sums in f32 in another order: several rows take other routines of MLX than one, and GLM's prompts expand what its
/// single tokens absorb. 3e-6 at the most was measured.
const BOUND: f64 = 5e-5;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn load(name: &str, numerics: Numerics) -> Model<MlxBackend> {
    let backend = MlxBackend::new(numerics).unwrap();
    Model::load(backend, &Checkpoint::open(&folder(name)).unwrap(), &mut |_, _| ()).unwrap()
}

/// Tokens that look like text: an arithmetic walk would send every token to the same experts.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 3072).collect()
}

fn logits(model: &Model<MlxBackend>, pool: &mut CachePool<MlxBackend>, inputs: &[Input<'_>]) -> Vec<f32> {
    let y = model.forward(pool, inputs, &Fusion::STOCK).unwrap();
    let mut out = Vec::new();
    model.backend().read(&y, &mut out).unwrap();
    out
}

/// Tokens whose logits are all wanted.
fn all(slot: Slot, tokens: &[u32]) -> Input<'_> {
    Input { slot, tokens, logits: Logits::All }
}

fn in_chunks(model: &Model<MlxBackend>, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    tokens.chunks(chunk).flat_map(|tokens| logits(model, &mut pool, &[all(slot, tokens)])).collect()
}

/// The longer text passes the step by which caches grow, both the number of choices from which experts are sorted.
#[rstest]
fn chunks_of_any_size(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let model = load(name, Numerics::Accurate);
    for (n, chunks) in [(40, &[1, 7, 32][..]), (260, &[64])] {
        let tokens = tokens(n, 1);
        let whole = in_chunks(&model, &tokens, n);
        for chunk in chunks {
            let error = rel_rms(&in_chunks(&model, &tokens, *chunk), &whole);
            assert!(error <= BOUND, "{name}: {n} in chunks of {chunk}: {error}");
        }
    }
}

#[rstest]
fn a_batch_equals_each_alone(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let model = load(name, Numerics::Accurate);
    let vocab = model.architecture().vocab_size;
    let texts = [tokens(5, 3), tokens(19, 4), tokens(1, 5)];
    let next = [tokens(6, 6), tokens(6, 7), tokens(6, 8)];
    let alone: Vec<Vec<f32>> =
        (0..3).map(|i| in_chunks(&model, &[&texts[i][..], &next[i]].concat(), 1)).collect();

    // Prompts together, in another order than their slots; then six steps in lockstep.
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slots = [(); 3].map(|()| pool.allocate().unwrap());
    let order = [2, 0, 1];
    let inputs = order.map(|i| all(slots[i], &texts[i]));
    let y = logits(&model, &mut pool, &inputs);
    let mut at = 0;
    for slot in order {
        let n = texts[slot].len() * vocab;
        let error = rel_rms(&y[at..at + n], &alone[slot][..n]);
        assert!(error <= BOUND, "{name} prompt {slot}: {error}");
        at += n;
    }
    for step in 0..6 {
        let inputs = order.map(|i| all(slots[i], &next[i][step..=step]));
        let y = logits(&model, &mut pool, &inputs);
        for (y, slot) in y.chunks_exact(vocab).zip(order) {
            let want = &alone[slot][(texts[slot].len() + step) * vocab..][..vocab];
            let error = rel_rms(y, want);
            assert!(error <= BOUND, "{name} sequence {slot} step {step}: {error}");
        }
    }
}

#[rstest]
fn truncate_and_replay(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, tokens) = (load(name, Numerics::Exact), tokens(24, 9));
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    logits(&model, &mut pool, &[all(slot, &tokens[..16])]);
    let first = logits(&model, &mut pool, &[all(slot, &tokens[16..])]);
    pool.truncate(slot, 16).unwrap();
    logits(&model, &mut pool, &[all(slot, &tokens[..4])]); // another continuation
    pool.truncate(slot, 16).unwrap();
    let again = logits(&model, &mut pool, &[all(slot, &tokens[16..])]);
    assert!(first == again, "{name}: the same steps on the same cache");
}

fn continued(
    model: &Model<MlxBackend>,
    (pool, slot): (&mut CachePool<MlxBackend>, Slot),
    prompt: &[u32],
    options: &GenerateOptions,
    n: usize,
) -> Generation {
    let mut n_seen = 0;
    let on_step = |_: &zmlx_models::Step<'_>| {
        n_seen += 1;
        if n_seen == n { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    generate(model, (pool, slot), None, prompt, options, &mut |_, _| (), on_step).unwrap()
}

fn options(max_tokens: usize, sampling: SamplingParams) -> GenerateOptions {
    GenerateOptions {
        max_tokens,
        sampling,
        eos_token_ids: Vec::new(),
        stop: Vec::new(),
        fusion: Fusion::STOCK,
    }
}

/// Greedy without a step ahead: a penalty of 1 changes nothing, but asks for the logits first.
fn eager() -> SamplingParams {
    SamplingParams { repetition_penalty: Some(1.0), ..SamplingParams::greedy() }
}

/// However it ends, the caches hold the prompt and all tokens but the last, and going on gives the same text.
#[rstest]
fn a_step_ahead_is_taken_back(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, prompt) = (load(name, Numerics::Exact), tokens(9, 12));
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let greedy = options(24, SamplingParams::greedy());
    let whole = continued(&model, (&mut pool, slot), &prompt, &greedy, 99);
    assert_eq!((whole.stop_reason, whole.tokens.len()), (StopReason::MaxTokens, 24));
    assert_eq!(pool.n_tokens(slot), 9 + 23);

    pool.truncate(slot, 0).unwrap();
    let one_by_one = continued(&model, (&mut pool, slot), &prompt, &options(24, eager()), 99);
    assert_eq!(one_by_one.tokens, whole.tokens, "{name}");

    // Ended by the caller, by an end token, by its length; each time continued.
    pool.truncate(slot, 0).unwrap();
    let first = continued(&model, (&mut pool, slot), &prompt, &greedy, 5);
    assert_eq!(first.stop_reason, StopReason::Interrupted);
    assert_eq!(pool.n_tokens(slot), 9 + 4);
    let end = whole.tokens[11];
    let n_until = whole.tokens[5..].iter().position(|t| *t == end).unwrap() + 1;
    let with_end = GenerateOptions { eos_token_ids: vec![end], ..greedy.clone() };
    let second = continued(&model, (&mut pool, slot), &first.tokens[4..], &with_end, 99);
    assert_eq!((second.stop_reason, second.tokens.len()), (StopReason::Eos, n_until));
    assert_eq!(pool.n_tokens(slot), 9 + 5 + n_until - 1);
    let last = second.tokens.last().copied().unwrap();
    let rest = GenerateOptions { max_tokens: 24 - 5 - n_until, ..greedy };
    let third = continued(&model, (&mut pool, slot), &[last], &rest, 99);
    assert_eq!([first.tokens, second.tokens, third.tokens].concat(), whole.tokens, "{name}");
}

/// A context that is full ends a text where an eager engine ends it.
#[rstest]
fn the_context_ends(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    const LIMIT: usize = 12;
    let dir = folder(name);
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let short =
        config.replace("\"max_position_embeddings\": 2048", &format!("\"max_position_embeddings\": {LIMIT}"));
    assert_ne!(short, config);
    let file = "model.safetensors";
    let shard = (file.to_owned(), zmlx_kernels::map_file(&dir.join(file)).unwrap());
    let checkpoint = Checkpoint::from_parts(name, &short, None, vec![shard]).unwrap();
    let backend = MlxBackend::new(Numerics::Exact).unwrap();
    let model = Model::load(backend, &checkpoint, &mut |_, _| ()).unwrap();
    let prompt = tokens(LIMIT - 2, 13);
    for (sampling, what) in [(SamplingParams::greedy(), "ahead"), (eager(), "eager")] {
        let mut pool = model.pool(PoolOptions::default()).unwrap();
        let slot = pool.allocate().unwrap();
        let got = continued(&model, (&mut pool, slot), &prompt, &options(9, sampling), 99);
        assert_eq!(got.stop_reason, StopReason::ContextLength, "{name} {what}");
        assert_eq!((got.tokens.len(), pool.n_tokens(slot)), (3, LIMIT), "{name} {what}");
    }
}

/// A model may move to another thread and run there.
#[test]
fn a_model_moves_between_threads() {
    let model = load("austen-qwen3-moe-4bit", Numerics::Exact);
    let here = in_chunks(&model, &tokens(12, 14), 12);
    let there = std::thread::spawn(move || in_chunks(&model, &tokens(12, 14), 12)).join().unwrap();
    assert!(here == there);
}

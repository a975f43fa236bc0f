//! Both tiny models on MLX: chunks, batches and replays.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{CachePool, Checkpoint, Input, Logits, Model, PoolOptions, Slot};
use zmlx_oracle::compare::rel_rms;

/// f32 sums in another order: MLX uses different routines for one row and for several, and GLM's prompts expand what
/// its single tokens absorb. The largest measured difference is 3e-6.
const BOUND: f64 = 5e-5;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn load(name: &str, numerics: Numerics) -> Model<MlxBackend> {
    let backend = MlxBackend::new(numerics).unwrap();
    Model::load(backend, &Checkpoint::open(&folder(name)).unwrap(), &mut |_, _| ()).unwrap()
}

/// Tokens that look like text. An arithmetic sequence would send every token to the same experts.
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

/// The longer text exceeds two limits: the step by which caches grow, and the number of choices from which experts are
/// sorted.
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

    // Prompts together, in another order than their slots. Then six steps in lockstep.
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

/// A model may move to another thread and run there.
#[test]
fn a_model_moves_between_threads() {
    let model = load("austen-qwen3-moe-4bit", Numerics::Exact);
    let here = in_chunks(&model, &tokens(12, 14), 12);
    let there = std::thread::spawn(move || in_chunks(&model, &tokens(12, 14), 12)).join().unwrap();
    assert!(here == there);
}

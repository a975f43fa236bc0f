//! One pass, chunks, single tokens, batches and replays: the same sequence gives the same logits.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{
    CachePool, Checkpoint, Error, Input, Logits, Model, PREFILL_CHUNK, PoolOptions, Slot, TapValue,
};
use zmlx_oracle::compare::rel_rms;

/// Few rows are multiplied as 16-bit integers, many as floats. This may not change the choice of a router in these
/// texts. The largest measured difference is 1.2e-4.
const BOUND: f64 = 5e-4;

fn load(name: &str) -> Model<CpuBackend> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    let backend = CpuBackend::new(Some(2)).unwrap();
    Model::load(backend, &Checkpoint::open(&dir).unwrap(), &mut |_, _| ()).unwrap()
}

/// Tokens that look like text. An arithmetic sequence would send every token to the same experts.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 3072).collect()
}

fn logits(model: &Model<CpuBackend>, pool: &mut CachePool<CpuBackend>, inputs: &[Input<'_>]) -> Vec<f32> {
    logits_with(model, pool, inputs, &Fusion::FUSED)
}

fn logits_with(
    model: &Model<CpuBackend>,
    pool: &mut CachePool<CpuBackend>,
    inputs: &[Input<'_>],
    fusion: &Fusion,
) -> Vec<f32> {
    let y = model.forward(pool, inputs, fusion).unwrap();
    let mut out = Vec::new();
    model.backend().read(&y, &mut out).unwrap();
    out
}

/// Tokens whose logits are all wanted.
fn all(slot: Slot, tokens: &[u32]) -> Input<'_> {
    Input { slot, tokens, logits: Logits::All }
}

fn in_chunks(model: &Model<CpuBackend>, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    tokens.chunks(chunk).flat_map(|tokens| logits(model, &mut pool, &[all(slot, tokens)])).collect()
}

/// If the rounding differed, a router would sooner or later choose another expert.
#[rstest]
fn fused_ops_have_the_bits_of_their_compositions(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let (model, tokens) = (load(name), tokens(80, 12));
    let [stock, concat, fused] = [Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED].map(|fusion| {
        let mut pool = model.pool(PoolOptions::default()).unwrap();
        let slot = pool.allocate().unwrap();
        let chunks = [&tokens[..64], &tokens[64..67]].into_iter().chain(tokens[67..].chunks(1));
        chunks
            .flat_map(|tokens| logits_with(&model, &mut pool, &[all(slot, tokens)], &fusion))
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    });
    assert!(stock == concat, "{name}: gate and up as one product");
    assert!(stock == fused, "{name}: fused");
}

#[rstest]
fn chunks_of_any_size(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, tokens) = (load(name), tokens(90, 1));
    let whole = in_chunks(&model, &tokens, tokens.len());
    for chunk in [1, 2, 7, 64] {
        let error = rel_rms(&in_chunks(&model, &tokens, chunk), &whole);
        assert!(error <= BOUND, "{name} in chunks of {chunk}: {error}");
    }
}

#[rstest]
fn prefill_beyond_one_chunk(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, tokens) = (load(name), tokens(PREFILL_CHUNK + 188, 2));
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let mut seen = Vec::new();
    let mut on_chunk = |done, of| seen.push((done, of));
    let y = model.prefill(&mut pool, slot, &tokens, &Fusion::FUSED, &mut on_chunk).unwrap();
    assert_eq!(seen, [(PREFILL_CHUNK, tokens.len()), (tokens.len(), tokens.len())]);
    let (mut got, vocab) = (Vec::new(), model.architecture().vocab_size);
    model.backend().read(&y, &mut got).unwrap();
    let whole = in_chunks(&model, &tokens, tokens.len());
    let error = rel_rms(&got, &whole[whole.len() - vocab..]);
    assert!(error <= BOUND, "{name}: {error}");
}

#[rstest]
fn a_batch_equals_each_alone(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let model = load(name);
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

/// With only these the last layer computes no other rows.
#[rstest]
fn last_logits_are_those_of_the_last_tokens(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let model = load(name);
    let vocab = model.architecture().vocab_size;
    let texts = [tokens(5, 3), tokens(40, 4), tokens(1, 5)];
    let [mut of_all, mut of_last] = [(); 2].map(|()| model.pool(PoolOptions::default()).unwrap());
    let slots = [&mut of_all, &mut of_last].map(|pool| [(); 3].map(|()| pool.allocate().unwrap()));
    let inputs =
        |pool: usize, logits| [0, 1, 2].map(|i| Input { slot: slots[pool][i], tokens: &texts[i], logits });
    let next = |pool: usize| [0, 1, 2].map(|i| all(slots[pool][i], &texts[0][i..=i]));
    let whole = logits(&model, &mut of_all, &inputs(0, Logits::All));
    let mut n_rows = Vec::new();
    let mut tap = |tapped: &str, value: TapValue<'_, CpuBackend>| {
        if let (true, TapValue::Tensor(x)) = (tapped.ends_with(".out"), value) {
            n_rows.push(model.backend().shape(x)[0]);
        }
        None
    };
    let last = inputs(1, Logits::Last);
    let y = model.forward_tapped(&mut of_last, &last, &Fusion::FUSED, Some(&mut tap)).unwrap();
    assert_eq!((n_rows.pop(), n_rows.iter().all(|n| *n == 46)), (Some(3), true), "{name}");
    assert_eq!(model.backend().shape(&y), [3, vocab]);
    let mut last = Vec::new();
    model.backend().read(&y, &mut last).unwrap();
    let mut end = 0;
    for (text, last) in texts.iter().zip(last.chunks_exact(vocab)) {
        end += text.len() * vocab;
        let error = rel_rms(last, &whole[end - vocab..end]);
        assert!(error <= BOUND, "{name}, {} tokens: {error}", text.len());
    }
    // All tokens were cached nevertheless.
    let error = rel_rms(&logits(&model, &mut of_last, &next(1)), &logits(&model, &mut of_all, &next(0)));
    assert!(error <= BOUND, "{name}, the next tokens: {error}");
}

#[rstest]
fn truncate_and_replay(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, tokens) = (load(name), tokens(24, 9));
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

#[rstest]
fn refused_inputs_leave_the_pool(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, text) = (load(name), tokens(12, 10));
    let [mut pool, mut fresh] = [(); 2].map(|()| model.pool(PoolOptions::default()).unwrap());
    let [slot, of_fresh] = [&mut pool, &mut fresh].map(|pool| pool.allocate().unwrap());
    let (other, freed) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    pool.free(freed).unwrap();
    assert!(pool.free(freed).is_err());
    logits(&model, &mut pool, &[all(slot, &text[..6])]);
    logits(&model, &mut fresh, &[all(of_fresh, &text[..6])]);
    let long = tokens(model.architecture().max_position_embeddings, 11);
    type IsExpected = fn(&Error) -> bool;
    let refused: [(Input<'_>, IsExpected); 6] = [
        (all(slot, &[]), |e| matches!(e, Error::EmptyPrompt)),
        (all(slot, &[7, 3072]), |e| matches!(e, Error::TokenOutOfRange { token: 3072, vocab: 3072 })),
        (all(freed, &text), |e| matches!(e, Error::Slot)),
        (all(of_fresh, &text), |e| matches!(e, Error::Slot)),
        (all(other, &text), |e| matches!(e, Error::Slot)), // given twice
        (all(slot, &long), |e| matches!(e, Error::ContextLength { .. })),
    ];
    let mut check = |inputs: &[Input<'_>], is_expected: IsExpected, bad: Option<Slot>| {
        let bytes = pool.bytes();
        let error = model.forward(&mut pool, inputs, &Fusion::FUSED).unwrap_err();
        assert!(is_expected(error.root()), "{error}");
        let named = if let Error::Input { slot, .. } = &error { Some(*slot) } else { None };
        assert_eq!(named, bad, "{error}");
        assert_eq!((pool.n_tokens(slot), pool.n_tokens(other), pool.bytes()), (6, 0, bytes));
    };
    check(&[], |e| matches!(e, Error::EmptyPrompt), None);
    for (input, is_expected) in refused {
        // The other input is valid. The error says which one is not.
        check(&[all(other, &text), input], is_expected, Some(input.slot));
    }
    let strange = load(name);
    let error = strange.forward(&mut pool, &[all(slot, &text[6..])], &Fusion::FUSED).unwrap_err();
    assert!(matches!(error, Error::ForeignPool), "{error}");
    let got = logits(&model, &mut pool, &[all(slot, &text[6..])]);
    assert!(got == logits(&model, &mut fresh, &[all(of_fresh, &text[6..])]));
}

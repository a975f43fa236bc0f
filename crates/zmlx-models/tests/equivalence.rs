//! One pass, chunks, single tokens, batches and replays: the same sequence gives the same logits.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Error, Input, LogitsOf, Model, PREFILL_CHUNK, State, TapValue};
use zmlx_oracle::compare::rel_rms;

/// Few rows are multiplied as 16-bit integers, many as floats. Routers may not flip on that in these texts; 1.2e-4 at the
/// most was measured.
const BOUND: f64 = 5e-4;

fn load(name: &str) -> Model<CpuBackend> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    let backend = CpuBackend::new(Some(2)).unwrap();
    Model::load(backend, &Checkpoint::open(&dir).unwrap(), &mut |_, _| ()).unwrap()
}

/// Tokens that look like text: an arithmetic walk would send every token to the same experts.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 3072).collect()
}

fn logits(model: &Model<CpuBackend>, state: &mut State<CpuBackend>, inputs: &[Input<'_>]) -> Vec<f32> {
    logits_with(model, state, inputs, &Fusion::FUSED)
}

fn logits_with(
    model: &Model<CpuBackend>,
    state: &mut State<CpuBackend>,
    inputs: &[Input<'_>],
    fusion: &Fusion,
) -> Vec<f32> {
    let y = model.forward(state, inputs, LogitsOf::All, fusion).unwrap();
    let mut out = Vec::new();
    model.backend().read(&y, &mut out).unwrap();
    out
}

fn in_chunks(model: &Model<CpuBackend>, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut state = model.state(1).unwrap();
    tokens.chunks(chunk).flat_map(|tokens| logits(model, &mut state, &[Input { slot: 0, tokens }])).collect()
}

/// Where a rounding differs, routers sooner or later choose another expert.
#[rstest]
fn fused_ops_have_the_bits_of_their_compositions(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let (model, tokens) = (load(name), tokens(80, 12));
    let [stock, concat, fused] = [Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED].map(|fusion| {
        let mut state = model.state(1).unwrap();
        let chunks = [&tokens[..64], &tokens[64..67]].into_iter().chain(tokens[67..].chunks(1));
        chunks
            .flat_map(|tokens| logits_with(&model, &mut state, &[Input { slot: 0, tokens }], &fusion))
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
    let mut state = model.state(1).unwrap();
    let mut seen = Vec::new();
    let input = Input { slot: 0, tokens: &tokens };
    let y = model.prefill(&mut state, input, &Fusion::FUSED, &mut |done, of| seen.push((done, of))).unwrap();
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

    // Prompts together, in another order than their slots; then six steps in lockstep.
    let mut state = model.state(3).unwrap();
    let order = [2, 0, 1];
    let inputs = order.map(|slot| Input { slot, tokens: &texts[slot] });
    let y = logits(&model, &mut state, &inputs);
    let mut at = 0;
    for slot in order {
        let n = texts[slot].len() * vocab;
        let error = rel_rms(&y[at..at + n], &alone[slot][..n]);
        assert!(error <= BOUND, "{name} prompt {slot}: {error}");
        at += n;
    }
    for step in 0..6 {
        let inputs = order.map(|slot| Input { slot, tokens: &next[slot][step..=step] });
        let y = logits(&model, &mut state, &inputs);
        for (y, slot) in y.chunks_exact(vocab).zip(order) {
            let want = &alone[slot][(texts[slot].len() + step) * vocab..][..vocab];
            let error = rel_rms(y, want);
            assert!(error <= BOUND, "{name} sequence {slot} step {step}: {error}");
        }
    }
}

/// For them the last layer computes no other rows.
#[rstest]
fn last_logits_are_those_of_the_last_tokens(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let model = load(name);
    let vocab = model.architecture().vocab_size;
    let texts = [tokens(5, 3), tokens(40, 4), tokens(1, 5)];
    let inputs: Vec<_> = (0..3).map(|slot| Input { slot, tokens: &texts[slot] }).collect();
    let next = [0, 1, 2].map(|slot| Input { slot, tokens: &texts[0][slot..=slot] });
    let (mut of_all, mut of_last) = (model.state(3).unwrap(), model.state(3).unwrap());
    let all = logits(&model, &mut of_all, &inputs);
    let mut n_rows = Vec::new();
    let mut tap = |tapped: &str, value: TapValue<'_, CpuBackend>| {
        if let (true, TapValue::Tensor(x)) = (tapped.ends_with(".out"), value) {
            n_rows.push(model.backend().shape(x)[0]);
        }
        None
    };
    let y =
        model.forward_tapped(&mut of_last, &inputs, LogitsOf::Last, &Fusion::FUSED, Some(&mut tap)).unwrap();
    assert_eq!((n_rows.pop(), n_rows.iter().all(|n| *n == 46)), (Some(3), true), "{name}");
    assert_eq!(model.backend().shape(&y), [3, vocab]);
    let mut last = Vec::new();
    model.backend().read(&y, &mut last).unwrap();
    let mut end = 0;
    for (text, last) in texts.iter().zip(last.chunks_exact(vocab)) {
        end += text.len() * vocab;
        let error = rel_rms(last, &all[end - vocab..end]);
        assert!(error <= BOUND, "{name}, {} tokens: {error}", text.len());
    }
    // All tokens were cached all the same.
    let error = rel_rms(&logits(&model, &mut of_last, &next), &logits(&model, &mut of_all, &next));
    assert!(error <= BOUND, "{name}, the next tokens: {error}");
}

#[rstest]
fn truncate_and_replay(#[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str) {
    let (model, tokens) = (load(name), tokens(24, 9));
    let mut state = model.state(1).unwrap();
    logits(&model, &mut state, &[Input { slot: 0, tokens: &tokens[..16] }]);
    let first = logits(&model, &mut state, &[Input { slot: 0, tokens: &tokens[16..] }]);
    model.truncate(&mut state, 0, 16).unwrap();
    logits(&model, &mut state, &[Input { slot: 0, tokens: &tokens[..4] }]); // another continuation
    model.truncate(&mut state, 0, 16).unwrap();
    let again = logits(&model, &mut state, &[Input { slot: 0, tokens: &tokens[16..] }]);
    assert!(first == again, "{name}: the same steps on the same cache");
}

#[rstest]
fn refused_inputs_leave_the_state(
    #[values("austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit")] name: &str,
) {
    let (model, text) = (load(name), tokens(12, 10));
    let mut state = model.state(2).unwrap();
    let mut fresh = model.state(2).unwrap();
    for state in [&mut state, &mut fresh] {
        logits(&model, state, &[Input { slot: 0, tokens: &text[..6] }]);
    }
    let long = tokens(model.architecture().max_position_embeddings, 11);
    let one = |slot, tokens| vec![Input { slot, tokens }];
    type IsExpected = fn(&Error) -> bool;
    let refused: [(Vec<Input<'_>>, IsExpected); 6] = [
        (vec![], |e| matches!(e, Error::EmptyPrompt)),
        (one(0, &[]), |e| matches!(e, Error::EmptyPrompt)),
        (one(0, &[7, 3072]), |e| matches!(e, Error::TokenOutOfRange { token: 3072, vocab: 3072 })),
        (one(2, &text), |e| matches!(e, Error::Slot { slot: 2, n_slots: 2 })),
        ([one(0, &text), one(0, &text)].concat(), |e| matches!(e, Error::Slot { slot: 0, .. })),
        (one(0, &long), |e| matches!(e, Error::ContextLength { .. })),
    ];
    for (inputs, is_expected) in refused {
        let error = model.forward(&mut state, &inputs, LogitsOf::All, &Fusion::FUSED).unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert_eq!(state.n_tokens(0), 6);
    }
    let rest = [Input { slot: 0, tokens: &text[6..] }];
    assert!(logits(&model, &mut state, &rest) == logits(&model, &mut fresh, &rest));
}

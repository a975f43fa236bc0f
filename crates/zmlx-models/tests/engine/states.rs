//! Models whose layers keep states, which cannot be shortened. Prompts share them by snapshots.

use std::path::Path;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::engine::PrefixCacheOptions;
use zmlx_models::{Checkpoint, Engine, EngineOptions, Model, PoolOptions, Request, RequestId};

use crate::support::{Alone, Seen, alone, caching, fixtures, plain};

const FAMILIES: [&str; 3] = ["qwen3_5_moe", "qwen3_next", "lfm2_moe"];

fn load(family: &str) -> Model<CpuBackend> {
    let dir = fixtures().join("families").join(Path::new(family));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    Model::load(CpuBackend::new(Some(1)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap()
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 977) >> 9) % 512).collect()
}

fn joined(parts: &[&[u32]]) -> Vec<u32> {
    parts.concat()
}

fn check(model: &Model<CpuBackend>, prompt: &[u32], n: usize, got: &[u32]) {
    let want: Alone = alone(model, Request::new(prompt.to_vec(), n));
    want.assert_same(got);
}

/// Runs one request to its end. Returns its tokens, and how many tokens of its prompt were cached.
fn run(engine: &mut Engine<'_, CpuBackend>, prompt: &[u32], n: usize) -> (Vec<u32>, usize) {
    let id = engine.submit(Request::new(prompt.to_vec(), n)).unwrap();
    let mut seen = Seen::default();
    seen.run(engine);
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    (seen.ids(id), seen.finished[&id].n_cached_tokens)
}

#[rstest]
fn conversations_go_on_from_before_the_answer(#[values(0, 1, 2)] family: usize) {
    let model = load(FAMILIES[family]);
    let mut engine = Engine::new(&model, None, caching()).unwrap();
    let first = tokens(100, 1);
    let (answer, n_cached) = run(&mut engine, &first, 10);
    assert_eq!(n_cached, 0);
    check(&model, &first, 10, &answer);
    // The answer comes back without its thinking. All is shared except for the end of the prompt.
    let second = joined(&[&first[..95], &answer[5..], &tokens(50, 2)]);
    let (next, n_cached) = run(&mut engine, &second, 10);
    assert_eq!(n_cached, 84);
    check(&model, &second, 10, &next);
    // The answer comes back unchanged. All is shared except for its last token, which was never computed.
    let third = joined(&[&second, &next, &tokens(20, 3)]);
    let (last, n_cached) = run(&mut engine, &third, 10);
    assert_eq!(n_cached, second.len() + 9);
    check(&model, &third, 10, &last);
    // That sequence was continued. The state before the second answer is still there.
    let (again, n_cached) = run(&mut engine, &third, 10);
    assert_eq!(n_cached, second.len() - 16);
    check(&model, &third, 10, &again);
    assert!(engine.stats().n_idle <= 4, "{:?}", engine.stats());
    engine.clear_idle();
    assert_eq!(engine.stats().kv_bytes, 0);
}

#[rstest]
fn what_several_prompts_have_in_common_is_computed_twice_at_most(#[values(0, 1, 2)] family: usize) {
    let model = load(FAMILIES[family]);
    let mut engine = Engine::new(&model, None, caching()).unwrap();
    let system = tokens(60, 4);
    for (i, want_cached) in [0, 0, 60, 60].into_iter().enumerate() {
        let prompt = joined(&[&system, &[500 + i as u32], &tokens(70, 10 + i as u32)]);
        let (got, n_cached) = run(&mut engine, &prompt, 5);
        check(&model, &prompt, 5, &got);
        assert_eq!(n_cached, want_cached, "prompt {i}");
    }
}

#[test]
fn prompts_that_come_together_wait_for_what_they_share() {
    let model = load(FAMILIES[0]);
    let options = EngineOptions { prefill_chunk: Some(32), ..caching() };
    let mut engine = Engine::new(&model, None, options).unwrap();
    let long = tokens(200, 5);
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| joined(&[&long, &[400 + i], &tokens(20, i)])).collect();
    let submit = |prompt: &Vec<u32>| engine.submit(Request::new(prompt.clone(), 8)).unwrap();
    let ids: Vec<RequestId> = prompts.iter().map(submit).collect();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    for (id, prompt) in ids.iter().zip(&prompts) {
        check(&model, prompt, 8, &seen.ids(*id));
    }
    let n_cached: Vec<usize> = ids.iter().map(|id| seen.finished[id].n_cached_tokens).collect();
    // The part that is not shared is too short to wait for.
    assert_eq!(n_cached, [0, 192, 192]);
}

/// With room for two or three sequences, everything that is kept can be dropped, and nothing goes wrong.
#[rstest]
fn little_memory(#[values(0, 1, 2)] family: usize) {
    let model = load(FAMILIES[family]);
    let bytes = model.pool(PoolOptions::default()).unwrap().bytes_for(200);
    let cases: Vec<Vec<u32>> =
        (0..6u32).map(|i| joined(&[&tokens(60, i % 2), &[i], &tokens(40 + 9 * i as usize, i)])).collect();
    for max_bytes in [bytes * 2, bytes * 3 + bytes / 2] {
        let options = EngineOptions { max_kv_bytes: Some(max_bytes), ..caching() };
        let mut engine = Engine::new(&model, None, options).unwrap();
        let mut seen = Seen::default();
        for round in 0..2 {
            let submit = |prompt: &Vec<u32>| engine.submit(Request::new(prompt.clone(), 12)).unwrap();
            let ids: Vec<RequestId> = cases.iter().map(submit).collect();
            while !engine.is_idle() {
                seen.step(&mut engine);
                assert!(engine.stats().kv_bytes <= max_bytes, "round {round}");
            }
            assert!(seen.failed.is_empty(), "{:?}", seen.failed);
            for (id, prompt) in ids.iter().zip(&cases) {
                check(&model, prompt, 12, &seen.ids(*id));
            }
        }
    }
}

#[test]
fn nothing_is_kept_without_a_prefix_cache() {
    let model = load(FAMILIES[0]);
    let few = PrefixCacheOptions { max_entries: 1, ..PrefixCacheOptions::default() };
    for (options, n_idle) in [(plain(), 0), (EngineOptions { prefix_cache: few, ..caching() }, 1)] {
        let mut engine = Engine::new(&model, None, options).unwrap();
        let prompt = tokens(100, 1);
        let (got, _) = run(&mut engine, &prompt, 5);
        check(&model, &prompt, 5, &got);
        assert_eq!(engine.stats().n_idle, n_idle);
    }
}

//! Prompts that begin as earlier ones did.

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_models::engine::PrefixCacheOptions;
use zmlx_models::{Engine, EngineOptions, Model, Request, RequestId};

use crate::support::{GLM, QWEN, Seen, alone, caching, load, prompt};

/// Runs one request to its end.
fn run(engine: &mut Engine<'_, CpuBackend>, prompt: &[u32], n_tokens: usize) -> (Vec<u32>, usize) {
    let id = engine.submit(Request::new(prompt.to_vec(), n_tokens)).unwrap();
    let mut seen = Seen::default();
    seen.run(engine);
    (seen.ids(id), seen.finished[&id].n_cached_tokens)
}

fn engine(model: &Model<CpuBackend>, options: EngineOptions) -> Engine<'_, CpuBackend> {
    Engine::new(model, None, options).unwrap()
}

#[rstest]
fn only_what_is_new_is_computed(#[values(GLM, QWEN)] name: &str) {
    let model = load(name);
    let mut engine = engine(&model, caching());
    let novel = prompt(name, "novel");
    let (answer, n_cached) = run(&mut engine, &novel, 20);
    assert_eq!((n_cached, engine.stats().n_prompt_tokens), (0, 64));
    // The conversation continues. The last token of the answer was never computed.
    let mut next: Vec<u32> = novel.iter().chain(&answer).copied().collect();
    next.extend(prompt(name, "truth"));
    let (second, n_cached) = run(&mut engine, &next, 20);
    assert_eq!(n_cached, 64 + 19);
    assert_eq!(engine.stats().n_prompt_tokens, 64 + 1 + 11);
    alone(&model, Request::new(next.clone(), 20)).assert_same(&second);
    // It took the place of the first one.
    assert_eq!(engine.stats().n_idle, 1);

    // The same prompt again: at least one token has to be computed, for its logits.
    let (again, n_cached) = run(&mut engine, &next, 20);
    assert_eq!((again, n_cached), (second, next.len() - 1));

    // Another branch from the middle. The first one stays.
    let mut branch = next[..50].to_vec();
    branch.extend(prompt(name, "unicode"));
    let (third, n_cached) = run(&mut engine, &branch, 20);
    assert_eq!((n_cached, engine.stats().n_idle), (50, 2));
    alone(&model, Request::new(branch, 20)).assert_same(&third);
    assert_eq!(run(&mut engine, &next, 20).1, next.len() - 1);

    // The common beginning is too short.
    let mut other = next[..31].to_vec();
    other.push(7);
    assert_eq!(run(&mut engine, &other, 2).1, 0);
    let stats = engine.stats();
    assert_eq!((stats.n_prefix_hits, stats.n_prefix_misses), (4, 2));
    assert_eq!(stats.n_cached_tokens, (83 + 94 + 50 + 94) as u64);
    engine.clear_idle();
    assert_eq!(engine.stats().kv_bytes, 0);
}

#[test]
fn a_running_sequence_is_shared_and_a_prompt_that_is_being_computed_waited_for() {
    let model = load(QWEN);
    let options = EngineOptions { prefill_chunk: Some(64), ..caching() };
    let mut engine = engine(&model, options);
    let long = prompt(QWEN, "long");
    let with = |tail: &[u32]| long.iter().chain(tail).copied().collect::<Vec<u32>>();
    let prompts = [with(&[1, 2, 3]), with(&[4, 5]), with(&[4, 6, 7, 8])];
    let mut seen = Seen::default();
    let ids: Vec<RequestId> =
        prompts.iter().map(|p| engine.submit(Request::new(p.clone(), 30)).unwrap()).collect();
    // Other prompts, which share nothing, do not wait.
    let novel = engine.submit(Request::new(prompt(QWEN, "novel"), 30)).unwrap();
    seen.step(&mut engine);
    assert_eq!((engine.stats().n_running, engine.stats().n_waiting), (2, 2));
    seen.run(&mut engine);
    for (id, prompt) in ids.iter().zip(&prompts) {
        alone(&model, Request::new(prompt.clone(), 30)).assert_same(&seen.ids(*id));
    }
    alone(&model, Request::new(prompt_of_novel(), 30)).assert_same(&seen.ids(novel));
    let n_cached: Vec<usize> = ids.iter().map(|id| seen.finished[id].n_cached_tokens).collect();
    assert_eq!(n_cached[0], 0);
    assert!(n_cached[1] >= long.len() && n_cached[2] >= long.len(), "{n_cached:?}");
    // The long prompt was computed once.
    assert!(engine.stats().n_prompt_tokens < (long.len() + 64 + 20) as u64, "{:?}", engine.stats());
}

fn prompt_of_novel() -> Vec<u32> {
    prompt(QWEN, "novel")
}

#[test]
fn whoever_waits_for_a_prompt_that_is_cancelled_computes_it() {
    let model = load(QWEN);
    let options = EngineOptions { prefill_chunk: Some(64), ..caching() };
    let mut engine = engine(&model, options);
    let long = prompt(QWEN, "long");
    let mut seen = Seen::default();
    let first = engine.submit(Request::new(long.clone(), 5)).unwrap();
    let second = engine.submit(Request::new(long.clone(), 5)).unwrap();
    seen.step(&mut engine);
    assert_eq!(engine.stats().n_waiting, 1);
    engine.cancel(first).unwrap();
    seen.run(&mut engine);
    alone(&model, Request::new(long, 5)).assert_same(&seen.ids(second));
    // It uses what was computed until then.
    assert_eq!(seen.finished[&second].n_cached_tokens, 64);
}

#[test]
fn the_one_unused_for_longest_goes_first() {
    let model = load(QWEN);
    let cache = PrefixCacheOptions { max_entries: 2, ..PrefixCacheOptions::default() };
    let mut engine = engine(&model, EngineOptions { prefix_cache: cache, ..caching() });
    let prompts: Vec<Vec<u32>> = (0..3u32).map(|i| (0..40).map(|j| 100 * i + j).collect()).collect();
    let n_cached = |engine: &mut Engine<'_, CpuBackend>, i: usize| run(engine, &prompts[i], 2).1;
    assert_eq!(n_cached(&mut engine, 0), 0);
    assert_eq!(n_cached(&mut engine, 1), 0);
    assert_eq!(n_cached(&mut engine, 0), 39);
    assert_eq!(n_cached(&mut engine, 2), 0);
    let stats = engine.stats();
    assert_eq!((stats.n_idle, stats.n_evictions), (2, 1));
    // The second was used longer ago than the first, and is gone.
    assert_eq!(n_cached(&mut engine, 0), 39);
    assert_eq!(n_cached(&mut engine, 2), 39);
    assert_eq!(n_cached(&mut engine, 1), 0);
    assert_eq!(n_cached(&mut engine, 0), 0);
}

#[test]
fn idle_sequences_have_their_own_limit() {
    let model = load(QWEN);
    let novel = prompt(QWEN, "novel");
    let bytes = {
        let mut engine = engine(&model, caching());
        run(&mut engine, &novel, 2);
        engine.stats().idle_bytes
    };
    assert!(bytes > 0);
    for (max_bytes, n_idle) in [(bytes, 1), (bytes - 1, 0)] {
        let cache = PrefixCacheOptions { max_bytes, ..PrefixCacheOptions::default() };
        let mut engine = engine(&model, EngineOptions { prefix_cache: cache, ..caching() });
        run(&mut engine, &novel, 2);
        assert_eq!(engine.stats().n_idle, n_idle);
    }
}

//! Not enough memory for all requests.

use rstest::rstest;
use zmlx_models::engine::StopReason;
use zmlx_models::{Engine, EngineOptions, Error, Request};

use crate::support::{GLM, QWEN, Seen, alone, caching, load, plain, prompt};

/// Bytes that the caches of one sequence take at its end.
fn bytes_of(name: &str, request: Request) -> u64 {
    let model = load(name);
    let mut engine = Engine::new(&model, None, caching()).unwrap();
    engine.submit(request).unwrap();
    Seen::default().run(&mut engine);
    engine.stats().kv_bytes
}

#[rstest]
fn who_gives_way_loses_no_token(#[values(GLM, QWEN)] name: &str) {
    const N: usize = 330;
    let request = |which: &str| Request::new(prompt(name, which), N);
    let prompts = ["novel", "unicode", "mid_sentence"];
    // One sequence takes five pages at its end and four at first. Two are admitted, and one of them must give way.
    let limit = bytes_of(name, request("unicode")) * 9 / 5;
    let model = load(name);
    for options in [plain(), caching()] {
        let options = EngineOptions { max_kv_bytes: Some(limit), ..options };
        let mut engine = Engine::new(&model, None, options).unwrap();
        let ids: Vec<_> = prompts.iter().map(|p| engine.submit(request(p)).unwrap()).collect();
        let mut seen = Seen::default();
        while !engine.is_idle() {
            seen.step(&mut engine);
            assert!(engine.stats().kv_bytes <= limit, "{:?}", engine.stats());
        }
        for (id, which) in ids.iter().zip(prompts) {
            alone(&model, request(which)).assert_same(&seen.ids(*id));
        }
        assert!(engine.stats().n_preemptions > 0, "{:?}", engine.stats());
        engine.clear_idle();
        assert_eq!(engine.stats().kv_bytes, 0);
    }
}

#[test]
fn idle_sequences_give_way_first() {
    let model = load(QWEN);
    let limit = bytes_of(QWEN, Request::new(prompt(QWEN, "long"), 4)) * 3 / 2;
    let options = EngineOptions { max_kv_bytes: Some(limit), ..caching() };
    let mut engine = Engine::new(&model, None, options).unwrap();
    let mut seen = Seen::default();
    for (i, which) in ["long", "unicode", "long"].into_iter().enumerate() {
        // The beginnings differ, so nothing is shared.
        let prompt: Vec<u32> = std::iter::once(i as u32).chain(prompt(QWEN, which)).collect();
        let id = engine.submit(Request::new(prompt.clone(), 4)).unwrap();
        seen.run(&mut engine);
        alone(&model, Request::new(prompt, 4)).assert_same(&seen.ids(id));
        assert!(engine.stats().kv_bytes <= limit);
    }
    let stats = engine.stats();
    assert!(stats.n_evictions > 0 && stats.n_preemptions == 0, "{stats:?}");
}

#[test]
fn one_that_is_alone_ends_where_memory_does() {
    let model = load(QWEN);
    let novel = prompt(QWEN, "novel");
    let limit = bytes_of(QWEN, Request::new(novel.clone(), 200));
    let options = EngineOptions { max_kv_bytes: Some(limit), ..caching() };
    let mut engine = Engine::new(&model, None, options).unwrap();
    let id = engine.submit(Request::new(novel.clone(), 1500)).unwrap();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    assert_eq!(seen.finished[&id].reason, StopReason::CacheFull);
    let n = seen.ids(id).len();
    assert!((200..1500).contains(&n), "{n}");
    alone(&model, Request::new(novel, n)).assert_same(&seen.ids(id));
    assert!(engine.stats().kv_bytes <= limit);
    // A request that can never fit is refused.
    let long: Vec<u32> = (0..2000).collect();
    assert!(matches!(engine.submit(Request::new(long, 1)), Err(Error::CacheFull { .. })));
}

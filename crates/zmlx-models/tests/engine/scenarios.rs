//! Several requests on a device that chooses their tokens: each has the tokens that it has alone.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::cell::{Cell, RefCell};

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Error as Fault, Fusion, Hooked, Hooks, Result, SampleSettings};
use zmlx_models::engine::{PrefixCacheOptions, StopReason};
use zmlx_models::{
    Engine, EngineOptions, Error, Model, PoolOptions, Request, RequestId, SampleContext, Sampler,
    SamplingParams,
};

use crate::support::{Alone, Seen, alone, plain};

/// What happens on a device, and what fails there.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Whether the CPU chooses tokens as a device does. Other backends choose by themselves.
    chooses: bool,
    log: RefCell<Vec<String>>,
    /// The op that fails next.
    pub(crate) fails: Cell<Option<&'static str>>,
}

impl Watched {
    /// The CPU as a device that chooses tokens.
    pub(crate) fn cpu() -> Hooked<CpuBackend, Self> {
        Hooked::new(CpuBackend::new(Some(1)).unwrap(), Self { chooses: true, ..Self::default() })
    }

    /// A backend that chooses tokens.
    pub(crate) fn device<B: Backend>(backend: B) -> Hooked<B, Self> {
        Hooked::new(backend, Self::default())
    }

    /// What has happened since it was last asked: steps, choices with their number, and what the host read.
    pub(crate) fn log(&self) -> String {
        self.log.take().join(" ")
    }

    fn fail(&self, op: &'static str) -> Result<()> {
        if self.fails.get() != Some(op) {
            return Ok(());
        }
        self.fails.set(None);
        Err(Fault::Fault { op, backend: "watched", why: "on purpose".to_owned() })
    }
}

impl<B: Backend> Hooks<B> for Watched {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        self.fail(op)?;
        if ["embed", "read", "read_indices"].contains(&op) {
            self.log.borrow_mut().push(op.to_owned());
        }
        run()
    }

    fn sample(
        &self,
        backend: &B,
        logits: &B::Tensor,
        rows: &[(usize, SampleSettings<'_, B::Indices>)],
    ) -> Result<Vec<Option<B::Indices>>> {
        self.fail("sample")?;
        self.log.borrow_mut().push(format!("sample {}", rows.len()));
        if !self.chooses {
            return backend.sample(logits, rows);
        }
        let mut all = Vec::new();
        backend.read(logits, &mut all)?;
        let vocab = backend.shape(logits)[1];
        let choose = |(row, settings): &(usize, SampleSettings<'_, B::Indices>)| {
            let mut history = settings.repetition.map_or(Vec::new(), |r| r.recent.to_vec());
            if let Some(last) = settings.repetition.and_then(|r| r.last) {
                let mut token = Vec::new();
                backend.read_indices(last, &mut token)?;
                history.extend(token);
            }
            let params = SamplingParams {
                temperature: settings.temperature,
                top_k: settings.top_k,
                top_p: settings.top_p,
                min_p: settings.min_p,
                repetition_penalty: settings.repetition.map(|r| r.penalty),
                repetition_context_size: history.len(),
                seed: settings.seed,
                ..SamplingParams::greedy()
            };
            let n_prompt = history.len();
            let context = SampleContext { history: &history, n_prompt, allowed: None, banned: &[] };
            let logits = &mut all[row * vocab..][..vocab];
            let token = Sampler::new(params).unwrap().sample(logits, &context).unwrap().token;
            backend.indices(&[token], &[1]).map(Some)
        };
        rows.iter().map(choose).collect()
    }
}

/// Greedy, or by chance with every filter.
pub(crate) fn sampling(temperature: f32, seed: u64) -> SamplingParams {
    if temperature == 0.0 {
        return SamplingParams::greedy();
    }
    SamplingParams {
        temperature,
        top_p: Some(0.9),
        top_k: Some(100),
        min_p: Some(0.01),
        repetition_penalty: Some(1.2),
        seed,
        ..SamplingParams::greedy()
    }
}

/// A prompt. Those of near seeds begin with the same tokens.
pub(crate) fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7) % 3072).collect()
}

/// Keeps every finished sequence, however short.
pub(crate) fn keeping() -> EngineOptions {
    let prefix_cache = PrefixCacheOptions { min_tokens: 1, ..PrefixCacheOptions::default() };
    EngineOptions { prefix_cache, ..EngineOptions::new(Fusion::FUSED) }
}

fn step_until<B: Backend>(engine: &mut Engine<'_, B>, seen: &mut Seen, id: RequestId, n_tokens: usize) {
    while seen.ids(id).len() < n_tokens {
        seen.step(engine);
    }
}

/// Nothing is left of any request.
#[track_caller]
fn assert_empty<B: Backend>(mut engine: Engine<'_, B>) {
    engine.clear_idle();
    assert_eq!(engine.stats().kv_bytes, 0);
}

/// Requests end at different steps, by their length, an end token and their caller, and others join meanwhile. While the last of
/// them runs, the host has to choose a token.
pub(crate) fn requests_come_and_go<B: Backend>(model: &Model<B>, temperature: f32) {
    let request = |i: u32, n: usize| Request {
        sampling: sampling(temperature, u64::from(i)),
        min_tokens: usize::from(i == 4) * 3,
        ..Request::new(tokens(6 + i as usize, i), n)
    };
    let lengths = [14, 40, 30, 20, 5];
    let want: Vec<Alone> = (0..).zip(lengths).map(|(i, n)| alone(model, request(i, n))).collect();
    let end = want[2].tokens[9];
    let until_end = want[2].tokens.iter().position(|t| *t == end).unwrap() + 1;

    let mut engine = Engine::new(model, None, keeping()).unwrap();
    let mut seen = Seen::default();
    let that_ends = Request { eos_token_ids: vec![end], ..request(2, 30) };
    let first = [request(0, 14), request(1, 40), that_ends];
    let mut ids = first.map(|request| engine.submit(request).unwrap()).to_vec();
    step_until(&mut engine, &mut seen, ids[0], 3);
    ids.push(engine.submit(request(3, 20)).unwrap());
    step_until(&mut engine, &mut seen, ids[1], 7);
    let n_cancelled = seen.ids(ids[1]).len();
    assert_eq!(engine.cancel(ids[1]).unwrap().n_generated_tokens, n_cancelled);
    ids.push(engine.submit(request(4, 5)).unwrap());
    seen.run(&mut engine);
    let n_wanted = [14, n_cancelled, until_end, 20, 5];
    for (i, id) in ids.iter().enumerate() {
        let got = seen.ids(*id);
        assert_eq!(got.len(), n_wanted[i], "request {i}");
        want[i].assert_beginning(&got);
    }
    let reasons = [0, 2, 3, 4].map(|i| seen.finished[&ids[i]].reason);
    use StopReason::{Eos, MaxTokens};
    assert_eq!(reasons, [MaxTokens, Eos, MaxTokens, MaxTokens]);

    // However they ended, the caches hold what they should: all but the last token had been computed, and can be continued.
    let continued = [1, 2].map(|i| {
        let prompt = [&tokens(6 + i, i as u32), &seen.ids(ids[i])[..]].concat();
        let n_cached = prompt.len() - 1;
        let want = alone(model, Request::new(prompt.clone(), 8));
        (engine.submit(Request::new(prompt, 8)).unwrap(), want, n_cached)
    });
    seen.run(&mut engine);
    for (id, want, n_cached) in continued {
        want.assert_same(&seen.ids(id));
        assert_eq!(seen.finished[&id].n_cached_tokens, n_cached);
    }
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    assert_empty(engine);
}

/// The next step of a batch begins before the host reads a token of this one. `prompts` is what happens while prompts are
/// computed whose last tokens a step of their own follows.
pub(crate) fn the_host_reads_last<B: Backend>(model: &Model<Hooked<B, Watched>>, prompts: &str) {
    let log = || model.backend().hooks().log();
    let mut engine = Engine::new(model, None, plain()).unwrap();
    let mut seen = Seen::default();
    let submit = |(i, n): (u32, usize)| engine.submit(Request::new(tokens(9, i), n)).unwrap();
    let ids = [(0, 2), (1, 4), (2, 4)].map(submit);
    log();
    if !prompts.is_empty() {
        seen.step(&mut engine);
        assert_eq!(log(), prompts);
    }
    let reads = |n: usize| format!("read{}", " read_indices".repeat(n));
    seen.step(&mut engine);
    assert_eq!(log(), format!("embed sample 3 embed sample 3 {}", reads(3)));
    // The first ends with its second token.
    seen.step(&mut engine);
    assert_eq!(log(), format!("embed sample 2 {}", reads(3)));
    seen.step(&mut engine);
    assert_eq!(log(), format!("embed sample 2 {}", reads(2)));
    seen.step(&mut engine);
    assert_eq!(log(), reads(2));
    assert!(engine.is_idle());
    assert_eq!(ids.map(|id| seen.ids(id).len()), [2, 4, 4]);
    assert_empty(engine);
}

/// A step that was begun ahead fails as a whole: it is computed again, and no request is affected. If the choice of its tokens
/// fails, its requests end.
pub(crate) fn a_step_ahead_that_fails<B: Backend>(model: &Model<Hooked<B, Watched>>) {
    let fails = &model.backend().hooks().fails;
    let request = |i: u32| Request::new(tokens(9, i), 12);
    let want = [0, 1, 2].map(|i| alone(model, request(i)));
    let mut engine = Engine::new(model, None, keeping()).unwrap();
    let mut seen = Seen::default();
    let ids = [0, 1, 2].map(|i| engine.submit(request(i)).unwrap());
    step_until(&mut engine, &mut seen, ids[0], 2);
    for _ in 0..4 {
        fails.set(Some("embed"));
        seen.step(&mut engine);
        assert_eq!(fails.get(), None);
    }
    seen.run(&mut engine);
    for (id, want) in ids.iter().zip(&want) {
        want.assert_same(&seen.ids(*id));
    }

    let ids = [0, 1, 2].map(|i| engine.submit(request(i)).unwrap());
    step_until(&mut engine, &mut seen, ids[0], 4);
    fails.set(Some("sample"));
    seen.run(&mut engine);
    for id in ids {
        let error = &seen.failed[&id];
        assert!(matches!(error, Error::Kernels(Fault::Fault { op: "sample", .. })), "{error}");
    }
    let again = engine.submit(request(1)).unwrap();
    seen.run(&mut engine);
    want[1].assert_same(&seen.ids(again));
    assert_empty(engine);
}

/// With too little memory for all, one request gives way, and the limit holds though steps are begun ahead.
pub(crate) fn who_gives_way_loses_no_token<B: Backend>(model: &Model<B>, temperature: f32) {
    const N: usize = 330;
    let request =
        |i: u32| Request { sampling: sampling(temperature, u64::from(i)), ..Request::new(tokens(30, i), N) };
    let whole = model.pool(PoolOptions::default()).unwrap().bytes_for(30 + N);
    let limit = whole * 9 / 5;
    let options = EngineOptions { max_kv_bytes: Some(limit), ..keeping() };
    let mut engine = Engine::new(model, None, options).unwrap();
    let mut seen = Seen::default();
    let ids = [0, 1, 2].map(|i| engine.submit(request(i)).unwrap());
    while !engine.is_idle() {
        seen.step(&mut engine);
        assert!(engine.stats().kv_bytes <= limit, "{:?}", engine.stats());
    }
    for (i, id) in (0..).zip(ids) {
        alone(model, request(i)).assert_same(&seen.ids(id));
    }
    assert!(engine.stats().n_preemptions > 0, "{:?}", engine.stats());
    assert_empty(engine);
}

//! The engine on MLX: it is one step ahead of the host, however tokens are chosen.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

#[path = "engine/scenarios.rs"]
mod scenarios;
#[path = "engine/support.rs"]
mod support;

use std::ops::ControlFlow;

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{Fusion, Hooked};
use zmlx_models::engine::Constraint;
use zmlx_models::{
    Checkpoint, Engine, EngineOptions, Event, Generation, Model, Request, Result, SamplingParams, StopReason,
    TokenMask,
};

use scenarios::{Watched, keeping, tokens};
use support::{GLM, QWEN, fixtures, load_on};

fn load(name: &str, numerics: Numerics) -> Model<MlxBackend> {
    load_on(MlxBackend::new(numerics).unwrap(), name)
}

fn watched(name: &str) -> Model<Hooked<MlxBackend, Watched>> {
    load_on(Watched::device(MlxBackend::new(Numerics::Accurate).unwrap()), name)
}

/// Allows everything. But only the host can evaluate it, so no step is started ahead.
#[derive(Debug)]
struct Anything;

impl Constraint for Anything {
    fn allowed(&mut self, _: &[u32]) -> Result<Option<TokenMask<'_>>> {
        Ok(None)
    }
}

fn eager(request: Request) -> Request {
    Request { constraint: Some(Box::new(Anything)), ..request }
}

fn anew(model: &Model<MlxBackend>, request: Request) -> Generation {
    let mut engine = Engine::new(model, None, EngineOptions::one_sequence(Fusion::STOCK)).unwrap();
    engine.complete(request, |_| ControlFlow::Continue(())).unwrap()
}

/// However a sequence ends, the caches hold what they should: continuing from there gives the same text.
#[rstest]
fn a_step_ahead_harms_nobody(#[values(GLM, QWEN)] name: &str) {
    let (model, prompt) = (load(name, Numerics::Exact), tokens(9, 12));
    let whole = anew(&model, Request::new(prompt.clone(), 24));
    assert_eq!((whole.finished.reason, whole.tokens.len()), (StopReason::MaxTokens, 24));
    let one_by_one = anew(&model, eager(Request::new(prompt.clone(), 24)));
    assert_eq!(one_by_one.tokens, whole.tokens, "{name}");

    // Ended by the caller, by an end token, and by its length. Each time it is continued.
    let mut engine = Engine::new(&model, None, keeping()).unwrap();
    let mut n_seen = 0;
    let first = engine.complete(Request::new(prompt.clone(), 24), |event| {
        n_seen += usize::from(matches!(event, Event::Token { .. }));
        if n_seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let first = first.unwrap();
    assert_eq!((first.finished.reason, &first.tokens[..]), (StopReason::Interrupted, &whole.tokens[..5]));
    let end = whole.tokens[11];
    let n_until = whole.tokens[5..].iter().position(|t| *t == end).unwrap() + 1;
    let mut so_far = [&prompt[..], &first.tokens].concat();
    let request = Request { eos_token_ids: vec![end], ..Request::new(so_far.clone(), 19) };
    let second = engine.complete(request, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(second.finished.reason, StopReason::Eos);
    assert_eq!(second.tokens, whole.tokens[5..5 + n_until]);
    // All but the last token had been computed.
    assert_eq!(second.finished.n_cached_tokens, so_far.len() - 1);
    so_far.extend(&second.tokens);
    let third = engine.complete(Request::new(so_far, 24 - 5 - n_until), |_| ControlFlow::Continue(()));
    assert_eq!(third.unwrap().tokens, whole.tokens[5 + n_until..], "{name}");
    engine.clear_idle();
    assert_eq!(engine.stats().kv_bytes, 0);
}

/// A full context ends a text at the same place as step by step.
#[rstest]
fn the_context_ends(#[values(GLM, QWEN)] name: &str) {
    const LIMIT: usize = 12;
    let dir = fixtures().join("models").join(name);
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let short =
        config.replace("\"max_position_embeddings\": 2048", &format!("\"max_position_embeddings\": {LIMIT}"));
    assert_ne!(short, config);
    let file = "model.safetensors";
    let shard = (file.to_owned(), zmlx_kernels::map_file(&dir.join(file)).unwrap());
    let checkpoint = Checkpoint::from_parts(name, &short, None, vec![shard]).unwrap();
    let backend = MlxBackend::new(Numerics::Exact).unwrap();
    let model = Model::load(backend, &checkpoint, &mut |_, _| ()).unwrap();
    let request = || Request::new(tokens(LIMIT - 2, 13), 9);
    for (request, what) in [(request(), "ahead"), (eager(request()), "eager")] {
        let got = anew(&model, request);
        assert_eq!(got.finished.reason, StopReason::ContextLength, "{name} {what}");
        assert_eq!(got.tokens.len(), 3, "{name} {what}");
    }
}

#[rstest]
fn requests_come_and_go(#[values(GLM, QWEN)] name: &str, #[values(0.0, 0.8)] temperature: f32) {
    // In f32 the number of rows changes only the last bits of sums.
    scenarios::requests_come_and_go(&load(name, Numerics::Accurate), temperature);
}

#[test]
fn the_host_reads_last() {
    scenarios::the_host_reads_last(&watched(QWEN), "embed");
}

#[test]
fn a_step_ahead_that_fails() {
    scenarios::a_step_ahead_that_fails(&watched(QWEN));
}

#[test]
fn who_gives_way_loses_no_token() {
    scenarios::who_gives_way_loses_no_token(&load(QWEN, Numerics::Accurate), 0.8);
}

/// Other requests join and leave while it runs. In f32 the number of rows
/// changes only the last bits of sums.
#[rstest]
fn a_seed_gives_the_same_text_whatever_else_runs(#[values(0.0, 0.8)] temperature: f32) {
    let model = load(QWEN, Numerics::Accurate);
    let sampling = |seed| SamplingParams {
        temperature,
        top_p: Some(0.9),
        top_k: Some(100),
        min_p: Some(0.01),
        repetition_penalty: Some(1.2),
        seed,
        ..SamplingParams::greedy()
    };
    let request = |seed| Request { sampling: sampling(seed), ..Request::new(tokens(12, 3), 30) };
    let alone = anew(&model, request(7)).tokens;
    assert_eq!(anew(&model, request(7)).tokens, alone);
    assert_eq!(anew(&model, request(8)).tokens == alone, temperature == 0.0);

    let mut engine = Engine::new(&model, None, EngineOptions::new(Fusion::STOCK)).unwrap();
    let id = engine.submit(request(7)).unwrap();
    let (mut events, mut got) = (Vec::new(), Vec::new());
    for step in 0.. {
        if [5, 15].contains(&step) {
            engine.submit(Request { sampling: sampling(1), ..Request::new(tokens(20, 9), 4) }).unwrap();
        }
        engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                Event::Token { id: of, token } if of == id => got.push(token.token),
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        if engine.is_idle() {
            break;
        }
    }
    assert_eq!(got, alone);
}

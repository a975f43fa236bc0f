//! What a request may ask for, and its results.

use std::ops::ControlFlow;

use rstest::rstest;
use zmlx_models::engine::{Constraint, StopReason};
use zmlx_models::{
    Engine, EngineOptions, Error, Request, Result, SamplingParams, TokenMask, generate, top_logprobs,
};

use crate::support::{GLM, QWEN, Seen, alone, load, plain, prompt, tokenizer};

#[rstest]
#[case::empty(Request::new(vec![], 1), "the prompt is empty")]
#[case::token(Request::new(vec![1, 3072], 1), "token 3072")]
#[case::context(Request::new(vec![1; 2049], 1), "max_position_embeddings")]
#[case::temperature(
    Request { sampling: SamplingParams { temperature: -1.0, ..Default::default() }, ..Request::new(vec![1], 1) },
    "temperature"
)]
#[case::bias(
    Request { sampling: SamplingParams { logit_bias: vec![(3072, 1.0)], ..Default::default() }, ..Request::new(vec![1], 1) },
    "token 3072"
)]
#[case::stop(Request { stop: vec!["x".into()], ..Request::new(vec![1], 1) }, "tokenizer")]
fn senseless_ones_are_refused_at_once(#[case] request: Request, #[case] tells: &str) {
    let model = load(QWEN);
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let other = engine.submit(Request::new(vec![5, 6], 3)).unwrap();
    let error = engine.submit(request).unwrap_err().to_string();
    assert!(error.contains(tells), "{error:?} does not tell {tells:?}");
    let mut seen = Seen::default();
    seen.run(&mut engine);
    alone(&model, Request::new(vec![5, 6], 3)).assert_same(&seen.ids(other));
    assert_eq!(engine.stats().n_requests, 1);
}

#[test]
fn an_engine_has_room_for_somebody() {
    let model = load(QWEN);
    let options = EngineOptions { max_sequences: 0, ..plain() };
    assert!(matches!(
        Engine::new(&model, None, options),
        Err(Error::Parameter { field: "max_sequences", .. })
    ));
}

#[test]
fn lengths() {
    let model = load(QWEN);
    let novel = prompt(QWEN, "novel");
    let long = alone(&model, Request::new(novel.clone(), 20)).tokens;
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    for n in [0, 1, 2, 20] {
        let id = engine.submit(Request::new(novel.clone(), n)).unwrap();
        let mut seen = Seen::default();
        seen.run(&mut engine);
        assert_eq!(seen.ids(id), long[..n]);
        assert_eq!(seen.finished[&id].reason, StopReason::MaxTokens);
        assert_eq!(seen.progress[&id], [novel.len()]);
    }
    // The context has room for 2048 tokens, and the last one generated needs none.
    let full: Vec<u32> = (0..2046).map(|i| i % 3000).collect();
    let id = engine.submit(Request::new(full, 10)).unwrap();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    assert_eq!((seen.ids(id).len(), seen.finished[&id].reason), (3, StopReason::ContextLength));
}

#[test]
fn end_tokens_and_least_lengths() {
    let model = load(QWEN);
    let novel = prompt(QWEN, "novel");
    let long = alone(&model, Request::new(novel.clone(), 30)).tokens;
    let eos = long[9];
    let first = long.iter().position(|t| *t == eos).unwrap();
    let with_eos = || Request { eos_token_ids: vec![eos], ..Request::new(novel.clone(), 30) };
    let end = |request: Request| {
        let got = generate(&model, None, plain().fusion, request, |_| ControlFlow::Continue(())).unwrap();
        (got.tokens, got.finished.reason)
    };
    assert_eq!(end(with_eos()), (long[..=first].to_vec(), StopReason::Eos));
    let (tokens, reason) = end(Request { min_tokens: first + 3, ..with_eos() });
    assert_eq!(tokens[..first], long[..first]);
    assert!(tokens.len() >= first + 3 && !tokens[..first + 3].contains(&eos), "{tokens:?}");
    assert_eq!(reason == StopReason::Eos, tokens.last() == Some(&eos));
}

#[test]
fn text_and_stop_strings() {
    let (model, tokenizer) = (load(GLM), tokenizer(GLM));
    let novel = prompt(GLM, "novel");
    let run = |stop: &[&str]| {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let request = Request { stop, ..Request::new(novel.clone(), 40) };
        let mut pieces = String::new();
        let got = generate(&model, Some(&tokenizer), plain().fusion, request, |event| {
            if let zmlx_models::Event::Token { token, .. } = event {
                pieces += &token.text;
            }
            ControlFlow::Continue(())
        });
        let got = got.unwrap();
        assert_eq!(pieces + &got.finished.text, got.text);
        got
    };
    let whole = run(&[]);
    assert_eq!(whole.text, tokenizer.decode(&whole.tokens).unwrap());
    // The stop string spans two tokens.
    let at = whole.text.char_indices().map(|(i, _)| i).nth(whole.text.chars().count() / 2).unwrap();
    let stop: String = whole.text[at..].chars().take(6).collect();
    let first = whole.text.find(&stop).unwrap();
    let stopped = run(&["not in there", &stop]);
    assert_eq!(
        (stopped.text.as_str(), stopped.finished.reason),
        (&whole.text[..first], StopReason::StopString)
    );
    assert!(stopped.tokens.len() < whole.tokens.len());
}

#[test]
fn probabilities_and_logits() {
    let model = load(QWEN);
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let request = Request { top_logprobs: 5, wants_logits: true, ..Request::new(prompt(QWEN, "truth"), 4) };
    let id = engine.submit(request).unwrap();
    let without = engine.submit(Request::new(prompt(QWEN, "truth"), 4)).unwrap();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    for token in &seen.tokens[&id] {
        assert_eq!(token.top_logprobs, top_logprobs(&token.logits, 5));
        assert_eq!(
            (token.top_logprobs[0].token, token.top_logprobs[0].logprob),
            (token.token, token.logprob)
        );
        let second = token.top_logprobs[1].logprob;
        // These are differences of f32 logits of up to some tens.
        assert!((token.logprob - second - f64::from(token.margin)).abs() < 1e-5, "{token:?}");
    }
    assert!(seen.tokens[&without].iter().all(|t| t.logits.is_empty() && t.top_logprobs.is_empty()));
}

/// Allows only even tokens, and fails after a number of generated tokens.
#[derive(Debug)]
pub(crate) struct Even {
    pub(crate) fails_after: usize,
}

impl Constraint for Even {
    fn allowed(&mut self, generated: &[u32]) -> Result<Option<TokenMask<'_>>> {
        if generated.len() == self.fails_after {
            return Err(Error::Parameter { field: "constraint", want: "a grammar", got: "none".into() });
        }
        Ok(Some(TokenMask::new(&[0x5555_5555; 96])))
    }
}

#[test]
fn a_constraint_limits_and_its_failure_ends_only_its_request() {
    let model = load(QWEN);
    let mut engine = Engine::new(&model, None, plain()).unwrap();
    let constrained = |fails_after| Request {
        constraint: Some(Box::new(Even { fails_after })),
        ..Request::new(prompt(QWEN, "novel"), 20)
    };
    let free = engine.submit(Request::new(prompt(QWEN, "novel"), 20)).unwrap();
    let even = engine.submit(constrained(usize::MAX)).unwrap();
    let fails = engine.submit(constrained(7)).unwrap();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    alone(&model, Request::new(prompt(QWEN, "novel"), 20)).assert_same(&seen.ids(free));
    assert!(seen.ids(even).iter().all(|t| t % 2 == 0) && seen.ids(even).len() == 20);
    assert_eq!(seen.ids(fails), seen.ids(even)[..7]);
    assert!(matches!(seen.failed[&fails], Error::Parameter { field: "constraint", .. }));
    let stats = engine.stats();
    assert_eq!((stats.n_failed, stats.n_finished, stats.kv_bytes), (1, 2, 0));
}

#[test]
fn a_prompt_that_is_cancelled_leaves_nothing() {
    let model = load(GLM);
    let options = EngineOptions { prefill_chunk: Some(40), ..plain() };
    let mut engine = Engine::new(&model, None, options).unwrap();
    let mut seen = Seen::default();
    let id = engine.submit(Request::new(prompt(GLM, "long"), 5)).unwrap();
    let waits = engine.submit(Request::new(prompt(GLM, "novel"), 5)).unwrap();
    seen.step(&mut engine);
    assert_eq!(seen.progress[&id], [40]);
    assert!(engine.stats().kv_bytes > 0);
    let finished = engine.cancel(id).unwrap();
    assert_eq!((finished.reason, finished.n_generated_tokens), (StopReason::Interrupted, 0));
    assert!(engine.cancel(waits).is_some());
    assert_eq!((engine.stats().kv_bytes, engine.is_idle()), (0, true));
    // Stopping from a callback does the same.
    let mut n_events = 0;
    let stopped = engine.complete(Request::new(prompt(GLM, "long"), 5), |_| {
        n_events += 1;
        if n_events == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.tokens.len(), stopped.finished.reason), (0, StopReason::Interrupted));
    assert_eq!((n_events, engine.stats().kv_bytes), (3, 0));
}

#[test]
fn prompts_do_not_stop_those_that_decode() {
    let model = load(GLM);
    let options = EngineOptions { prefill_chunk: Some(16), ..plain() };
    let mut engine = Engine::new(&model, None, options).unwrap();
    let mut seen = Seen::default();
    let short = engine.submit(Request::new(prompt(GLM, "one_token"), 30)).unwrap();
    seen.step(&mut engine);
    let long = engine.submit(Request::new(prompt(GLM, "long"), 2)).unwrap();
    // 300 tokens, 16 at a time, take 19 steps. In each the other request gets a token.
    for n in 2..=20 {
        assert!(seen.ids(long).is_empty());
        seen.step(&mut engine);
        assert_eq!(seen.ids(short).len(), n);
    }
    assert_eq!(seen.progress[&long].len(), 19);
    assert_eq!(seen.ids(long).len(), 1);
}

#[test]
fn a_context_below_the_models() {
    let model = load(QWEN);
    let options = || EngineOptions { context: Some(40), ..plain() };
    let mut engine = Engine::new(&model, None, options()).unwrap();
    assert_eq!(engine.context(), 40);
    let error = engine.submit(Request::new(vec![5; 41], 1)).unwrap_err();
    assert!(matches!(error, Error::ContextLength { n_tokens: 41, limit: 40 }), "{error}");
    let id = engine.submit(Request::new(vec![5; 38], 10)).unwrap();
    let mut seen = Seen::default();
    seen.run(&mut engine);
    assert_eq!((seen.ids(id).len(), seen.finished[&id].reason), (3, StopReason::ContextLength));
    for options in
        [EngineOptions { context: Some(0), ..plain() }, EngineOptions { max_prompts: 0, ..plain() }]
    {
        assert!(matches!(Engine::new(&model, None, options), Err(Error::Parameter { .. })));
    }
}

#[test]
fn each_request_starts_once() {
    let model = load(QWEN);
    let mut engine = Engine::new(&model, None, EngineOptions { max_prompts: 1, ..plain() }).unwrap();
    let ids: Vec<_> = (0..3).map(|i| engine.submit(Request::new(vec![5 + i, 6, 7], 3)).unwrap()).collect();
    let mut started = Vec::new();
    let mut events = Vec::new();
    while !engine.is_idle() {
        let n_before = started.len();
        engine.step(&mut events);
        for event in events.drain(..) {
            match event {
                zmlx_models::Event::Started { id, n_cached_tokens, .. } => {
                    assert_eq!(n_cached_tokens, 0);
                    started.push(id);
                }
                other => assert!(started.contains(&other.id()), "{other:?} before its beginning"),
            }
        }
        assert!(started.len() <= n_before + 1, "more than one prompt at once");
    }
    assert_eq!(started, ids);
}

#[test]
fn silent_tokens_and_the_stop_string_that_was_found() {
    let (model, tokenizer) = (load(QWEN), tokenizer(QWEN));
    let run = |request: Request| {
        generate(&model, Some(&tokenizer), plain().fusion, request, |_| ControlFlow::Continue(())).unwrap()
    };
    let request = || Request::new(prompt(QWEN, "novel"), 12);
    let whole = run(request());
    let silent = whole.tokens[3];
    let kept: Vec<u32> = whole.tokens.iter().copied().filter(|t| *t != silent).collect();
    let got = run(Request { silent_token_ids: vec![silent], ..request() });
    assert_eq!((&got.tokens, got.text), (&whole.tokens, tokenizer.decode(&kept).unwrap()));
    assert_eq!(whole.finished.stop_string, None);
    let stop = tokenizer.decode(&whole.tokens[4..6]).unwrap();
    let got = run(Request { stop: vec!["not in there".into(), stop.clone()], ..request() });
    assert_eq!(got.finished.stop_string, Some(stop));
}

/// Allows everything, and is complete after this many tokens.
#[derive(Debug)]
struct UpTo(usize);

impl Constraint for UpTo {
    fn allowed(&mut self, _: &[u32]) -> Result<Option<TokenMask<'_>>> {
        Ok(None)
    }

    fn is_complete(&mut self, generated: &[u32]) -> Result<bool> {
        Ok(generated.len() == self.0)
    }
}

#[test]
fn a_constraint_ends_what_is_complete() {
    let model = load(QWEN);
    let request = Request { constraint: Some(Box::new(UpTo(5))), ..Request::new(prompt(QWEN, "novel"), 20) };
    let got = generate(&model, None, plain().fusion, request, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((got.tokens.len(), got.finished.reason), (5, StopReason::Eos));
}

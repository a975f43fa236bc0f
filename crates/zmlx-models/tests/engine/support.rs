//! Models, prompts and a driver for engines.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::engine::{Event, Finished, PrefixCacheOptions, Token};
use zmlx_models::{Checkpoint, Engine, EngineOptions, Error, Model, Request, RequestId, Tokenizer};
use zmlx_oracle::golden::Golden;

pub(crate) const GLM: &str = "austen-glm4-moe-lite-4bit";
pub(crate) const QWEN: &str = "austen-qwen3-moe-4bit";

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn load_on<B: Backend>(backend: B, name: &str) -> Model<B> {
    let checkpoint = Checkpoint::open(&fixtures().join("models").join(name)).unwrap();
    Model::load(backend, &checkpoint, &mut |_, _| ()).unwrap()
}

pub(crate) fn load(name: &str) -> Model<CpuBackend> {
    load_on(CpuBackend::new(Some(1)).unwrap(), name)
}

pub(crate) fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixtures().join("models").join(name)).unwrap()
}

pub(crate) fn golden(name: &str) -> Golden {
    Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap()
}

/// The tokens of a recorded prompt.
pub(crate) fn prompt(name: &str, which: &str) -> Vec<u32> {
    golden(name).prompts.into_iter().find(|p| p.name == which).unwrap().prompt_tokens
}

/// Options without a prefix cache, so that nothing outlives its request.
pub(crate) fn plain() -> EngineOptions {
    EngineOptions { prefix_cache: PrefixCacheOptions::OFF, ..caching() }
}

/// No time for prompts while others decode: the smallest number of tokens, on any machine.
pub(crate) fn caching() -> EngineOptions {
    EngineOptions { step_time: Duration::ZERO, ..EngineOptions::new(Fusion::FUSED) }
}

/// If the two best logits are nearer than this, prompts that are split differently may change the choice. This is the
/// bound of the test with the recorded prompts.
pub(crate) const MARGIN_BOUND: f32 = 1e-2;

/// The result of a request when it runs alone.
#[derive(Clone, Debug)]
pub(crate) struct Alone {
    pub(crate) tokens: Vec<u32>,
    margins: Vec<f32>,
}

pub(crate) fn alone<B: Backend>(model: &Model<B>, request: Request) -> Alone {
    let mut engine = Engine::new(model, None, EngineOptions::one_sequence(Fusion::FUSED)).unwrap();
    let mut margins = Vec::new();
    let generation = engine.complete(request, |event| {
        if let Event::Token { token, .. } = event {
            margins.push(token.margin);
        }
        ControlFlow::Continue(())
    });
    Alone { tokens: generation.unwrap().tokens, margins }
}

impl Alone {
    /// Compares the results of a request among others with this: the same number of tokens, and the same tokens up to a
    /// near tie.
    #[track_caller]
    pub(crate) fn assert_same(&self, got: &[u32]) {
        assert_eq!(got.len(), self.tokens.len());
        self.assert_beginning(got);
    }

    /// As [`Alone::assert_same`], for a request that did not finish.
    #[track_caller]
    pub(crate) fn assert_beginning(&self, got: &[u32]) {
        assert!(got.len() <= self.tokens.len());
        if let Some(at) = got.iter().zip(&self.tokens).position(|(a, b)| a != b) {
            let margin = self.margins[at];
            assert!(margin < MARGIN_BOUND, "token {at} is another, with a margin of {margin}");
        }
    }
}

/// The results of some requests so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) tokens: BTreeMap<RequestId, Vec<Token>>,
    pub(crate) finished: BTreeMap<RequestId, Finished>,
    pub(crate) failed: BTreeMap<RequestId, Error>,
    /// The progress of prompts, event by event.
    pub(crate) progress: BTreeMap<RequestId, Vec<usize>>,
}

impl Seen {
    /// One step.
    pub(crate) fn step<B: Backend>(&mut self, engine: &mut Engine<'_, B>) {
        let mut events = Vec::new();
        engine.step(&mut events);
        for event in events {
            let id = event.id();
            let is_over = self.finished.contains_key(&id) || self.failed.contains_key(&id);
            assert!(!is_over, "an event after the end: {event:?}");
            match event {
                Event::Prompt { n_done, .. } => self.progress.entry(id).or_default().push(n_done),
                Event::Token { token, .. } => self.tokens.entry(id).or_default().push(token),
                Event::Finished { finished, .. } => drop(self.finished.insert(id, finished)),
                Event::Failed { error, .. } => drop(self.failed.insert(id, error)),
                _ => {}
            }
        }
    }

    /// Runs steps until there is no work left.
    pub(crate) fn run<B: Backend>(&mut self, engine: &mut Engine<'_, B>) {
        while !engine.is_idle() {
            self.step(engine);
        }
    }

    pub(crate) fn ids(&self, id: RequestId) -> Vec<u32> {
        self.tokens.get(&id).into_iter().flatten().map(|t| t.token).collect()
    }
}

//! Runs many requests at once on one model.
//!
//! An [`Engine`] has no thread of its own: its owner calls [`Engine::step`] as long as there is work. A step gives
//! every decoding sequence one token and computes a part of the waiting prompts. Requests join and leave at every step.
//! The tokens of a request do not depend on other requests, and an error in one request ends only that request.
//! If the device chooses the tokens of all sequences, it computes the next step while the host reads them.
//!
//! Finished sequences stay in the caches while there is room. A prompt that begins with the same tokens continues from
//! there.

mod admit;
mod builder;
mod event;
mod pace;
mod prefix;
mod request;
mod room;
mod sequence;
mod snapshot;
mod stats;
mod step;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use zmlx_kernels::{Backend, Fusion, KvFormat};

use crate::{CachePool, Error, Model, PoolOptions, Result, Tokenizer};
pub use event::{Event, Finished, StopReason, Token};
use pace::Pace;
use prefix::PrefixCache;
pub use prefix::PrefixCacheOptions;
pub use request::{Constraint, Request, RequestId};
use sequence::Sequence;
pub use stats::EngineStats;

/// The settings of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Which fused ops are used.
    pub fusion: Fusion,
    /// The largest number of sequences that run at once. The others wait.
    pub max_sequences: usize,
    /// The largest number of prompts that are computed at once, however many sequences run.
    pub max_prompts: usize,
    /// The largest number of tokens of a sequence, if this is less than the model's context.
    pub context: Option<usize>,
    /// Number of prompt tokens in a step in which no sequence decodes. `None` means the number that suits the backend.
    pub prefill_chunk: Option<usize>,
    /// How long a step may take if it computes prompts while sequences decode. It takes at most twice as long as
    /// without prompts. At least sixteen prompt tokens are always computed.
    pub step_time: Duration,
    /// How keys and values are stored.
    pub kv_format: KvFormat,
    /// The largest number of bytes for keys and values, including those of idle sequences; `None` sets no limit.
    pub max_kv_bytes: Option<u64>,
    /// What is kept for later prompts.
    pub prefix_cache: PrefixCacheOptions,
}

impl EngineOptions {
    /// Up to 32 sequences, with no limit on memory.
    pub fn new(fusion: Fusion) -> Self {
        Self {
            fusion,
            max_sequences: 32,
            max_prompts: usize::MAX,
            context: None,
            prefill_chunk: None,
            step_time: Duration::from_millis(150),
            kv_format: KvFormat::Native,
            max_kv_bytes: None,
            prefix_cache: PrefixCacheOptions::default(),
        }
    }

    /// One sequence at a time, and nothing is kept afterwards.
    pub fn one_sequence(fusion: Fusion) -> Self {
        Self { max_sequences: 1, prefix_cache: PrefixCacheOptions::OFF, ..Self::new(fusion) }
    }
}

/// Runs requests on a model.
pub struct Engine<'m, B: Backend> {
    model: &'m Model<B>,
    tokenizer: Option<&'m Tokenizer>,
    options: EngineOptions,
    pool: CachePool<B>,
    /// In the order of arrival. A preempted sequence goes before the others.
    waiting: VecDeque<Sequence<'m, B>>,
    /// The sequences that have a slot, the oldest first.
    running: Vec<Sequence<'m, B>>,
    idle: PrefixCache,
    pace: Pace,
    stats: EngineStats,
    n_requests: u64,
    /// A buffer for logits.
    logits: Vec<f32>,
}

impl<'m, B: Backend> Engine<'m, B> {
    /// An engine without requests. Texts and stop strings need the tokenizer.
    ///
    /// # Errors
    /// If `max_sequences` is 0, or the backend does not have the format of keys and values.
    pub fn new(
        model: &'m Model<B>,
        tokenizer: Option<&'m Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self> {
        let counts = [
            ("max_sequences", options.max_sequences),
            ("max_prompts", options.max_prompts),
            ("context", options.context.unwrap_or(1)),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::Parameter { field, want: "at least 1", got: "0".into() });
        }
        let pool = model.pool(PoolOptions { max_bytes: options.max_kv_bytes, format: options.kv_format })?;
        let chunk = options.prefill_chunk.unwrap_or_else(|| model.prompt_chunk());
        Ok(Self {
            pace: Pace::new(options.step_time, chunk),
            model,
            tokenizer,
            options,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
            idle: PrefixCache::default(),
            stats: EngineStats::default(),
            n_requests: 0,
            logits: Vec::new(),
        })
    }

    /// Submits a request, which waits for the next step.
    ///
    /// # Errors
    /// If the prompt is empty, has a token that the model lacks, or does not fit the context or the memory for keys and
    /// values; if a parameter has a value that makes no sense; if stop strings are given without a tokenizer.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let id = RequestId(self.n_requests);
        let sequence = Sequence::new(id, request, self.model, self.tokenizer)?;
        let (n_tokens, limit) = (sequence.n_prompt, self.context());
        if n_tokens > limit {
            return Err(Error::ContextLength { n_tokens, limit });
        }
        self.check_room(n_tokens)?;
        self.n_requests += 1;
        self.stats.n_requests += 1;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Ends a request at once, whatever its state, and returns its results so far. It causes no more events. Its memory
    /// becomes free, or idle if the prefix cache keeps what was computed. `None` if there is no such request.
    pub fn cancel(&mut self, id: RequestId) -> Option<Finished> {
        let mut sequence = if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            self.waiting.remove(at)?
        } else {
            let at = self.running.iter().position(|s| s.id == id)?;
            self.running.remove(at)
        };
        self.stats.n_cancelled += 1;
        // If the tokenizer refuses the text that was held back, there is no way left to report it.
        let text = sequence.rest_of_text(StopReason::Interrupted).unwrap_or_default();
        let finished = sequence.finished(StopReason::Interrupted, text);
        self.retire(sequence);
        Some(finished)
    }

    /// True if there is no work.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// What the engine has done so far, and what it holds.
    pub fn stats(&self) -> EngineStats {
        let idle_bytes = self.idle.slots().map(|slot| self.pool.bytes_of(slot)).sum();
        EngineStats {
            n_running: self.running.len(),
            n_waiting: self.waiting.len(),
            n_idle: self.idle.len(),
            kv_bytes: self.pool.bytes(),
            idle_bytes,
            ..self.stats
        }
    }

    /// The largest number of tokens of a sequence.
    pub fn context(&self) -> usize {
        let limit = self.model.architecture().max_position_embeddings;
        self.options.context.map_or(limit, |context| context.min(limit))
    }

    /// The limit of the memory for keys and values.
    pub fn max_kv_bytes(&self) -> Option<u64> {
        self.pool.max_bytes()
    }

    /// Bytes of keys and values that a sequence of `n_tokens` tokens takes.
    pub fn kv_bytes_for(&self, n_tokens: usize) -> u64 {
        self.pool.bytes_for(n_tokens)
    }

    /// The requests that have a slot, the oldest first, with the tokens that each has in the caches.
    pub fn running(&self) -> impl Iterator<Item = (RequestId, usize)> + '_ {
        self.running.iter().map(|s| (s.id, s.slot.map_or(0, |slot| self.pool.n_tokens(slot))))
    }

    /// The model that it runs.
    pub fn model(&self) -> &'m Model<B> {
        self.model
    }

    /// Drops all idle sequences.
    pub fn clear_idle(&mut self) {
        while let Some(slot) = self.idle.evict(None) {
            self.free(slot);
        }
    }

    /// Runs until a request is done. `on_event` gets the events of this request and of others that run, and may end it.
    ///
    /// # Errors
    /// As [`Engine::submit`], and any error that ends the request.
    pub fn complete(
        &mut self,
        request: Request,
        mut on_event: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let id = self.submit(request)?;
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let mut events = Vec::new();
        loop {
            self.step(&mut events);
            let mut is_ended = false;
            let mut outcome = None;
            for event in events.drain(..) {
                is_ended |= on_event(&event).is_break();
                match event {
                    Event::Token { id: of, token } if of == id => {
                        tokens.push(token.token);
                        text += &token.text;
                    }
                    Event::Finished { id: of, finished } if of == id => outcome = Some(Ok(finished)),
                    Event::Failed { id: of, error } if of == id => outcome = Some(Err(error)),
                    _ => {}
                }
            }
            if outcome.is_none() && is_ended {
                outcome = self.cancel(id).map(Ok);
            }
            if let Some(outcome) = outcome {
                let finished = outcome?;
                text += &finished.text;
                return Ok(Generation { tokens, text, finished });
            }
        }
    }
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens, an end token included.
    pub tokens: Vec<u32>,
    /// Their text, without end tokens and stop strings; empty without a tokenizer.
    pub text: String,
    /// How it ended.
    pub finished: Finished,
}

impl Generation {
    /// Prompt tokens per second. Cached tokens do not count.
    pub fn prompt_tps(&self) -> f64 {
        let Finished { n_prompt_tokens, n_cached_tokens, prompt_time, .. } = self.finished;
        per_second(n_prompt_tokens - n_cached_tokens, prompt_time)
    }

    /// Tokens per second after the first; 0 if there was only one.
    pub fn generation_tps(&self) -> f64 {
        per_second(self.tokens.len().saturating_sub(1), self.finished.generation_time)
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

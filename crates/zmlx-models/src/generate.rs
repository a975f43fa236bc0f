//! Continuing a prompt, token by token.

mod steps;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use zmlx_kernels::{Backend, Fusion};

use crate::{
    CachePool, Detokenizer, Error, Model, Progress, Result, Sampler, SamplingParams, Slot, StopStrings,
    Tokenizer,
};
use steps::Steps;

/// How to continue.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How each is chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the text; empty to heed none.
    pub eos_token_ids: Vec<u32>,
    /// Texts that end the text; they need a tokenizer.
    pub stop: Vec<String>,
    /// Which fused ops are used.
    pub fusion: Fusion,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model gave one of the end tokens.
    Eos,
    /// The text contained a stop string.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The sequence fills the model's context.
    ContextLength,
    /// The caller ended it.
    Interrupted,
}

impl StopReason {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eos => "eos",
            Self::StopString => "stop",
            Self::MaxTokens => "length",
            Self::ContextLength => "context",
            Self::Interrupted => "interrupted",
        }
    }
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability before temperature.
    pub logprob: f64,
    /// The best logit minus the second best.
    pub margin: f32,
    /// Text that became certain with it: perhaps none, perhaps several tokens'.
    pub text: &'a str,
}

/// A finished generation.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens, an end token included.
    pub tokens: Vec<u32>,
    /// Their text, without an end token or stop string; empty without a tokenizer.
    pub text: String,
    /// Number of prompt tokens that were computed.
    pub n_prompt_tokens: usize,
    /// From the start to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub generation_time: Duration,
    /// Why it ended.
    pub stop_reason: StopReason,
}

impl Generation {
    /// Prompt tokens per second.
    pub fn prompt_tps(&self) -> f64 {
        per_second(self.n_prompt_tokens, self.prompt_time)
    }

    /// Tokens per second after the first; 0 if there was only one.
    pub fn generation_tps(&self) -> f64 {
        per_second(self.tokens.len().saturating_sub(1), self.generation_time)
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// Appends `prompt` to the sequence in `slot` and continues it. `on_step` sees every token as it comes and
/// may end the generation; `progress` sees how much of the prompt is done. The last token is not appended to the
/// caches.
///
/// # Errors
/// As [`Model::forward`] for the prompt; if the sampling parameters are senseless, the logits are not numbers, or stop
/// strings are given without a tokenizer.
#[allow(
    clippy::too_many_arguments,
    reason = "the model, its caches, the text and the two observers are all needed"
)]
pub fn generate<B: Backend>(
    model: &Model<B>,
    (pool, slot): (&mut CachePool<B>, Slot),
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    progress: Progress<'_>,
    mut on_step: impl FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(options.sampling.clone())?;
    let mut stop = StopStrings::new(options.stop.clone())?;
    if tokenizer.is_none() && !options.stop.is_empty() {
        let got = "no tokenizer".into();
        return Err(Error::Parameter { field: "stop", want: "a tokenizer to find stop strings with", got });
    }
    let mut text_of = tokenizer.map(Detokenizer::new);
    let started = Instant::now();
    let mut history = Vec::with_capacity(prompt.len() + options.max_tokens.min(1 << 20));
    history.extend_from_slice(prompt);
    let y = model.prefill(pool, slot, prompt, &options.fusion, progress)?;
    let mut steps = Steps::new(model, slot, options, y)?;
    let mut text = String::new();
    let mut first_token_at = started;
    let mut last_token_at = started;
    let mut run = || -> Result<StopReason> {
        loop {
            let n_generated = history.len() - prompt.len();
            if n_generated == options.max_tokens {
                return Ok(StopReason::MaxTokens);
            }
            let Some(sampled) = steps.next(pool, &mut sampler, &history, n_generated)? else {
                return Ok(StopReason::ContextLength);
            };
            history.push(sampled.token);
            last_token_at = Instant::now();
            if n_generated == 0 {
                first_token_at = last_token_at;
            }
            let is_eos = options.eos_token_ids.contains(&sampled.token);
            let piece = match &mut text_of {
                Some(text_of) if !is_eos => text_of.push(sampled.token)?,
                _ => String::new(),
            };
            let seen = stop.push(&piece);
            text += &seen.text;
            let (logprob, margin) = (sampled.logprob, sampled.margin);
            let flow = on_step(&Step { token: sampled.token, logprob, margin, text: &seen.text });
            if seen.stopped {
                return Ok(StopReason::StopString);
            } else if is_eos {
                return Ok(StopReason::Eos);
            } else if flow.is_break() {
                return Ok(StopReason::Interrupted);
            }
        }
    };
    let stop_reason = run();
    steps.finish(pool)?;
    let stop_reason = stop_reason?;
    if stop_reason != StopReason::StopString {
        let rest = text_of.as_mut().map(Detokenizer::flush).transpose()?.unwrap_or_default();
        let seen = stop.push(&rest);
        text += &seen.text;
        if !seen.stopped {
            text += &stop.flush();
        }
    }
    Ok(Generation {
        tokens: history.split_off(prompt.len()),
        text,
        n_prompt_tokens: prompt.len(),
        prompt_time: first_token_at - started,
        generation_time: last_token_at - first_token_at,
        stop_reason,
    })
}

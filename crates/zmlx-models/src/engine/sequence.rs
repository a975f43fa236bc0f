//! A request in progress: its tokens, its text, and its slot in the caches.

use std::time::{Duration, Instant};

use zmlx_kernels::{Backend, Choice, HostNeeds, Repetition, SampleSettings};

use super::prefix::Keep;
use super::{Finished, Request, RequestId, StopReason, Token};
use crate::{
    Detokenizer, Model, Result, SampleContext, Sampled, Sampler, Slot, StopStrings, TokenLogprob, Tokenizer,
    top_logprobs,
};

/// A token that the device has chosen. The host has not read it yet.
#[derive(Debug)]
pub(super) struct Ahead<B: Backend> {
    pub(super) id: B::Indices,
    /// The logits of its step, `[n, vocab]`, and the row from which it was chosen.
    pub(super) logits: B::Tensor,
    pub(super) row: usize,
}

/// A request and its results so far.
pub(super) struct Sequence<'m, B: Backend> {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// The prompt and the generated tokens. Their beginning is in the caches; while it decodes, this is all but the
    /// last token.
    pub(super) tokens: Vec<u32>,
    pub(super) n_prompt: usize,
    /// Number of prompt tokens that were in the caches when it first got a slot.
    pub(super) n_cached: usize,
    /// Its slot in the caches, while it runs.
    pub(super) slot: Option<Slot>,
    /// The length for which it was admitted.
    pub(super) n_promised: usize,
    /// Number of tokens that the current step computes.
    pub(super) n_planned: usize,
    /// Lengths at which the computed state is kept for other prompts, and why.
    pub(super) snapshots: Vec<(usize, Keep)>,
    /// The next token, if the device has chosen it already.
    pub(super) ahead: Option<Ahead<B>>,
    /// How it ends, once that is known. It is removed at the end of the step.
    pub(super) outcome: Option<Result<StopReason>>,
    sampler: Sampler,
    detokenizer: Option<Detokenizer<'m>>,
    stop: StopStrings,
    times: Times,
}

struct Times {
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl<'m, B: Backend> Sequence<'m, B> {
    /// # Errors
    /// If the request asks for something that the model or the tokenizer cannot do, or if a parameter makes no sense.
    pub(super) fn new(
        id: RequestId,
        mut request: Request,
        model: &Model<B>,
        tokenizer: Option<&'m Tokenizer>,
    ) -> Result<Self> {
        request.check(model, tokenizer)?;
        let sampler = Sampler::new(request.sampling.clone())?;
        let stop = StopStrings::new(request.stop.clone())?;
        let tokens = std::mem::take(&mut request.prompt);
        let times = Times { submitted: Instant::now(), admitted: None, first_token: None, last_token: None };
        Ok(Self {
            id,
            n_prompt: tokens.len(),
            tokens,
            n_cached: 0,
            slot: None,
            n_promised: 0,
            n_planned: 0,
            snapshots: Vec::new(),
            ahead: None,
            outcome: None,
            sampler,
            detokenizer: tokenizer.map(Detokenizer::new),
            stop,
            times,
            request,
        })
    }

    pub(super) fn n_generated(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }

    /// True once it has generated a token.
    pub(super) fn is_decoding(&self) -> bool {
        self.n_generated() > 0
    }

    /// True if another token may follow. The `n_more` tokens that are being computed count as generated.
    pub(super) fn wants_after(&self, n_more: usize) -> bool {
        self.n_generated() + n_more < self.request.max_tokens
    }

    /// Gives it a slot whose caches hold `n_cached` of its tokens. Returns how long it waited if this is its first
    /// slot.
    pub(super) fn admit(&mut self, slot: Slot, n_cached: usize) -> Option<Duration> {
        self.slot = Some(slot);
        if self.times.admitted.is_some() {
            return None;
        }
        let now = Instant::now();
        self.times.admitted = Some(now);
        self.n_cached = n_cached;
        Some(now - self.times.submitted)
    }

    /// What the host needs of a step that chooses the next token.
    pub(super) fn needs(&self) -> HostNeeds {
        let wants_logits = self.request.wants_logits || self.request.top_logprobs > 0;
        if wants_logits { HostNeeds::Logits } else { HostNeeds::Choices }
    }

    /// How a device chooses the next token; `None` if the request needs the host for that. `last` is the previous token if it has
    /// not been read yet.
    pub(super) fn device_settings<'a>(
        &'a self,
        last: Option<&'a B::Indices>,
    ) -> Option<SampleSettings<'a, B::Indices>> {
        if !self.request.suits_devices() {
            return None;
        }
        let params = self.sampler.params();
        let n_unread = usize::from(last.is_some());
        let repetition = params.repetition_penalty.map(|penalty| {
            let n_known = params.repetition_context_size.saturating_sub(n_unread);
            let recent = &self.tokens[self.tokens.len().saturating_sub(n_known)..];
            Repetition { penalty, recent, last: last.filter(|_| params.repetition_context_size > 0) }
        });
        Some(SampleSettings {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition,
            seed: seed_of(params.seed, self.n_generated() + n_unread),
        })
    }

    /// What the device says of the token that it chose; `None` if the host must look at the logits: where they are asked for, or
    /// are no numbers.
    pub(super) fn choice(&self, backend: &B, chosen: &B::Indices) -> Result<Option<Choice>> {
        if self.needs() == HostNeeds::Logits {
            return Ok(None);
        }
        let is_sound = |choice: &Choice| choice.logprob.is_finite() && !choice.margin.is_nan();
        Ok(backend.read_choice(chosen)?.filter(is_sound))
    }

    /// As [`Sequence::take_token`] of a token of which nothing else is asked.
    pub(super) fn take_choice(
        &mut self,
        choice: Choice,
        limit: usize,
    ) -> Result<(Token, Option<StopReason>)> {
        let Choice { token, logprob, margin } = choice;
        let sampled = Sampled { token, logprob: f64::from(logprob), margin };
        self.take_sampled(sampled, (Vec::new(), Vec::new()), limit)
    }

    /// Takes the next token from its logits, `[vocab]`: the one that the device chose, or the choice of the sampler.
    /// Also returns whether the request is done.
    pub(super) fn take_token(
        &mut self,
        logits: &mut [f32],
        chosen: Option<u32>,
        limit: usize,
    ) -> Result<(Token, Option<StopReason>)> {
        let raw = if self.request.wants_logits { logits.to_vec() } else { Vec::new() };
        let sampled = self.sample(logits, chosen)?;
        let top_logprobs = top_logprobs(logits, self.request.top_logprobs);
        self.take_sampled(sampled, (top_logprobs, raw), limit)
    }

    fn take_sampled(
        &mut self,
        sampled: Sampled,
        (top_logprobs, raw): (Vec<TokenLogprob>, Vec<f32>),
        limit: usize,
    ) -> Result<(Token, Option<StopReason>)> {
        self.tokens.push(sampled.token);
        let now = Instant::now();
        self.times.first_token.get_or_insert(now);
        self.times.last_token = Some(now);
        let is_eos = self.request.eos_token_ids.contains(&sampled.token);
        let piece = match &mut self.detokenizer {
            Some(detokenizer) if !is_eos && !self.request.silent_token_ids.contains(&sampled.token) => {
                detokenizer.push(sampled.token)?
            }
            _ => String::new(),
        };
        let seen = self.stop.push(&piece);
        let reason = if seen.stopped {
            Some(StopReason::StopString)
        } else if is_eos || self.is_complete()? {
            Some(StopReason::Eos)
        } else if !self.wants_after(0) {
            Some(StopReason::MaxTokens)
        } else if self.tokens.len() > limit {
            Some(StopReason::ContextLength)
        } else {
            None
        };
        let Sampled { token, logprob, margin } = sampled;
        Ok((Token { token, logprob, margin, top_logprobs, logits: raw, text: seen.text }, reason))
    }

    fn sample(&mut self, logits: &mut [f32], chosen: Option<u32>) -> Result<Sampled> {
        // If there is a constraint, it alone decides when the end may come.
        let is_short = self.n_generated() < self.request.min_tokens && self.request.constraint.is_none();
        let banned: &[u32] = if is_short { &self.request.eos_token_ids } else { &[] };
        let allowed = match &mut self.request.constraint {
            Some(constraint) => constraint.allowed(&self.tokens[self.n_prompt..])?,
            None => None,
        };
        let context = SampleContext { history: &self.tokens, n_prompt: self.n_prompt, allowed, banned };
        match chosen {
            Some(token) => self.sampler.assess(logits, &context, token),
            None => self.sampler.sample(logits, &context),
        }
    }

    fn is_complete(&mut self) -> Result<bool> {
        let generated = &self.tokens[self.n_prompt..];
        self.request.constraint.as_mut().map_or(Ok(false), |constraint| constraint.is_complete(generated))
    }

    /// The text that was held back and is certain at the end.
    ///
    /// # Errors
    /// If the tokenizer refuses the tokens.
    pub(super) fn rest_of_text(&mut self, reason: StopReason) -> Result<String> {
        if reason == StopReason::StopString {
            return Ok(String::new());
        }
        let rest = self.detokenizer.as_mut().map(Detokenizer::flush).transpose()?.unwrap_or_default();
        let seen = self.stop.push(&rest);
        Ok(if seen.stopped { seen.text } else { seen.text + &self.stop.flush() })
    }

    /// The final report of the request.
    pub(super) fn finished(&self, reason: StopReason, text: String) -> Finished {
        let now = Instant::now();
        let Times { submitted, admitted, first_token, last_token } = self.times;
        let admitted = admitted.unwrap_or(now);
        let first = first_token.unwrap_or(now);
        Finished {
            reason,
            text,
            stop_string: self.stop.found().map(str::to_owned),
            n_prompt_tokens: self.n_prompt,
            n_cached_tokens: self.n_cached,
            n_generated_tokens: self.n_generated(),
            queue_time: admitted - submitted,
            prompt_time: first - admitted,
            generation_time: last_token.map_or_else(Default::default, |last| last - first),
        }
    }
}

/// A different seed for each token of a request. It does not depend on other requests (SplitMix64's mixing function).
fn seed_of(seed: u64, n_generated: usize) -> u64 {
    let mut z = seed.wrapping_add((n_generated as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

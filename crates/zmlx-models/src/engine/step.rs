//! One step of the engine: what is computed, and what follows from the results.

use std::time::Instant;

use zmlx_kernels::{Backend, Choice, Logits};

use super::sequence::{Ahead, Sequence};
use super::{Engine, Event, StopReason, Token};
use crate::{Input, Result};

impl<B: Backend> Engine<'_, B> {
    /// Runs one step and appends what happened to `events`. Every decoding sequence gets one token. Prompts advance as
    /// far as the time allows, the oldest first.
    pub fn step(&mut self, events: &mut Vec<Event>) {
        let started = Instant::now();
        self.admit(events);
        if self.running.is_empty() {
            return;
        }
        self.stats.n_steps += 1;
        self.plan();
        self.reserve();
        let n_decoding = self.running.iter().filter(|s| self.is_decoder(s)).count();
        let prompts = self.running.iter().filter(|s| !self.is_decoder(s));
        let n_prompt_tokens: usize = prompts.map(|s| s.n_planned).sum();
        self.stats.n_prompt_tokens += n_prompt_tokens as u64;
        for at in 0..self.running.len() {
            self.read_ahead(at, events);
        }
        self.compute(events);
        self.sweep(events);
        self.pace.observe(n_decoding, n_prompt_tokens, started.elapsed());
    }

    /// Number of a sequence's tokens that are not in the caches.
    fn n_left(&self, sequence: &Sequence<'_, B>) -> usize {
        sequence.tokens.len() - sequence.slot.map_or(0, |slot| self.pool.n_tokens(slot))
    }

    /// True if a step gives the sequence its next token with nothing else to compute first. This is false while a
    /// preempted sequence is computed again.
    fn is_decoder(&self, sequence: &Sequence<'_, B>) -> bool {
        sequence.ahead.is_some() || sequence.is_decoding() && self.n_left(sequence) <= 1
    }

    /// Decides how many tokens of each sequence are computed.
    fn plan(&mut self) {
        let n_apart = self.model.n_last_alone();
        let n_decoding = self.running.iter().filter(|s| self.is_decoder(s)).count();
        let mut budget = self.pace.budget(n_decoding);
        for at in 0..self.running.len() {
            let n_left = self.n_left(&self.running[at]);
            let n_most = self.until_snapshot(&self.running[at]);
            let sequence = &mut self.running[at];
            sequence.n_planned = match n_left {
                _ if sequence.ahead.is_some() => 0,
                0 | 1 => n_left,
                _ => (n_left - n_apart).min(budget).min(n_most),
            };
            if n_left > 1 {
                budget -= sequence.n_planned;
            }
        }
    }

    /// Computes what is planned. If that fails, each sequence is computed on its own, so that only sequences which then
    /// fail end.
    fn compute(&mut self, events: &mut Vec<Event>) {
        let planned = |at: &usize| self.running[*at].n_planned > 0 && self.running[*at].outcome.is_none();
        let parts: Vec<usize> = (0..self.running.len()).filter(planned).collect();
        if parts.is_empty() {
            return;
        }
        if self.compute_parts(&parts, events).is_ok() {
            return;
        }
        for &at in &parts {
            if self.running[at].outcome.is_none()
                && let Err(error) = self.compute_parts(&[at], events)
            {
                self.running[at].outcome = Some(Err(error));
            }
        }
    }

    /// Computes the tokens of some sequences, and chooses the next token of those that have no more to compute.
    ///
    /// # Errors
    /// Errors of the step itself. Then the caches are unchanged. A sequence whose token is refused ends alone. An error of the
    /// device, while it chooses or, on a lazy device, later, ends all sequences of the step.
    fn compute_parts(&mut self, parts: &[usize], events: &mut Vec<Event>) -> Result<()> {
        let mut inputs = Vec::with_capacity(parts.len());
        let mut chosen = Vec::with_capacity(parts.len());
        for &at in parts {
            let sequence = &self.running[at];
            let Some(slot) = sequence.slot else { continue };
            let start = self.pool.n_tokens(slot);
            let end = start + sequence.n_planned;
            let is_whole = end == sequence.tokens.len();
            let wants = is_whole && sequence.wants_after(0);
            let logits = if wants { Logits::Last } else { Logits::None };
            inputs.push(Input { slot, tokens: &sequence.tokens[start..end], logits });
            if wants {
                chosen.push(at);
            }
        }
        let y = self.model.forward(&mut self.pool, &inputs, &self.options.fusion)?;
        if chosen.len() < parts.len()
            // A lazy device must not collect the work of a whole prompt.
            && let Err(error) = self.model.backend().eval_caches(&self.pool.caches)
        {
            // The caches already hold the tokens whose computation failed, so it cannot be tried again.
            for &at in parts {
                self.running[at].outcome = Some(Err(error.clone().into()));
            }
            return Ok(());
        }
        for &at in parts {
            self.keep_snapshot(at);
            self.tell_progress(at, events);
        }
        self.choose(&chosen, y, events);
        Ok(())
    }

    fn tell_progress(&mut self, at: usize, events: &mut Vec<Event>) {
        let sequence = &mut self.running[at];
        if sequence.is_decoding() {
            return;
        }
        let n_done = sequence.slot.map_or(0, |slot| self.pool.n_tokens(slot));
        let (id, n_tokens) = (sequence.id, sequence.n_prompt);
        events.push(Event::Prompt { id, n_done, n_tokens });
        if n_done == n_tokens && !sequence.wants_after(0) {
            sequence.outcome = Some(Ok(StopReason::MaxTokens));
        }
    }

    /// Chooses the next token of each of these sequences from its row of the logits.
    fn choose(&mut self, sequences: &[usize], y: B::Tensor, events: &mut Vec<Event>) {
        let b = self.model.backend();
        let settings = sequences.iter().map(|&at| self.running[at].device_settings(None));
        let rows: Vec<_> = settings.enumerate().filter_map(|(row, s)| Some((row, s?))).collect();
        let mut ids = vec![None; sequences.len()];
        match b.sample(&y, &rows) {
            Ok(chosen) => {
                for ((row, _), id) in rows.iter().zip(chosen) {
                    ids[*row] = id;
                }
            }
            Err(error) => {
                for &at in sequences {
                    self.running[at].outcome = Some(Err(error.clone().into()));
                }
                return;
            }
        }
        if let ([at], [id @ Some(_)]) = (sequences, &mut ids[..])
            && self.running.len() == 1
            && let Some(id) = id.take()
        {
            match b.eval_async(y, &id) {
                Ok(logits) => {
                    self.running[*at].ahead = Some(Ahead { id, logits });
                    self.read_ahead(*at, events);
                }
                Err(error) => self.running[*at].outcome = Some(Err(error.into())),
            }
            return;
        }
        let mut logits = std::mem::take(&mut self.logits);
        let mut is_read = false;
        for (row, (&at, id)) in sequences.iter().zip(ids).enumerate() {
            let choice = id.as_ref().map(|id| self.running[at].choice(b, id));
            if let Some(Ok(Some(choice))) = choice {
                self.take_choice(at, choice, events);
                continue;
            }
            // The first sequence that needs the logits reads them for all. If that fails, each of the others tries again.
            let mut token = || {
                if !is_read {
                    b.read(&y, &mut logits)?;
                    is_read = true;
                }
                id.as_ref().map(|id| read_token(b, id)).transpose()
            };
            match token() {
                Ok(token) => {
                    let vocab = self.model.architecture().vocab_size;
                    self.take_token(at, &mut logits[row * vocab..][..vocab], token, events);
                }
                Err(error) => self.running[at].outcome = Some(Err(error)),
            }
        }
        self.logits = logits;
    }

    /// Takes the token that the device has chosen for a sequence. If no other sequence runs, the following step is
    /// started first, so that the device computes while the host reads the token and the caller prints it.
    fn read_ahead(&mut self, at: usize, events: &mut Vec<Event>) {
        let Some(ahead) = self.running[at].ahead.take() else { return };
        let following = self.start_following(at, &ahead);
        let b = self.model.backend();
        let following = match (self.running[at].choice(b, &ahead.id), following) {
            (Ok(Some(choice)), Ok(following)) => {
                self.running[at].ahead = following;
                return self.take_choice(at, choice, events);
            }
            (Ok(None), following) => following,
            (Err(error), _) | (Ok(Some(_)), Err(error)) => {
                self.running[at].outcome = Some(Err(error));
                return;
            }
        };
        let mut logits = std::mem::take(&mut self.logits);
        let read = b.read(&ahead.logits, &mut logits).map_err(Into::into);
        match read.and_then(|()| read_token(b, &ahead.id)).and_then(|token| Ok((token, following?))) {
            Ok((token, following)) => {
                self.running[at].ahead = following;
                self.take_token(at, &mut logits, Some(token), events);
            }
            Err(error) => self.running[at].outcome = Some(Err(error)),
        }
        self.logits = logits;
    }

    /// Starts to compute what follows a token that the host has not read yet.
    fn start_following(&mut self, at: usize, ahead: &Ahead<B>) -> Result<Option<Ahead<B>>> {
        let sequence = &self.running[at];
        let Some(slot) = sequence.slot else { return Ok(None) };
        let has_room = self.pool.n_tokens(slot) < self.context() && self.fits(self.pool.growth(slot, 1)?);
        if self.running.len() > 1 || !sequence.wants_after(1) || !has_room {
            return Ok(None);
        }
        let y = self.model.forward_id(&mut self.pool, slot, &ahead.id, &self.options.fusion)?;
        let b = self.model.backend();
        let Some(settings) = sequence.device_settings(Some(&ahead.id)) else { return Ok(None) };
        match b.sample(&y, &[(0, settings)])?.pop().flatten() {
            Some(id) => Ok(Some(Ahead { logits: b.eval_async(y, &id)?, id })),
            None => Ok(None),
        }
    }

    fn take_token(&mut self, at: usize, row: &mut [f32], chosen: Option<u32>, events: &mut Vec<Event>) {
        let limit = self.context();
        let taken = self.running[at].take_token(row, chosen, limit);
        self.tell_token(at, taken, events);
    }

    /// Takes a token of which the device says all that is asked for.
    fn take_choice(&mut self, at: usize, choice: Choice, events: &mut Vec<Event>) {
        let limit = self.context();
        let taken = self.running[at].take_choice(choice, limit);
        self.tell_token(at, taken, events);
    }

    fn tell_token(&mut self, at: usize, taken: Result<(Token, Option<StopReason>)>, events: &mut Vec<Event>) {
        let sequence = &mut self.running[at];
        match taken {
            Ok((token, reason)) => {
                self.stats.n_generated_tokens += 1;
                events.push(Event::Token { id: sequence.id, token });
                sequence.outcome = reason.map(Ok);
            }
            Err(error) => sequence.outcome = Some(Err(error)),
        }
    }

    /// Removes the sequences that are done.
    fn sweep(&mut self, events: &mut Vec<Event>) {
        while let Some(at) = self.running.iter().position(|s| s.outcome.is_some()) {
            let mut sequence = self.running.remove(at);
            let Some(outcome) = sequence.outcome.take() else { continue };
            let id = sequence.id;
            match outcome.and_then(|reason| Ok((reason, sequence.rest_of_text(reason)?))) {
                Ok((reason, text)) => {
                    self.stats.n_finished += 1;
                    let finished = sequence.finished(reason, text);
                    self.retire(sequence);
                    events.push(Event::Finished { id, finished });
                }
                Err(error) => {
                    self.stats.n_failed += 1;
                    self.model.check_alike(&error);
                    // The results of a failed step are not kept.
                    if let Some(slot) = sequence.slot {
                        self.free(slot);
                    }
                    events.push(Event::Failed { id, error });
                }
            }
        }
    }
}

fn read_token<B: Backend>(b: &B, id: &B::Indices) -> Result<u32> {
    let mut token = Vec::with_capacity(1);
    b.read_indices(id, &mut token)?;
    // This is an id that no vocabulary has, so the sampler refuses it.
    Ok(token.first().copied().unwrap_or(u32::MAX))
}

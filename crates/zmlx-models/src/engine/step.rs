//! One step of the engine: what is computed, and what follows from the results.

use std::time::Instant;

use zmlx_kernels::{Backend, Choice, Error as Fault, HostNeeds, Logits};

use super::sequence::{Ahead, Sequence};
use super::{Engine, Event, StopReason, Token};
use crate::{ChosenInput, Input, Result};

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
        self.read_ahead(events);
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
            self.end_all(parts, &error);
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

    /// Chooses the next token of each of these sequences from its row of the logits. Where the device chooses the tokens of all
    /// that run, the next step is started before the host reads them.
    fn choose(&mut self, sequences: &[usize], y: B::Tensor, events: &mut Vec<Event>) {
        if sequences.is_empty() {
            return;
        }
        let settings = sequences.iter().map(|&at| self.running[at].device_settings(None));
        let rows: Vec<_> = settings.enumerate().filter_map(|(row, s)| Some((row, s?))).collect();
        let mut ids = vec![None; sequences.len()];
        match self.model.backend().sample(&y, &rows) {
            Ok(chosen) => {
                for ((row, _), id) in rows.iter().zip(chosen) {
                    ids[*row] = id;
                }
            }
            Err(error) => return self.end_all(sequences, &error),
        }
        let chosen = if sequences.len() == self.n_going_on() { ids.iter().cloned().collect() } else { None };
        let Some(chosen) = chosen else {
            let chosen = sequences.iter().zip(ids).enumerate();
            return self.take(chosen.map(|(row, (&at, id))| (at, row, id)), &y, events);
        };
        match self.go_ahead(sequences, chosen, y) {
            Ok(()) => self.read_ahead(events),
            Err(error) => self.end_all(sequences, &error),
        }
    }

    /// Number of running sequences of which no end is known.
    fn n_going_on(&self) -> usize {
        self.running.iter().filter(|s| s.outcome.is_none()).count()
    }

    /// Starts to compute the results of a step, whose tokens `ids` the host reads later.
    fn go_ahead(
        &mut self,
        sequences: &[usize],
        ids: Vec<B::Indices>,
        y: B::Tensor,
    ) -> zmlx_kernels::Result<()> {
        let needs = sequences.iter().map(|&at| self.running[at].needs()).max().unwrap_or(HostNeeds::Choices);
        let logits = self.model.backend().eval_async(y, &ids.iter().collect::<Vec<_>>(), needs)?;
        for (row, (&at, id)) in sequences.iter().zip(ids).enumerate() {
            self.running[at].ahead = Some(Ahead { id, logits: logits.clone(), row });
        }
        Ok(())
    }

    /// Takes the tokens that the device has chosen. The following step is started first, so that the device computes while the
    /// host reads the tokens and the caller prints them.
    fn read_ahead(&mut self, events: &mut Vec<Event>) {
        let running = self.running.iter_mut().enumerate();
        let chosen: Vec<_> = running.filter_map(|(at, s)| Some((at, s.ahead.take()?))).collect();
        let Some((_, Ahead { logits, .. })) = chosen.first() else { return };
        let logits = logits.clone();
        self.start_following(&chosen);
        let chosen = chosen.into_iter().map(|(at, ahead)| (at, ahead.row, Some(ahead.id)));
        self.take(chosen, &logits, events);
    }

    /// Starts to compute what follows tokens that the host has not read yet, if all sequences that run have such tokens.
    fn start_following(&mut self, chosen: &[(usize, Ahead<B>)]) {
        if chosen.len() < self.n_going_on() {
            return;
        }
        let (mut sequences, mut inputs) = (Vec::new(), Vec::new());
        for (at, ahead) in chosen {
            let sequence = &self.running[*at];
            // Any other sequence ends with the token that it has now.
            if let Some(slot) = sequence.slot
                && sequence.wants_after(1)
                && self.pool.n_tokens(slot) < self.context()
            {
                sequences.push(*at);
                inputs.push(ChosenInput { slot, id: &ahead.id, row: ahead.row });
            }
        }
        if sequences.is_empty() {
            return;
        }
        // A step that fails or does not fit changes nothing. It is planned again when the tokens are known.
        let Ok(y) = self.model.forward_chosen(&mut self.pool, &inputs, &self.options.fusion) else { return };
        let settings =
            sequences.iter().zip(&inputs).map(|(&at, i)| self.running[at].device_settings(Some(i.id)));
        let rows: Vec<_> = settings.enumerate().filter_map(|(row, s)| Some((row, s?))).collect();
        let b = self.model.backend();
        let ids = b.sample(&y, &rows).and_then(|ids| {
            let ids: Option<Vec<_>> = ids.into_iter().collect();
            let why = || "a device that chose one token does not choose the next".to_owned();
            ids.ok_or_else(|| Fault::Fault { op: "sample", backend: b.name(), why: why() })
        });
        // The caches already hold the tokens, so it cannot be tried again.
        if let Err(error) = ids.and_then(|ids| self.go_ahead(&sequences, ids, y)) {
            self.end_all(&sequences, &error);
        }
    }

    fn end_all(&mut self, sequences: &[usize], error: &Fault) {
        for &at in sequences {
            self.running[at].outcome = Some(Err(error.clone().into()));
        }
    }

    /// Takes the next tokens of sequences, of each from its row of the logits: the one that the device chose, or the choice of the
    /// sampler.
    fn take(
        &mut self,
        chosen: impl Iterator<Item = (usize, usize, Option<B::Indices>)>,
        y: &B::Tensor,
        events: &mut Vec<Event>,
    ) {
        let b = self.model.backend();
        let mut logits = std::mem::take(&mut self.logits);
        let mut is_read = false;
        for (at, row, id) in chosen {
            if self.running[at].outcome.is_some() {
                continue;
            }
            let choice = id.as_ref().map(|id| self.running[at].choice(b, id));
            if let Some(Ok(Some(choice))) = choice {
                self.take_choice(at, choice, events);
                continue;
            }
            // The first sequence that needs the logits reads them for all. If that fails, each of the others tries again.
            let mut token = || {
                if !is_read {
                    b.read(y, &mut logits)?;
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

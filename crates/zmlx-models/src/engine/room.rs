//! Memory for keys and values: decides which sequence gives way when there is no more.

use zmlx_kernels::Backend;

use super::prefix::Keep;
use super::sequence::Sequence;
use super::{Engine, StopReason};
use crate::{Error, Result, Slot};

impl<B: Backend> Engine<'_, B> {
    /// Refuses a prompt that can never fit.
    pub(super) fn check_room(&self, n_prompt: usize) -> Result<()> {
        let want_bytes = self.pool.bytes_for(n_prompt);
        match self.pool.max_bytes() {
            Some(limit_bytes) if want_bytes > limit_bytes => {
                Err(Error::CacheFull { want_bytes, used_bytes: 0, limit_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Drops idle sequences, except for one that is in use, until another `n_bytes` fit. Drops none if that would not
    /// be enough. If no sequence runs, it accepts whatever fits.
    pub(super) fn make_room(&mut self, n_bytes: u64, apart_from: Option<Slot>) -> bool {
        let Some(limit) = self.pool.max_bytes() else { return true };
        let others = self.idle.slots().filter(|slot| Some(*slot) != apart_from);
        let idle: u64 = others.map(|slot| self.pool.bytes_of(slot)).sum();
        let is_alone = self.running.is_empty();
        if !is_alone && self.pool.bytes() + n_bytes > limit + idle {
            return false;
        }
        while self.pool.bytes() + n_bytes > limit {
            if !self.evict(apart_from) {
                return is_alone;
            }
        }
        true
    }

    /// Makes sure that the results of the step fit, beginning with the oldest sequences. If there is not enough memory,
    /// idle sequences are dropped first, then the youngest running one gives up its slot. If only one is left, it ends.
    pub(super) fn reserve(&mut self) {
        if self.pool.max_bytes().is_none() {
            return;
        }
        let mut at = 0;
        // Bytes that the sequences before the current one may add.
        let mut n_before = 0;
        while at < self.running.len() {
            let sequence = &self.running[at];
            let (Some(slot), n_planned) = (sequence.slot, sequence.n_planned) else { break };
            let growth = if n_planned == 0 { Ok(0) } else { self.pool.growth(slot, n_planned) };
            let error = match growth {
                Ok(n_bytes) if self.fits(n_before + n_bytes) => {
                    n_before += n_bytes;
                    at += 1;
                    continue;
                }
                Ok(_) if self.evict(None) => continue,
                Ok(_) if self.running.len() > 1 => {
                    self.preempt_youngest();
                    continue;
                }
                Ok(want_bytes) => {
                    let limit_bytes = self.pool.max_bytes().unwrap_or(u64::MAX);
                    Error::CacheFull { want_bytes, used_bytes: self.pool.bytes(), limit_bytes }
                }
                Err(error) => error,
            };
            let sequence = &mut self.running[at];
            let is_full = matches!(error, Error::CacheFull { .. }) && sequence.is_decoding();
            sequence.outcome = Some(if is_full { Ok(StopReason::CacheFull) } else { Err(error) });
            sequence.n_planned = 0;
            at += 1;
        }
    }

    /// True if the caches may grow by `n_bytes`.
    pub(super) fn fits(&self, n_bytes: u64) -> bool {
        self.pool.max_bytes().is_none_or(|limit| self.pool.bytes().saturating_add(n_bytes) <= limit)
    }

    /// Drops the least useful idle sequence. Returns false if there is none.
    pub(super) fn evict(&mut self, apart_from: Option<Slot>) -> bool {
        let Some(slot) = self.idle.evict(apart_from) else { return false };
        self.free(slot);
        self.stats.n_evictions += 1;
        true
    }

    /// Makes the youngest sequence wait again, before all others. It is computed again later.
    fn preempt_youngest(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        if let Some(slot) = sequence.slot.take() {
            self.free(slot);
        }
        sequence.ahead = None;
        sequence.n_planned = 0;
        self.stats.n_preemptions += 1;
        self.waiting.push_front(sequence);
    }

    /// Takes the slot from a sequence. What was computed stays for later prompts, if anything is kept.
    pub(super) fn retire(&mut self, sequence: Sequence<'_, B>) {
        let Sequence { slot: Some(slot), mut tokens, .. } = sequence else { return };
        let options = self.options.prefix_cache;
        tokens.truncate(self.pool.n_tokens(slot));
        if options.is_off() || tokens.len() < options.min_tokens.max(1) {
            self.free(slot);
            return;
        }
        // An idle sequence keeps only the tokens that are certain.
        if self.pool.truncate(slot, tokens.len()).is_err() {
            self.free(slot);
            return;
        }
        self.keep(slot, tokens, Keep::End);
    }

    /// Frees a slot, which is known to be the engine's own.
    pub(super) fn free(&mut self, slot: Slot) {
        let freed = self.pool.free(slot);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

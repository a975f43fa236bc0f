//! Snapshots of prompts, for models whose caches hold states. States cannot be shortened, so the beginning that several
//! prompts have in common is kept as it is when it has been computed.
//!
//! A snapshot is taken where another prompt departs from a sequence, and shortly before the end of a prompt: the next
//! prompt of the same conversation contains all of this prompt except for the part that makes the model answer.

use zmlx_kernels::Backend;

use super::Engine;
use super::prefix::{Keep, n_common};
use super::sequence::Sequence;
use crate::Slot;

/// Number of tokens at the end of a prompt that the next prompt of the same conversation may lack: what chat templates
/// put before an answer.
const N_BEFORE_ANSWER: usize = 16;

impl<B: Backend> Engine<'_, B> {
    /// True if beginnings of sequences have to be kept separately.
    pub(super) fn takes_snapshots(&self) -> bool {
        self.pool.has_states() && !self.options.prefix_cache.is_off()
    }

    /// Decides at which lengths the state of a sequence's prompt is kept. `n_cached` of its tokens are already in the
    /// caches.
    pub(super) fn plan_snapshots(&self, sequence: &mut Sequence<'_, B>, n_cached: usize) {
        sequence.snapshots.clear();
        if !self.takes_snapshots() {
            return;
        }
        let n_prompt = sequence.n_prompt;
        let tokens = &sequence.tokens[..n_prompt];
        let running = self.running.iter().map(|other| n_common(&other.tokens, tokens));
        let parting = running.chain([self.idle.longest_common(tokens)]).max().unwrap_or(0);
        let least = n_cached + self.options.prefix_cache.min_tokens.max(1);
        for (at, keep) in [(parting, Keep::Parting), (n_prompt.saturating_sub(N_BEFORE_ANSWER), Keep::Answer)]
        {
            if (least..n_prompt).contains(&at) && sequence.snapshots.iter().all(|(other, _)| *other != at) {
                sequence.snapshots.push((at, keep));
            }
        }
    }

    /// Makes running sequences keep the state at the end of what they will share with these tokens, so that the waiting
    /// prompt can continue from there.
    pub(super) fn plan_parting(&mut self, waiting: usize) {
        if !self.takes_snapshots() {
            return;
        }
        let Some(waiting) = self.waiting.get(waiting) else { return };
        // At least one token has to be computed, for its logits.
        let tokens = &waiting.tokens[..waiting.tokens.len() - 1];
        for sequence in &mut self.running {
            let n_computed = sequence.slot.map_or(0, |slot| self.pool.n_tokens(slot));
            let at = n_common(&sequence.tokens, tokens);
            let is_planned = sequence.snapshots.iter().any(|(other, _)| *other == at);
            if at > n_computed && !is_planned {
                sequence.snapshots.push((at, Keep::Parting));
            }
        }
    }

    /// Number of tokens that a sequence may compute before its state is kept.
    pub(super) fn until_snapshot(&self, sequence: &Sequence<'_, B>) -> usize {
        let n_done = sequence.slot.map_or(0, |slot| self.pool.n_tokens(slot));
        let ahead = sequence.snapshots.iter().filter_map(|(at, _)| at.checked_sub(n_done));
        ahead.filter(|n| *n > 0).min().unwrap_or(usize::MAX)
    }

    /// Keeps what a sequence has computed, if that is planned.
    pub(super) fn keep_snapshot(&mut self, at: usize) {
        let sequence = &self.running[at];
        let Some(slot) = sequence.slot else { return };
        let n_tokens = self.pool.n_tokens(slot);
        let Some((_, keep)) = sequence.snapshots.iter().find(|(at, _)| *at == n_tokens).copied() else {
            return;
        };
        let tokens = sequence.tokens[..n_tokens].to_vec();
        if let Ok(snapshot) = self.pool.snapshot(slot) {
            self.keep(snapshot, tokens, keep);
        }
    }

    /// Adds a slot to the idle ones, and drops those that exceed the limits.
    pub(super) fn keep(&mut self, slot: Slot, tokens: Vec<u32>, keep: Keep) {
        let pool = &self.pool;
        for unneeded in self.idle.insert(slot, tokens, keep, |slot| pool.shortest(slot)) {
            self.free(unneeded);
        }
        let options = self.options.prefix_cache;
        let bytes = |engine: &Self| -> u64 { engine.idle.slots().map(|s| engine.pool.bytes_of(s)).sum() };
        while self.idle.len() > options.max_entries || bytes(self) > options.max_bytes {
            if !self.evict(None) {
                break;
            }
        }
    }
}

//! Decides which waiting sequence gets a slot, and finds what the caches already hold of its prompt.

use zmlx_kernels::Backend;

use super::prefix::{Hit, Keep, n_common};
use super::sequence::Sequence;
use super::{Engine, Event};
use crate::{Result, Slot};

/// Number of tokens that a sequence should be able to generate within the memory for which it got a slot.
const HEADROOM: usize = 256;

/// The decision about a waiting sequence.
enum Place {
    /// It gets this slot, which holds this many of its tokens.
    Slot(Slot, usize),
    /// It waits for another prompt that begins with the same tokens.
    AfterAnother,
    /// It waits for memory, and so do all that came later.
    Full,
}

/// A sequence that begins with the same tokens as a prompt.
#[derive(Clone, Copy)]
enum Source {
    Idle(Hit),
    Running { slot: Slot, n_shared: usize },
}

impl<B: Backend> Engine<'_, B> {
    /// Gives slots to waiting sequences in the order of their arrival, while there are slots and memory.
    pub(super) fn admit(&mut self, events: &mut Vec<Event>) {
        let mut at = 0;
        let mut n_prompts = self.running.iter().filter(|s| !s.is_decoding()).count();
        while at < self.waiting.len()
            && self.running.len() < self.options.max_sequences
            && n_prompts < self.options.max_prompts
        {
            let (slot, n_cached) = match self.place(at) {
                Ok(Place::Slot(slot, n_cached)) => (slot, n_cached),
                Ok(Place::AfterAnother) => {
                    self.plan_parting(at);
                    at += 1;
                    continue;
                }
                // An error is reported later: running sequences may free memory.
                Ok(Place::Full) | Err(_) => break,
            };
            let Some(mut sequence) = self.waiting.remove(at) else { break };
            if n_cached > 0 {
                self.stats.n_prefix_hits += 1;
                self.stats.n_cached_tokens += n_cached as u64;
            } else {
                self.stats.n_prefix_misses += 1;
            }
            sequence.n_promised = n_expected(&sequence);
            self.plan_snapshots(&mut sequence, n_cached);
            n_prompts += 1;
            if let Some(queue_time) = sequence.admit(slot, n_cached) {
                events.push(Event::Started { id: sequence.id, n_cached_tokens: n_cached, queue_time });
            }
            let older = self.running.partition_point(|s| s.id < sequence.id);
            self.running.insert(older, sequence);
        }
    }

    fn place(&mut self, at: usize) -> Result<Place> {
        let sequence = &self.waiting[at];
        let source = if self.options.prefix_cache.is_off() { None } else { self.source(&sequence.tokens) };
        let n_shared = source.map_or(0, Source::n_shared);
        if self.is_being_computed(&sequence.tokens, n_shared) {
            return Ok(Place::AfterAnother);
        }
        let n_bytes =
            self.pool.bytes_for(n_expected(sequence)).saturating_sub(self.pool.bytes_shared(n_shared));
        let in_use = match source {
            Some(Source::Idle(hit)) => Some(self.idle.get(hit.index).slot),
            _ => None,
        };
        if !self.make_room(n_bytes + self.promised_bytes(), in_use) {
            return Ok(Place::Full);
        }
        // Other sequences were dropped to free memory, so the indices have changed.
        let source = if source.is_some() { self.source(&self.waiting[at].tokens) } else { None };
        if let Some(source) = source
            && let Ok(slot) = self.go_on(source)
        {
            return Ok(Place::Slot(slot, source.n_shared()));
        }
        Ok(Place::Slot(self.pool.allocate()?, 0))
    }

    /// Bytes by which running sequences may still grow without a new check.
    fn promised_bytes(&self) -> u64 {
        let growth = |s: &Sequence<'_, B>| {
            let slot = s.slot?;
            let n_more = s.n_promised.saturating_sub(self.pool.n_tokens(slot));
            self.pool.growth(slot, n_more).ok()
        };
        self.running.iter().filter_map(growth).sum()
    }

    /// The sequence whose caches hold the longest beginning of a prompt, if it is long enough to be useful.
    fn source(&self, tokens: &[u32]) -> Option<Source> {
        // At least one token has to be computed, for its logits.
        let tokens = &tokens[..tokens.len() - 1];
        let idle = self.idle.find(tokens, |slot| self.pool.shortest(slot)).map(Source::Idle);
        let running = self.running.iter().filter_map(|s| {
            let slot = s.slot?;
            let n_computed = self.pool.n_tokens(slot).min(s.tokens.len());
            let n_shared = n_common(&s.tokens[..n_computed], tokens);
            (n_shared >= self.pool.shortest(slot)).then_some(Source::Running { slot, n_shared })
        });
        let best = running.chain(idle).max_by_key(|source| source.n_shared())?;
        (best.n_shared() >= self.options.prefix_cache.min_tokens.max(1)).then_some(best)
    }

    /// True if a prompt that is being computed will soon share more with these tokens than any sequence does now.
    fn is_being_computed(&self, tokens: &[u32], n_shared: usize) -> bool {
        let options = &self.options.prefix_cache;
        if options.is_off() {
            return false;
        }
        let tokens = &tokens[..tokens.len() - 1];
        self.running.iter().any(|s| {
            let n_computed = s.slot.map_or(0, |slot| self.pool.n_tokens(slot));
            let n_common = n_common(&s.tokens, tokens);
            n_common > n_computed && n_common >= n_shared + options.min_tokens.max(1)
        })
    }

    /// A slot with the shared beginning: the slot of the idle sequence itself if it is continued, or a fork of it.
    fn go_on(&mut self, source: Source) -> Result<Slot> {
        match source {
            Source::Running { slot, n_shared } => self.pool.fork(slot, n_shared),
            Source::Idle(hit) => {
                let slot = self.idle.get(hit.index).slot;
                // A snapshot stays available for all prompts with this beginning.
                let is_its_own = self.idle.get(hit.index).keep == Keep::End;
                if is_its_own && self.idle.goes_on(hit) && self.pool.truncate(slot, hit.n_shared).is_ok() {
                    self.idle.remove(hit.index);
                    return Ok(slot);
                }
                let branch = self.pool.fork(slot, hit.n_shared)?;
                self.idle.forked(hit.index);
                Ok(branch)
            }
        }
    }
}

/// The expected length of a sequence for the near future.
fn n_expected<B: Backend>(sequence: &Sequence<'_, B>) -> usize {
    let n_left = sequence.request.max_tokens.saturating_sub(sequence.n_generated());
    sequence.tokens.len() + n_left.min(HEADROOM)
}

impl Source {
    fn n_shared(self) -> usize {
        match self {
            Self::Idle(hit) => hit.n_shared,
            Self::Running { n_shared, .. } => n_shared,
        }
    }
}

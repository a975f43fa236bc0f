//! Which waiting sequence gets a slot, and what of it is in the caches already.

use zmlx_kernels::Backend;

use super::prefix::{Hit, Keep, n_common};
use super::sequence::Sequence;
use super::{Engine, Event};
use crate::{Result, Slot};

/// Tokens that a sequence should be able to generate before it needs more memory than it got a slot for.
const HEADROOM: usize = 256;

/// Where a waiting sequence goes.
enum Place {
    /// Into this slot, which holds so many of its tokens.
    Slot(Slot, usize),
    /// It waits for a prompt that begins as its own does.
    AfterAnother,
    /// It waits for room, and with it all that came later.
    Full,
}

/// A sequence whose beginning is a prompt's.
#[derive(Clone, Copy)]
enum Source {
    Idle(Hit),
    Running { slot: Slot, n_shared: usize },
}

impl<B: Backend> Engine<'_, B> {
    /// Gives slots to waiting sequences while there are some and there is room, first come first served.
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
                // An error is for later: running sequences make room.
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
        // Making room has dropped others: the indices are new.
        let source = if source.is_some() { self.source(&self.waiting[at].tokens) } else { None };
        if let Some(source) = source
            && let Ok(slot) = self.go_on(source)
        {
            return Ok(Place::Slot(slot, source.n_shared()));
        }
        Ok(Place::Slot(self.pool.allocate()?, 0))
    }

    /// Bytes by which running sequences may still grow without asking.
    fn promised_bytes(&self) -> u64 {
        let growth = |s: &Sequence<'_, B>| {
            let slot = s.slot?;
            let n_more = s.n_promised.saturating_sub(self.pool.n_tokens(slot));
            self.pool.growth(slot, n_more).ok()
        };
        self.running.iter().filter_map(growth).sum()
    }

    /// The sequence whose caches hold most of a prompt's beginning, if that is worth the while.
    fn source(&self, tokens: &[u32]) -> Option<Source> {
        // At least one token is computed, for its logits.
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

    /// A slot with the beginning that is shared: the idle sequence's own if it goes on, or a branch.
    fn go_on(&mut self, source: Source) -> Result<Slot> {
        match source {
            Source::Running { slot, n_shared } => self.pool.fork(slot, n_shared),
            Source::Idle(hit) => {
                let slot = self.idle.get(hit.index).slot;
                // A snapshot is for all that begin so.
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

/// How long a sequence will be for some time.
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

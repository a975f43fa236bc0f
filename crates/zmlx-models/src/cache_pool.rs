//! The caches of many sequences of one model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zmlx_kernels::{Backend, CacheSpec, KvFormat, MAX_SLOTS, Span};

use crate::follow::Change;
use crate::{Error, Lead, Order, Result};

/// The settings of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolOptions {
    /// The largest number of bytes that all sequences may take together; `None` sets no limit.
    pub max_bytes: Option<u64>,
    /// How keys and values are stored.
    pub format: KvFormat,
}

/// A sequence of a pool. After a slot is freed, its name is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    /// A number that no other slot of any pool has.
    serial: u64,
}

/// The caches of all layers of a model, for any number of sequences.
///
/// After a [`CachePool::fork`], sequences share what they have in common. It is stored and counted once.
#[derive(Debug)]
pub struct CachePool<B: Backend> {
    pub(crate) id: u64,
    model_id: u64,
    backend: Arc<B>,
    specs: Vec<CacheSpec>,
    pub(crate) caches: Vec<B::Cache>,
    sequences: Vec<Option<Sequence>>,
    max_bytes: Option<u64>,
    /// Of a model that other ranks follow.
    lead: Option<Arc<dyn Lead>>,
}

#[derive(Clone, Copy, Debug)]
struct Sequence {
    serial: u64,
    n_tokens: usize,
}

/// A number that is unique in this process.
pub(crate) fn unique_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<B: Backend> CachePool<B> {
    pub(crate) fn new(
        model_id: u64,
        backend: Arc<B>,
        specs: Vec<CacheSpec>,
        options: PoolOptions,
        lead: Option<Arc<dyn Lead>>,
    ) -> Result<Self> {
        let caches = specs.iter().map(|spec| backend.cache(spec)).collect::<zmlx_kernels::Result<_>>()?;
        let PoolOptions { max_bytes, format } = options;
        let (id, sequences) = (unique_id(), Vec::new());
        let pool = Self { id, model_id, backend, specs, caches, sequences, max_bytes, lead };
        pool.tell(|| Change::Open { format: format.into() });
        Ok(pool)
    }

    /// Tells the other ranks what happens to this pool, if there are any.
    pub(crate) fn tell(&self, change: impl FnOnce() -> Change) {
        if let Some(lead) = &self.lead {
            lead.tell(&Order { pool: self.id, change: change() });
        }
    }

    /// A slot for a new, empty sequence. It takes memory as tokens are added.
    ///
    /// # Errors
    /// If all slots that a backend can address are in use.
    pub fn allocate(&mut self) -> Result<Slot> {
        let free = self.sequences.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sequences.len());
        if index >= MAX_SLOTS {
            let (op, what, len) = ("allocate", "slot", MAX_SLOTS);
            return Err(zmlx_kernels::Error::IndexOutOfRange { op, what, index, len }.into());
        }
        let serial = unique_id();
        let sequence = Some(Sequence { serial, n_tokens: 0 });
        match self.sequences.get_mut(index) {
            Some(free) => *free = sequence,
            None => self.sequences.push(sequence),
        }
        Ok(Slot { index: index as u32, serial })
    }

    /// Ends a sequence. Memory that it shares with no other sequence becomes free.
    ///
    /// # Errors
    /// [`Error::Slot`].
    pub fn free(&mut self, slot: Slot) -> Result<()> {
        let index = self.index(slot)?;
        for cache in &mut self.caches {
            self.backend.release(cache, index);
        }
        self.tell(|| Change::Release { slot: index });
        self.sequences[index] = None;
        Ok(())
    }

    /// A new sequence with the first `n_tokens` tokens of another one. The two share these; nothing is copied or
    /// computed.
    ///
    /// [`Error::Slot`]; [`Error::Shorten`] if the sequence is shorter, or if a layer no longer holds what a sequence of
    /// that length needs.
    /// sequence needs.
    pub fn fork(&mut self, slot: Slot, n_tokens: usize) -> Result<Slot> {
        let from = self.index(slot)?;
        self.check_length(slot, n_tokens)?;
        let to = self.allocate()?;
        let result = self.share(from, to.index as usize, n_tokens);
        if result.is_err() {
            self.free(to)?;
        }
        result.map(|()| to)
    }

    /// The present state of a sequence as a sequence of its own: a [`CachePool::fork`] with all its tokens, which every
    /// kind of cache allows.
    ///
    /// # Errors
    /// [`Error::Slot`].
    pub fn snapshot(&mut self, slot: Slot) -> Result<Slot> {
        self.fork(slot, self.n_tokens(slot))
    }

    /// Makes a sequence equal to another one, for example to a [`CachePool::snapshot`] of an earlier state. The other
    /// one stays.
    ///
    /// # Errors
    /// [`Error::Slot`], also if both slots are the same.
    pub fn restore(&mut self, slot: Slot, snapshot: Slot) -> Result<()> {
        let (to, from) = (self.index(slot)?, self.index(snapshot)?);
        if from == to {
            return Err(Error::Slot);
        }
        self.share(from, to, self.n_tokens(snapshot))
    }

    fn share(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        for cache in &mut self.caches {
            self.backend.fork(cache, from, to, n_tokens)?;
        }
        self.tell(|| Change::Fork { from, to, n_tokens });
        if let Some(Some(sequence)) = self.sequences.get_mut(to) {
            sequence.n_tokens = n_tokens;
        }
        Ok(())
    }

    /// Shortens a sequence to its first `n_tokens` tokens; 0 empties it.
    ///
    /// # Errors
    /// As [`CachePool::fork`]. Then nothing has changed.
    pub fn truncate(&mut self, slot: Slot, n_tokens: usize) -> Result<()> {
        let index = self.index(slot)?;
        self.check_length(slot, n_tokens)?;
        for cache in &mut self.caches {
            self.backend.truncate(cache, index, n_tokens)?;
        }
        self.tell(|| Change::Truncate { slot: index, n_tokens });
        self.set_length(index, n_tokens);
        Ok(())
    }

    /// The smallest number of tokens above 0 to which a sequence can be forked or shortened; 0 if every length is
    /// possible.
    pub fn shortest(&self, slot: Slot) -> usize {
        let Ok(index) = self.index(slot) else { return 0 };
        self.caches.iter().map(|cache| self.backend.shortest(cache, index)).max().unwrap_or(0)
    }

    /// True if a layer keeps a state. Then sequences can be emptied or kept whole, but not shortened.
    pub fn has_states(&self) -> bool {
        self.specs.iter().any(|spec| spec.kind.is_state())
    }

    fn check_length(&self, slot: Slot, n_tokens: usize) -> Result<()> {
        let (shortest, had) = (self.shortest(slot), self.n_tokens(slot));
        let is_kept = n_tokens == 0 || n_tokens >= shortest;
        if is_kept && n_tokens <= had {
            return Ok(());
        }
        Err(Error::Shorten { n_tokens, shortest, had })
    }

    /// Number of tokens of a sequence; 0 for a slot that this pool does not have.
    pub fn n_tokens(&self, slot: Slot) -> usize {
        self.index(slot).ok().and_then(|index| self.sequences[index]).map_or(0, |s| s.n_tokens)
    }

    /// Number of sequences.
    pub fn n_slots(&self) -> usize {
        self.sequences.iter().flatten().count()
    }

    /// Bytes that all sequences take. What several share counts once.
    pub fn bytes(&self) -> u64 {
        self.caches.iter().map(|cache| self.backend.resident_bytes(cache)).sum()
    }

    /// Bytes that a sequence takes, shared ones included; 0 for a slot that this pool does not have.
    pub fn bytes_of(&self, slot: Slot) -> u64 {
        let Ok(index) = self.index(slot) else { return 0 };
        self.caches.iter().map(|cache| self.backend.slot_bytes(cache, index)).sum()
    }

    /// Bytes that a new sequence of `n_tokens` tokens takes.
    pub fn bytes_for(&self, n_tokens: usize) -> u64 {
        self.specs.iter().map(|spec| self.backend.cache_bytes(spec, n_tokens)).sum()
    }

    /// Bytes that a sequence saves if it shares its first `n_tokens` tokens. A state is never shared by running
    /// sequences, so it saves nothing.
    pub(crate) fn bytes_shared(&self, n_tokens: usize) -> u64 {
        let specs = self.specs.iter().filter(|spec| !spec.kind.is_state());
        specs.map(|spec| self.backend.cache_bytes(spec, n_tokens)).sum()
    }

    /// An upper bound of the bytes that `n_more` tokens add to a sequence.
    ///
    /// # Errors
    /// [`Error::Slot`].
    pub fn growth(&self, slot: Slot, n_more: usize) -> Result<u64> {
        let index = self.index(slot)?;
        Ok(self.growth_to(index, self.n_tokens(slot) + n_more))
    }

    fn growth_to(&self, index: usize, n_tokens: usize) -> u64 {
        self.caches.iter().map(|cache| self.backend.growth_bytes(cache, index, n_tokens)).sum()
    }

    /// The limit of [`CachePool::bytes`].
    pub fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    /// The slot's index in the caches.
    pub(crate) fn index(&self, slot: Slot) -> Result<usize> {
        let index = slot.index as usize;
        match self.sequences.get(index) {
            Some(Some(sequence)) if sequence.serial == slot.serial => Ok(index),
            _ => Err(Error::Slot),
        }
    }

    pub(crate) fn check_model(&self, model_id: u64) -> Result<()> {
        if self.model_id == model_id { Ok(()) } else { Err(Error::ForeignPool) }
    }

    /// Checks that a step of these spans keeps within the limit.
    pub(crate) fn check_room(&self, spans: &[Span]) -> Result<()> {
        let Some(limit_bytes) = self.max_bytes else { return Ok(()) };
        let grow = |s: &Span| self.growth_to(s.slot, s.start + s.n_tokens);
        let want_bytes: u64 = spans.iter().map(grow).sum();
        let used_bytes = self.bytes();
        if want_bytes == 0 || want_bytes + used_bytes <= limit_bytes {
            return Ok(());
        }
        Err(Error::CacheFull { want_bytes, used_bytes, limit_bytes })
    }

    /// Reserves the memory for a step.
    pub(crate) fn reserve(&mut self, spans: &[Span]) -> Result<()> {
        for cache in &mut self.caches {
            for span in spans {
                self.backend.reserve(cache, span.slot, span.start + span.n_tokens)?;
            }
        }
        Ok(())
    }

    pub(crate) fn commit(&mut self, step: &B::Step, spans: &[Span]) {
        for cache in &mut self.caches {
            self.backend.commit(cache, step);
        }
        for span in spans {
            self.set_length(span.slot, span.start + span.n_tokens);
        }
    }

    pub(crate) fn rollback(&mut self, step: &B::Step) {
        for cache in &mut self.caches {
            self.backend.rollback(cache, step);
        }
    }

    fn set_length(&mut self, index: usize, n_tokens: usize) {
        if let Some(Some(sequence)) = self.sequences.get_mut(index) {
            sequence.n_tokens = n_tokens;
        }
    }
}

impl<B: Backend> Drop for CachePool<B> {
    fn drop(&mut self) {
        self.tell(|| Change::Close);
    }
}

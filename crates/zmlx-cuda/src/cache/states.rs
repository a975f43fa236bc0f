//! States of sequences: one block of floats for each, whatever its length.
//!
//! A step writes the new state beside the old one, and its end exchanges them: until then nothing is lost. So a sequence that goes
//! on takes two blocks. Snapshots share the old one. The table has both by whether the sequence's length is even or odd: while
//! steps have one token each it stays as it is, and recorded steps stay right.

use std::sync::Arc;

use zmlx_core::{CacheKind, Result, Span};

use super::{Table, check_slot, check_start};
use crate::device::Device;
use crate::memory::Buffer;
use crate::tensor::ensure;

/// One sequence.
#[derive(Default)]
struct Sequence {
    /// Tokens of all steps that have been committed.
    n_tokens: usize,
    /// The state after them, which snapshots share.
    current: Option<Arc<Buffer>>,
    /// Where the next step writes, its own.
    next: Option<Arc<Buffer>>,
}

/// `States` of `recurrent.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateArgs {
    table: u64,
}

/// What one layer keeps of all sequences.
pub(crate) struct StateCache {
    device: Arc<Device>,
    kind: CacheKind,
    slots: Vec<Sequence>,
    /// States in use; one that several share counts once.
    n_states: u64,
    /// States that nobody uses.
    free: Vec<Arc<Buffer>>,
    table: Table,
}

impl StateCache {
    pub(crate) fn new(device: &Arc<Device>, kind: &CacheKind) -> Result<Self> {
        const OP: &str = "cache";
        let is_sound = match kind {
            CacheKind::Conv { n_channels, kernel } => *n_channels > 0 && *kernel > 1,
            CacheKind::Delta(dims) => dims.is_sound(),
            CacheKind::Full { .. } | CacheKind::Window { .. } | CacheKind::Latent { .. } => false,
        };
        let want = "no zero dimension, a kernel of two or more, key heads that divide the value heads";
        ensure(is_sound, OP, "kind", want, kind)?;
        ensure(kind.state_values() < 1 << 32, OP, "kind", "a state of fewer than 2^32 values", kind)?;
        Ok(Self {
            device: Arc::clone(device),
            kind: *kind,
            slots: Vec::new(),
            n_states: 0,
            free: Vec::new(),
            table: Table::default(),
        })
    }

    pub(crate) fn kind(&self) -> CacheKind {
        self.kind
    }

    pub(crate) fn args(&self) -> StateArgs {
        StateArgs { table: self.table.at() }
    }

    /// Bytes of a sequence of that length that shares nothing.
    pub(crate) fn cache_bytes(kind: &CacheKind, n_tokens: usize) -> u64 {
        // There is no cache of a state that is too large.
        if n_tokens == 0 || kind.state_values() >= 1 << 32 { 0 } else { 8 * kind.state_values() }
    }

    fn state_bytes(&self) -> u64 {
        4 * self.kind.state_values()
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.n_states * self.state_bytes()
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        let n = self.sequence(slot).map_or(0, |s| s.current.iter().chain(&s.next).count());
        n as u64 * self.state_bytes()
    }

    pub(crate) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        let n = match self.sequence(slot) {
            _ if n_tokens <= self.n_tokens(slot) => 0,
            Some(s) => 2 - s.current.iter().chain(&s.next).count(),
            None => 2,
        };
        n as u64 * self.state_bytes()
    }

    pub(crate) fn reserve(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot("reserve", slot)?;
        let row = self.device.row_of(slot);
        if row >= self.slots.len() {
            self.slots.resize_with(row + 1, Sequence::default);
        }
        if n_tokens <= self.slots[row].n_tokens {
            return Ok(());
        }
        if self.table.make_room(&self.device, row + 1, 2)? {
            (0..self.slots.len()).try_for_each(|row| self.put(row))?;
        }
        if self.slots[row].current.is_some() && self.slots[row].next.is_some() {
            return Ok(());
        }
        if self.slots[row].current.is_none() {
            // Before the first token the state is zero.
            let state = self.take()?;
            // SAFETY: the buffer is that long, and nobody else's.
            unsafe {
                self.device.driver.bind()?;
                self.device.driver.fill(state.at(), 0, self.state_bytes() as usize)?;
            }
            self.slots[row].current = Some(state);
        }
        if self.slots[row].next.is_none() {
            self.slots[row].next = Some(self.take()?);
        }
        self.put(row)
    }

    pub(crate) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "fork";
        ensure(from != to, OP, "to", "another slot than from", to)?;
        self.check_length(OP, from, n_tokens)?;
        self.reserve(to, 0)?;
        self.release(to);
        if n_tokens > 0 {
            let current = self.sequence(from).and_then(|s| s.current.clone());
            let row = self.device.row_of(to);
            self.slots[row] = Sequence { n_tokens, current, next: None };
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        self.check_length("truncate", slot, n_tokens)?;
        if n_tokens == 0 {
            self.release(slot);
        } else if let Some(s) = self.slots.get_mut(self.device.row_of(slot)) {
            let next = s.next.take();
            self.give_back(next);
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, slot: usize) {
        if let Some(s) = self.slots.get_mut(self.device.row_of(slot)) {
            let Sequence { current, next, .. } = std::mem::take(s);
            self.give_back(current);
            self.give_back(next);
        }
    }

    /// A state is that of all tokens.
    pub(crate) fn shortest(&self, slot: usize) -> usize {
        self.n_tokens(slot)
    }

    pub(crate) fn commit(&mut self, spans: &[Span]) {
        for span in spans.iter().filter(|span| span.n_tokens > 0) {
            let row = self.device.row_of(span.slot);
            let Some(s) = self.slots.get_mut(row).filter(|s| s.next.is_some()) else { continue };
            s.n_tokens = span.start + span.n_tokens;
            std::mem::swap(&mut s.current, &mut s.next);
            // What others have keeps what it holds.
            if s.next.as_ref().is_some_and(|old| Arc::strong_count(old) > 1) {
                s.next = None;
            }
            if span.n_tokens.is_multiple_of(2) && self.put(row).is_err() {
                // The device is lost: so is the sequence, which the next step finds.
                self.release(span.slot);
            }
        }
    }

    pub(crate) fn rollback(&mut self, spans: &[Span]) {
        for span in spans {
            if self.n_tokens(span.slot) == 0 {
                self.release(span.slot);
            }
        }
    }

    /// Checks that each span begins where its sequence ends, and gets the states of all.
    pub(crate) fn begin(&mut self, op: &'static str, spans: &[Span]) -> Result<()> {
        spans.iter().try_for_each(|span| check_start(op, span, self.n_tokens(span.slot)))?;
        spans.iter().try_for_each(|span| self.reserve(span.slot, span.start + span.n_tokens))
    }

    fn sequence(&self, slot: usize) -> Option<&Sequence> {
        self.slots.get(self.device.row_of(slot))
    }

    fn n_tokens(&self, slot: usize) -> usize {
        self.sequence(slot).map_or(0, |s| s.n_tokens)
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot(op, slot)?;
        let had = self.n_tokens(slot);
        ensure(n_tokens == 0 || n_tokens == had, op, "n_tokens", format_args!("0 or {had}"), n_tokens)
    }

    /// Writes both entries of a row of the table.
    fn put(&self, row: usize) -> Result<()> {
        let s = &self.slots[row];
        let at = |state: &Option<Arc<Buffer>>| state.as_ref().map_or(0, |state| state.at());
        self.table.put(row, s.n_tokens % 2, at(&s.current))?;
        self.table.put(row, 1 - s.n_tokens % 2, at(&s.next))
    }

    /// A state that nobody uses, whatever it holds.
    fn take(&mut self) -> Result<Arc<Buffer>> {
        let state = match self.free.pop() {
            Some(state) => state,
            None => Buffer::lasting(&self.device, self.state_bytes() as usize)?,
        };
        self.n_states += 1;
        Ok(state)
    }

    fn give_back(&mut self, state: Option<Arc<Buffer>>) {
        if let Some(state) = state.filter(|state| Arc::strong_count(state) == 1) {
            self.n_states -= 1;
            self.free.push(state);
        }
    }
}

//! What one layer keeps of all sequences: something of each token, or a state. Kernels find it through a table on the device.

mod states;
mod tokens;

use std::sync::Arc;

use zmlx_core::{CacheSpec, Error, MAX_SLOTS, Result, Span};

use crate::device::Device;
use crate::memory::Buffer;
use crate::tensor::ensure;
pub(crate) use states::{StateArgs, StateCache};
pub(crate) use tokens::{PageShape, TokenCache};

/// What one layer keeps of all sequences.
pub struct CudaCache(Held);

enum Held {
    Tokens(TokenCache),
    States(StateCache),
}

impl std::fmt::Debug for CudaCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.0 {
            Held::Tokens(cache) => cache.kind,
            Held::States(cache) => cache.kind(),
        };
        f.debug_struct("CudaCache").field("kind", &kind).finish_non_exhaustive()
    }
}

/// Calls a method that both kinds have.
macro_rules! of_either {
    ($cache:expr, $method:ident($($arg:expr),*)) => {
        match $cache {
            Held::Tokens(cache) => cache.$method($($arg),*),
            Held::States(cache) => cache.$method($($arg),*),
        }
    };
}

/// Bytes of a sequence of that length that shares nothing.
pub(crate) fn cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64 {
    if spec.kind.is_state() {
        StateCache::cache_bytes(&spec.kind, n_tokens)
    } else {
        TokenCache::cache_bytes(spec, n_tokens)
    }
}

impl CudaCache {
    pub(crate) fn new(device: &Arc<Device>, spec: &CacheSpec) -> Result<Self> {
        Ok(Self(if spec.kind.is_state() {
            Held::States(StateCache::new(device, &spec.kind)?)
        } else {
            Held::Tokens(TokenCache::new(device, spec)?)
        }))
    }

    /// The cache of an op that wants something of each token.
    pub(crate) fn tokens(&self, op: &'static str) -> Result<&TokenCache> {
        match &self.0 {
            Held::Tokens(cache) => Ok(cache),
            Held::States(_) => Err(self.other_kind(op, "what tokens leave there")),
        }
    }

    /// As [`CudaCache::tokens`], for an op that writes.
    pub(crate) fn tokens_mut(&mut self, op: &'static str) -> Result<&mut TokenCache> {
        self.tokens(op)?;
        match &mut self.0 {
            Held::Tokens(cache) => Ok(cache),
            Held::States(_) => {
                Err(Error::Fault { op, backend: crate::NAME, why: "another cache".to_owned() })
            }
        }
    }

    /// The cache of an op that wants a state.
    pub(crate) fn states(&mut self, op: &'static str) -> Result<&mut StateCache> {
        let error = self.other_kind(op, "a state");
        match &mut self.0 {
            Held::States(cache) => Ok(cache),
            Held::Tokens(_) => Err(error),
        }
    }

    fn other_kind(&self, op: &'static str, want: &str) -> Error {
        Error::Precondition { op, what: "cache", want: want.to_owned(), got: format!("{self:?}") }
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        of_either!(&self.0, resident_bytes())
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        of_either!(&self.0, slot_bytes(slot))
    }

    pub(crate) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        of_either!(&self.0, growth_bytes(slot, n_tokens))
    }

    pub(crate) fn reserve(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        of_either!(&mut self.0, reserve(slot, n_tokens))
    }

    pub(crate) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        of_either!(&mut self.0, fork(from, to, n_tokens))
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        of_either!(&mut self.0, truncate(slot, n_tokens))
    }

    pub(crate) fn release(&mut self, slot: usize) {
        of_either!(&mut self.0, release(slot));
    }

    pub(crate) fn shortest(&self, slot: usize) -> usize {
        of_either!(&self.0, shortest(slot))
    }

    pub(crate) fn commit(&mut self, spans: &[Span]) {
        of_either!(&mut self.0, commit(spans));
    }

    pub(crate) fn rollback(&mut self, spans: &[Span]) {
        of_either!(&mut self.0, rollback(spans));
    }
}

/// Addresses by slot and number, on the device.
#[derive(Default)]
struct Table {
    buffer: Option<Arc<Buffer>>,
    n_slots: usize,
    per_slot: usize,
}

impl Table {
    fn at(&self) -> u64 {
        self.buffer.as_ref().map_or(0, |b| b.at())
    }

    fn per_slot(&self) -> usize {
        self.per_slot
    }

    fn put(&self, row: usize, at: usize, address: u64) -> Result<()> {
        match &self.buffer {
            Some(buffer) => buffer.write(8 * (row * self.per_slot + at), &address.to_le_bytes()),
            None => Ok(()),
        }
    }

    /// Makes the table large enough; true if it is a new one, with nothing in it. That has another address, which recorded
    /// graphs do not know.
    fn make_room(&mut self, device: &Arc<Device>, n_slots: usize, per_slot: usize) -> Result<bool> {
        if n_slots <= self.n_slots && per_slot <= self.per_slot {
            return Ok(false);
        }
        let n_slots = n_slots.max(4).next_power_of_two().max(self.n_slots);
        let per_slot = per_slot.next_power_of_two().max(self.per_slot);
        let buffer = Buffer::lasting(device, 8 * n_slots * per_slot)?;
        device.table_moved();
        *self = Self { buffer: Some(buffer), n_slots, per_slot };
        Ok(true)
    }
}

fn check_slot(op: &'static str, slot: usize) -> Result<()> {
    if slot < MAX_SLOTS {
        return Ok(());
    }
    Err(Error::IndexOutOfRange { op, what: "slot", index: slot, len: MAX_SLOTS })
}

/// Checks that a span begins where its sequence, of `had` tokens, ends.
fn check_start(op: &'static str, span: &Span, had: usize) -> Result<()> {
    let want = format_args!("to start at the {had} tokens cached in slot {}", span.slot);
    ensure(span.start == had, op, "step", want, span.start)
}

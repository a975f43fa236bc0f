//! What one layer keeps of all sequences: entries for each token, or a state.

use super::attention::TokenCache;
use super::recurrent::StateCache;
use zmlx_core::check::ensure;
use zmlx_core::{CacheSpec, Error, MAX_SLOTS, Result, Span};

/// What one layer keeps of all sequences.
#[derive(Debug)]
pub struct CpuCache(Held);

#[derive(Debug)]
enum Held {
    Tokens(TokenCache),
    States(StateCache),
}

/// Calls a method that both kinds of cache have.
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

impl CpuCache {
    pub(crate) fn new(spec: &CacheSpec) -> Result<Self> {
        Ok(Self(if spec.kind.is_state() {
            Held::States(StateCache::new(&spec.kind)?)
        } else {
            Held::Tokens(TokenCache::new(spec)?)
        }))
    }

    /// The cache, for an op that needs entries for each token.
    pub(crate) fn tokens(&mut self, op: &'static str) -> Result<&mut TokenCache> {
        match &mut self.0 {
            Held::Tokens(cache) => Ok(cache),
            Held::States(cache) => {
                ensure(false, op, "cache", "what tokens leave there", cache.kind()).map(|()| unreachable!())
            }
        }
    }

    /// As [`Self::tokens`], for an op that only reads.
    pub(crate) fn written_tokens(&self, op: &'static str) -> Result<&TokenCache> {
        match &self.0 {
            Held::Tokens(cache) => Ok(cache),
            Held::States(cache) => {
                ensure(false, op, "cache", "what tokens leave there", cache.kind()).map(|()| unreachable!())
            }
        }
    }

    /// The cache, for an op that needs a state.
    pub(crate) fn states(&mut self, op: &'static str) -> Result<&mut StateCache> {
        match &mut self.0 {
            Held::States(cache) => Ok(cache),
            Held::Tokens(cache) => ensure(false, op, "cache", "a state", cache.kind).map(|()| unreachable!()),
        }
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

pub(crate) fn check_slot(op: &'static str, slot: usize) -> Result<()> {
    if slot < MAX_SLOTS {
        return Ok(());
    }
    Err(Error::IndexOutOfRange { op, what: "slot", index: slot, len: MAX_SLOTS })
}

/// Checks that a span begins at the end of its sequence, which has `had` tokens.
pub(crate) fn check_start(op: &'static str, span: &Span, had: usize) -> Result<()> {
    let want = format_args!("to start at the {had} tokens cached in slot {}", span.slot);
    ensure(span.start == had, op, "step", want, span.start)
}

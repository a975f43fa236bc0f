//! The states of all sequences in one layer: one block of floats for each sequence, whatever its length.
//!
//! A step writes the new state beside the old one, and the commit exchanges them. Until then the old state is intact.
//! So a sequence that continues takes two blocks. Snapshots share the old one.

use std::sync::Arc;

use crate::cache::{check_slot, check_start};
use crate::pool::Aligned;
use zmlx_core::check::ensure;
use zmlx_core::{CacheKind, Result, Span, ensure_memory};

/// Rows of the state are padded to a multiple of this many floats: a cache line, and whole vectors on every level.
const PAD: usize = 16;

/// The state of a sequence: the rows of the convolution, from the oldest on, then the matrices of all heads.
type State = Aligned<f32>;

/// Where the parts of a state are, in floats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Number of rows of the convolution, and number of values in each.
    pub(super) n_conv_rows: usize,
    pub(super) n_channels: usize,
    /// The start of the matrices, the number of their rows over all heads, and the distance between rows.
    pub(super) matrices: usize,
    pub(super) n_rows: usize,
    pub(super) stride: usize,
}

impl Layout {
    fn new(kind: &CacheKind) -> Self {
        let (n_channels, kernel, n_rows, width) = match *kind {
            CacheKind::Conv { n_channels, kernel } => (n_channels, kernel, 0, 0),
            CacheKind::Delta(d) => (d.n_channels(), d.kernel, d.n_v_heads * d.v_dim, d.k_dim),
            CacheKind::Full { .. } | CacheKind::Window { .. } | CacheKind::Latent { .. } => (0, 1, 0, 0),
        };
        let n_conv_rows = kernel.saturating_sub(1);
        let matrices = (n_conv_rows * n_channels).next_multiple_of(PAD);
        Self { n_conv_rows, n_channels, matrices, n_rows, stride: width.next_multiple_of(PAD) }
    }

    fn len(&self) -> usize {
        self.matrices + self.n_rows * self.stride
    }

    fn n_bytes(&self) -> u64 {
        (self.len() * size_of::<f32>()) as u64
    }
}

/// One sequence.
#[derive(Debug, Default)]
struct Sequence {
    /// Number of tokens of all committed steps.
    n_tokens: usize,
    /// The state after these tokens, which snapshots share.
    current: Option<Arc<State>>,
    /// Where the next step writes. It is not shared.
    next: Option<Arc<State>>,
}

/// The states that one layer keeps of all sequences.
#[derive(Debug)]
pub(crate) struct StateCache {
    kind: CacheKind,
    pub(super) layout: Layout,
    slots: Vec<Sequence>,
    /// Number of states in memory. A state that several sequences share counts once.
    n_states: u64,
    places: Vec<Place>,
}

/// The two states of a sequence in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) current: *const f32,
    pub(super) next: *mut f32,
}

impl Place {
    /// The same place `n` floats further on.
    pub(super) fn at(self, n: usize) -> Self {
        // Either both pointers are to states, or both are null and nothing is read.
        Self { current: self.current.wrapping_add(n), next: self.next.wrapping_add(n) }
    }
}

// SAFETY: the states live while the cache is borrowed. Members write disjoint parts of `next` and only read `current`.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

impl StateCache {
    pub(crate) fn new(kind: &CacheKind) -> Result<Self> {
        const OP: &str = "cache";
        let is_sound = match kind {
            CacheKind::Conv { n_channels, kernel } => *n_channels > 0 && *kernel > 1,
            CacheKind::Delta(dims) => dims.is_sound(),
            CacheKind::Full { .. } | CacheKind::Window { .. } | CacheKind::Latent { .. } => false,
        };
        let want = "no zero dimension, a kernel of two or more, key heads that divide the value heads";
        ensure(is_sound, OP, "kind", want, kind)?;
        // Twice the state must be addressable, with room for padding.
        ensure(kind.state_values() < 1 << 40, OP, "kind", "a state of at most 2^40 values", kind)?;
        Ok(Self {
            kind: *kind,
            layout: Layout::new(kind),
            slots: Vec::new(),
            n_states: 0,
            places: Vec::new(),
        })
    }

    pub(crate) fn kind(&self) -> CacheKind {
        self.kind
    }

    /// Bytes of a sequence of that length that shares nothing.
    pub(crate) fn cache_bytes(kind: &CacheKind, n_tokens: usize) -> u64 {
        // There is no cache of a state that is not addressable.
        if n_tokens == 0 || kind.state_values() >= 1 << 40 { 0 } else { 2 * Layout::new(kind).n_bytes() }
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.n_states * self.layout.n_bytes()
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        let n = self.slots.get(slot).map_or(0, |s| s.current.iter().chain(&s.next).count());
        n as u64 * self.layout.n_bytes()
    }

    pub(crate) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        let n = match self.slots.get(slot) {
            _ if n_tokens <= self.n_tokens(slot) => 0,
            Some(s) => 2 - s.current.iter().chain(&s.next).count(),
            None => 2,
        };
        n as u64 * self.layout.n_bytes()
    }

    pub(crate) fn reserve(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot("reserve", slot)?;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, Sequence::default);
        }
        let sequence = &mut self.slots[slot];
        if n_tokens <= sequence.n_tokens {
            return Ok(());
        }
        // Before the first token the state is zero.
        for (state, fill) in [(&mut sequence.current, 0.0), (&mut sequence.next, unwritten())] {
            if state.is_none() {
                ensure_memory("reserve", self.layout.len() * size_of::<f32>())?;
                let mut new = State::default();
                new.reserve_exact(self.layout.len());
                new.resize(self.layout.len(), fill);
                *state = Some(Arc::new(new));
                self.n_states += 1;
            }
        }
        Ok(())
    }

    pub(crate) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "fork";
        ensure(from != to, OP, "to", "another slot than from", to)?;
        self.check_length(OP, from, n_tokens)?;
        self.reserve(to, 0)?;
        self.release(to);
        if n_tokens > 0 {
            let current = self.slots.get(from).and_then(|s| s.current.clone());
            self.slots[to] = Sequence { n_tokens, current, next: None };
        }
        Ok(())
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        self.check_length("truncate", slot, n_tokens)?;
        if n_tokens == 0 {
            self.release(slot);
        } else if let Some(s) = self.slots.get_mut(slot) {
            drop_state(&mut self.n_states, s.next.take());
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, slot: usize) {
        if let Some(s) = self.slots.get_mut(slot) {
            let Sequence { current, next, .. } = std::mem::take(s);
            drop_state(&mut self.n_states, current);
            drop_state(&mut self.n_states, next);
        }
    }

    /// A state covers all tokens, so it cannot be shortened.
    pub(crate) fn shortest(&self, slot: usize) -> usize {
        self.n_tokens(slot)
    }

    pub(crate) fn commit(&mut self, spans: &[Span]) {
        for span in spans.iter().filter(|span| span.n_tokens > 0) {
            let Some(s) = self.slots.get_mut(span.slot) else { continue };
            if s.next.is_none() {
                continue;
            }
            s.n_tokens = span.start + span.n_tokens;
            std::mem::swap(&mut s.current, &mut s.next);
            // A state that others share keeps its contents.
            if s.next.as_ref().is_some_and(|old| Arc::strong_count(old) > 1) {
                s.next = None;
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

    fn n_tokens(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |s| s.n_tokens)
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot(op, slot)?;
        let had = self.n_tokens(slot);
        ensure(n_tokens == 0 || n_tokens == had, op, "n_tokens", format_args!("0 or {had}"), n_tokens)
    }

    /// Checks that each span begins at the end of its sequence, and collects the states of all spans.
    pub(super) fn begin(&mut self, op: &'static str, spans: &[Span]) -> Result<()> {
        spans.iter().try_for_each(|span| check_start(op, span, self.n_tokens(span.slot)))?;
        self.places.clear();
        for span in spans {
            self.reserve(span.slot, span.start + span.n_tokens)?;
            let s = &mut self.slots[span.slot];
            let next = s.next.as_mut().and_then(Arc::get_mut);
            let place = Place {
                current: s.current.as_ref().map_or(std::ptr::null(), |state| state.as_ptr()),
                next: next.map_or(std::ptr::null_mut(), |state| state.as_mut_ptr()),
            };
            // A span without tokens needs no state.
            let is_there = !place.current.is_null() && !place.next.is_null() || span.n_tokens == 0;
            ensure(is_there, op, "cache", "states of its own", span)?;
            self.places.push(place);
        }
        Ok(())
    }

    /// The states of the spans of the step that began last.
    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }
}

/// What a state holds before it is written.
fn unwritten() -> f32 {
    if cfg!(debug_assertions) { f32::NAN } else { 0.0 }
}

fn drop_state(n_states: &mut u64, state: Option<Arc<State>>) {
    *n_states -= u64::from(state.is_some_and(|state| Arc::strong_count(&state) == 1));
}

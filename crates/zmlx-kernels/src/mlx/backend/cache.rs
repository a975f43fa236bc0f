//! What one layer keeps of all sequences: per sequence two arrays, which forks share until one of them grows.

use mlx_rs::{Array, ops};

use super::f;
use crate::check::ensure;
use crate::metal::Numerics;
use crate::mlx::raw;
use crate::mlx::runtime::NAME;
use crate::{CacheKind, CacheSpec, Error, KvFormat, MAX_SLOTS, Result, Span};

/// Positions that a cache grows by: mlx-lm's step.
const STEP: usize = 256;

/// What one layer keeps of all sequences.
#[derive(Clone, Debug)]
pub struct MlxCache {
    kind: CacheKind,
    /// Bytes of a value, as long as none is stored.
    value_bytes: usize,
    slots: Vec<Sequence>,
}

/// Positions before a window that are kept, so that a sequence can be shortened by a few tokens.
const SLACK: usize = 256;

/// One sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// Tokens of all steps that have been committed.
    n_tokens: usize,
    /// Those before a window that are no longer stored: whole steps of them.
    n_gone: usize,
    stored: Option<Stored>,
    /// The state that a step makes, part by part: it is stored at the step's end.
    made: [Option<Array>; 2],
}

/// Keys and values, or the latents with the rotated keys beside them and nothing: `[1, n_kv_heads, capacity, width]`. What lies behind a sequence's
/// tokens is not used, and what lies before a window is not there. Of a state: the last inputs `[kernel - 1, n_channels]`, and the matrices `[n_k_heads, n_v_heads / n_k_heads,
/// v_dim, k_dim]` or nothing. Forks share the arrays: whoever grows gets new ones, for which MLX copies what is still shared.
#[derive(Clone, Debug)]
struct Stored {
    arrays: [Array; 2],
    /// Equal for those that share their arrays.
    origin: u64,
}

impl Stored {
    fn new(arrays: [Array; 2]) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { arrays, origin: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    fn capacity(&self) -> usize {
        self.arrays[0].shape().get(2).map_or(0, |n| *n as usize)
    }

    fn bytes(&self) -> u64 {
        self.arrays.iter().map(|a| a.nbytes() as u64).sum()
    }
}

/// Values of a token.
fn n_values(kind: CacheKind) -> usize {
    match kind {
        CacheKind::Full { n_kv_heads, head_dim } | CacheKind::Window { n_kv_heads, head_dim, .. } => {
            2 * n_kv_heads * head_dim
        }
        CacheKind::Latent { rank, rope_dim } => rank + rope_dim,
        CacheKind::Conv { .. } | CacheKind::Delta(_) => 0,
    }
}

/// Bytes of a value of such activations: those of a checkpoint are of 16 bits.
fn value_bytes(numerics: Numerics) -> usize {
    match numerics {
        Numerics::Exact => 2,
        Numerics::Accurate => 4,
    }
}

/// Bytes of a state: its matrices are in f32, other values have so many bytes.
fn state_bytes(kind: CacheKind, value_bytes: usize) -> u64 {
    let n_matrices = match kind {
        CacheKind::Delta(d) => (d.n_v_heads * d.v_dim * d.k_dim) as u64,
        _ => 0,
    };
    4 * n_matrices + (kind.state_values() - n_matrices) * value_bytes as u64
}

/// Bytes of a sequence that came at once.
pub(super) fn cache_bytes(spec: &CacheSpec, numerics: Numerics, n_tokens: usize) -> u64 {
    if spec.kind.is_state() {
        return if n_tokens == 0 { 0 } else { state_bytes(spec.kind, value_bytes(numerics)) };
    }
    let capacity = n_tokens.next_multiple_of(STEP) - n_before_window(spec.kind, n_tokens);
    (capacity * n_values(spec.kind) * value_bytes(numerics)) as u64
}

/// Tokens before the window, and its slack, of a sequence of that length: whole steps of them.
fn n_before_window(kind: CacheKind, n_tokens: usize) -> usize {
    match kind {
        // The next token sees `window - 1` of those that are there.
        CacheKind::Window { window, .. } => (n_tokens + 1).saturating_sub(window + SLACK) / STEP * STEP,
        _ => 0,
    }
}

impl Sequence {
    pub(super) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Tokens before the first that is stored.
    pub(super) fn n_gone(&self) -> usize {
        self.n_gone
    }

    /// What is stored of its tokens, and the `n` that were written behind them.
    pub(super) fn used(&self, op: &'static str, n: usize) -> Result<[Array; 2]> {
        let n_stored = self.n_tokens - self.n_gone + n;
        let stored = self.stored.as_ref().filter(|stored| stored.capacity() >= n_stored);
        ensure(stored.is_some(), op, "step", "tokens that were written to the cache", n_stored)?;
        let arrays = stored.map(|stored| &stored.arrays).into_iter().flatten();
        let used = arrays.map(|array| first(op, array, n_stored)).collect::<Result<Vec<_>>>()?;
        used.try_into().map_err(|_| unreachable!("there are two arrays"))
    }

    /// Drops what lies before the first `n` tokens. What cannot be dropped stays.
    fn forget(&mut self, n: usize) {
        let Some(stored) = self.stored.as_ref().filter(|_| n > self.n_gone) else { return };
        let [a, b] = stored.arrays.each_ref().map(|array| without_first("commit", array, n - self.n_gone));
        if let (Ok(a), Ok(b)) = (a, b) {
            (self.stored, self.n_gone) = (Some(Stored::new([a, b])), n);
        }
    }

    /// A part of the state as the step before has left it. Before the first token there is none.
    pub(super) fn state(&self, part: usize) -> Option<&Array> {
        self.stored.as_ref().map(|stored| &stored.arrays[part])
    }

    /// Replaces a part of the state, at the end of the step.
    pub(super) fn set_state(&mut self, part: usize, state: Array) {
        self.made[part] = Some(state);
    }

    /// Writes `new` `[1, heads, n, width]` behind its tokens, and returns all there is. Its length stays.
    pub(super) fn append(&mut self, op: &'static str, new: [&Array; 2]) -> Result<[Array; 2]> {
        let [a, b] = match &self.stored {
            Some(Stored { arrays: [a, b], .. }) => [Some(a), Some(b)],
            None => [None, None],
        };
        let arrays = [self.with(op, a, &[new[0]])?, self.with(op, b, &[new[1]])?];
        let n_stored = self.n_tokens - self.n_gone + new[0].shape()[2] as usize;
        let used = [first(op, &arrays[0], n_stored)?, first(op, &arrays[1], n_stored)?];
        self.stored = Some(Stored::new(arrays));
        Ok(used)
    }

    /// As [`Self::append`] of latents and keys, `parts` of which follow each other in a row.
    pub(super) fn append_latents(&mut self, op: &'static str, parts: &[&Array]) -> Result<Array> {
        let array = self.with(op, self.stored.as_ref().map(|stored| &stored.arrays[0]), parts)?;
        let used = first(op, &array, self.n_tokens - self.n_gone + parts[0].shape()[2] as usize)?;
        self.stored = Some(Stored::new([array, nothing()]));
        Ok(used)
    }

    /// What is stored, with `parts` of new rows `[1, heads, n, width]` behind the sequence's tokens, side by side.
    fn with(&self, op: &'static str, stored: Option<&Array>, parts: &[&Array]) -> Result<Array> {
        let mut shape = parts[0].shape().to_vec();
        let had = self.n_tokens - self.n_gone;
        let n_stored = had + shape[2] as usize;
        let wanted = (had + self.n_gone + shape[2] as usize).next_multiple_of(STEP) - self.n_gone;
        let capacity = stored.map_or(0, |a| a.shape()[2] as usize);
        let mut array = match stored {
            Some(stored) if n_stored <= capacity => stored.clone(),
            _ => {
                shape[2] = (wanted - had) as i32;
                shape[3] = parts.iter().map(|part| part.shape()[3]).sum();
                let zeros = ops::zeros_dtype(&shape, parts[0].dtype()).map_err(f(op))?;
                match stored {
                    Some(stored) if had > 0 => {
                        let used = first(op, stored, had)?;
                        ops::concatenate(&[&used, &zeros], 2).map_err(f(op))?
                    }
                    _ => zeros,
                }
            }
        };
        let mut column = 0;
        for part in parts {
            let mut stop = part.shape().to_vec();
            (stop[2], stop[3]) = (n_stored as i32, column + stop[3]);
            array = raw::slice_update(op, &array, part, &[0, 0, had as i32, column], &stop)?;
            column = stop[3];
        }
        Ok(array)
    }
}

/// In the place of what a kind does not have.
fn nothing() -> Array {
    Array::from_slice::<f32>(&[], &[0])
}

/// The first `n` positions of `[1, heads, capacity, width]`.
fn first(op: &'static str, x: &Array, n: usize) -> Result<Array> {
    let mut stop = x.shape().to_vec();
    if stop[2] as usize == n {
        return Ok(x.clone());
    }
    stop[2] = n as i32;
    raw::slice(op, x, &[0; 4], &stop)
}

/// All but the first `n` positions of `[1, heads, capacity, width]`.
pub(super) fn without_first(op: &'static str, x: &Array, n: usize) -> Result<Array> {
    if n == 0 {
        return Ok(x.clone());
    }
    raw::slice(op, x, &[0, 0, n as i32, 0], x.shape())
}

impl MlxCache {
    pub(super) fn new(spec: &CacheSpec, numerics: Numerics) -> Result<Self> {
        const OP: &str = "cache";
        let is_sound = match spec.kind {
            CacheKind::Conv { n_channels, kernel } => n_channels > 0 && kernel > 1,
            CacheKind::Delta(dims) => dims.is_sound(),
            kind => n_values(kind) > 0,
        };
        // Sizes are counted in 32 bits with a sign.
        let is_sound = is_sound && spec.kind.state_values() < 1 << 31;
        ensure(is_sound, OP, "kind", "no zero dimension, heads that divide each other", spec.kind)?;
        if let CacheKind::Latent { rank, rope_dim } = spec.kind {
            ensure(rank > 0 && rope_dim > 0, OP, "kind", "no zero dimension", spec.kind)?;
        }
        if let CacheKind::Window { window, .. } = spec.kind {
            ensure(window > 0, OP, "window", "at least one token", window)?;
        }
        let unsupported = |why: String| Error::Unsupported { op: OP, backend: NAME, why };
        if spec.format != KvFormat::Native && !spec.kind.is_state() {
            return Err(unsupported(format!("keys and values as {:?} are not implemented", spec.format)));
        }
        Ok(Self { kind: spec.kind, value_bytes: value_bytes(numerics), slots: Vec::new() })
    }

    pub(super) fn kind(&self) -> CacheKind {
        self.kind
    }

    /// The sequence of a slot that exists from now on.
    pub(super) fn sequence(&mut self, slot: usize) -> Result<&mut Sequence> {
        self.reserve(slot)?;
        Ok(&mut self.slots[slot])
    }

    /// Arrays get their memory when they are computed.
    pub(super) fn reserve(&mut self, slot: usize) -> Result<()> {
        check_slot("reserve", slot)?;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, Sequence::default);
        }
        Ok(())
    }

    fn stored(&self) -> impl Iterator<Item = &Stored> {
        self.slots.iter().filter_map(|s| s.stored.as_ref())
    }

    /// Everything that is stored.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.stored().flat_map(|s| &s.arrays)
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        let mut seen: Vec<u64> = Vec::with_capacity(self.slots.len());
        let mut is_new = |s: &&Stored| {
            let new = !seen.contains(&s.origin);
            seen.push(s.origin);
            new
        };
        self.stored().filter(|s| is_new(s)).map(Stored::bytes).sum()
    }

    pub(super) fn slot_bytes(&self, slot: usize) -> u64 {
        self.slots.get(slot).and_then(|s| s.stored.as_ref()).map_or(0, Stored::bytes)
    }

    pub(super) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        let had = self.n_tokens(slot);
        if n_tokens <= had {
            return 0;
        }
        let stored = self.slots.get(slot).and_then(|s| s.stored.as_ref());
        if self.kind.is_state() {
            let is_own = |s: &Stored| self.stored().filter(|o| o.origin == s.origin).count() == 1;
            let bytes = self.stored().next().map(Stored::bytes);
            let bytes = bytes.unwrap_or_else(|| state_bytes(self.kind, self.value_bytes));
            return if stored.is_some_and(is_own) { 0 } else { bytes };
        }
        let capacity = stored.map_or(0, Stored::capacity);
        let is_shared = stored.is_some_and(|s| self.stored().filter(|o| o.origin == s.origin).count() > 1);
        let n_gone = self.slots.get(slot).map_or(0, |s| s.n_gone);
        let fits = n_tokens - n_gone <= capacity;
        let need = if fits { capacity } else { n_tokens.next_multiple_of(STEP) - n_gone };
        let n_new = need.saturating_sub(if is_shared { 0 } else { capacity });
        let position_bytes = match self.stored().next() {
            Some(s) => s.bytes() / s.capacity().max(1) as u64,
            None => (n_values(self.kind) * self.value_bytes) as u64,
        };
        n_new as u64 * position_bytes
    }

    pub(super) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "fork";
        ensure(from != to, OP, "to", "another slot than from", to)?;
        self.check_length(OP, from, n_tokens)?;
        check_slot(OP, to)?;
        let sequence = self.slots.get(from).filter(|_| n_tokens > 0);
        let (n_gone, stored) = sequence.map_or((0, None), |s| (s.n_gone, s.stored.clone()));
        *self.sequence(to)? = Sequence { n_tokens, n_gone, stored, made: [None, None] };
        Ok(())
    }

    pub(super) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        self.check_length("truncate", slot, n_tokens)?;
        if n_tokens == 0 {
            self.release(slot);
        } else if let Some(s) = self.slots.get_mut(slot) {
            s.n_tokens = n_tokens;
        }
        Ok(())
    }

    pub(super) fn release(&mut self, slot: usize) {
        if let Some(s) = self.slots.get_mut(slot) {
            *s = Sequence::default();
        }
    }

    pub(super) fn commit(&mut self, spans: &[Span]) {
        for span in spans {
            let Some(s) = self.slots.get_mut(span.slot) else { continue };
            s.n_tokens = span.start + span.n_tokens;
            s.forget(n_before_window(self.kind, s.n_tokens));
            if self.kind.is_state() && span.n_tokens > 0 {
                let old = s.stored.take().map(|stored| stored.arrays);
                let [old_inputs, old_matrices] = old.map_or([None, None], |arrays| arrays.map(Some));
                let [inputs, matrices] = std::mem::take(&mut s.made);
                s.stored = Some(Stored::new([
                    inputs.or(old_inputs).unwrap_or_else(nothing),
                    matrices.or(old_matrices).unwrap_or_else(nothing),
                ]));
            }
        }
    }

    /// What lies behind a sequence's tokens is not used; a state that was made is not stored.
    pub(super) fn rollback(&mut self, spans: &[Span]) {
        for span in spans {
            if let Some(s) = self.slots.get_mut(span.slot) {
                s.made = [None, None];
            }
        }
    }

    /// A state is that of all tokens; the next token must see all of its window.
    pub(super) fn shortest(&self, slot: usize) -> usize {
        match (self.kind, self.slots.get(slot)) {
            (kind, _) if kind.is_state() => self.n_tokens(slot),
            (CacheKind::Window { window, .. }, Some(s)) if s.n_gone > 0 => s.n_gone + window - 1,
            _ => 0,
        }
    }

    fn n_tokens(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |s| s.n_tokens)
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot(op, slot)?;
        let had = self.n_tokens(slot);
        let is_kept = n_tokens == 0 || n_tokens >= self.shortest(slot);
        let want = format_args!("0, or {} to {had}", self.shortest(slot));
        ensure(is_kept && n_tokens <= had, op, "n_tokens", want, n_tokens)
    }

    /// Checks that each span begins where its sequence ends.
    pub(super) fn check(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        for span in spans {
            let had = self.n_tokens(span.slot);
            ensure(span.start == had, op, "step", format_args!("to start at {had}"), span)?;
        }
        Ok(())
    }
}

fn check_slot(op: &'static str, slot: usize) -> Result<()> {
    if slot < MAX_SLOTS {
        return Ok(());
    }
    Err(Error::IndexOutOfRange { op, what: "slot", index: slot, len: MAX_SLOTS })
}

//! Keys and values of one layer, grown as tokens come: 16-bit integers with a scale for each token and head.
//!
//! A value is off by at most 2⁻¹⁶ of the largest of its row, a hundredth of what bf16 would lose, at the same size.

use crate::cpu::matmul::{MAX_I16, to_integers};
use crate::cpu::pool::{Aligned, CpuTensor};
use crate::error::ensure;
use crate::{Error, KvLayout, Result, Span};

/// Cached tokens by whose number a sequence's memory grows.
const GROW_TOKENS: usize = 256;
/// Rows are padded with zeros to a multiple of this many values: whole vectors on every level.
pub(super) const PAD: usize = 16;

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CpuKvCache {
    pub(super) layout: KvLayout,
    slots: Vec<Slot>,
}

/// One sequence.
#[derive(Debug, Default)]
struct Slot {
    n_tokens: usize,
    heads: Vec<Head>,
}

/// One sequence's keys and values of one kv head. With a latent, the latent is the value and the key's first part, and
/// the rotated key its second.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Keys; or latents.
    pub(super) first: Rows,
    /// Values; or rotated keys.
    pub(super) second: Rows,
}

/// Rows of integers, padded, and their scales.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) values: Aligned<i16>,
    pub(super) scales: Vec<f32>,
}

impl Rows {
    fn reserve(&mut self, n: usize, width: usize) {
        let n_rows = self.scales.len();
        if self.scales.capacity() - n_rows < n {
            // Grown by half as much again, so that a growing context rarely allocates.
            let n = n.next_multiple_of(GROW_TOKENS) + n_rows / 2;
            self.scales.reserve_exact(n);
            self.values.reserve_exact(n * width.next_multiple_of(PAD));
        }
    }

    fn push(&mut self, row: &[f32]) {
        let at = self.values.len();
        self.values.resize(at + row.len().next_multiple_of(PAD), 0);
        let (scale, _) = to_integers(row, MAX_I16, &mut self.values[at..at + row.len()]);
        self.scales.push(scale);
    }

    fn truncate(&mut self, n: usize, width: usize) {
        self.scales.truncate(n);
        self.values.truncate(n * width.next_multiple_of(PAD));
    }
}

impl CpuKvCache {
    pub(in crate::cpu) fn new(layout: KvLayout, n_slots: usize) -> Result<Self> {
        let (n_heads, dims_ok) = match layout {
            KvLayout::Heads { n_kv_heads, head_dim } => (n_kv_heads, n_kv_heads > 0 && head_dim > 0),
            KvLayout::Latent { rank, rope_dim } => (1, rank > 0 && rope_dim > 0),
        };
        ensure(dims_ok && n_slots > 0, "kv_cache", "layout", "no zero dimension", (layout, n_slots))?;
        let slot = || Slot { n_tokens: 0, heads: (0..n_heads).map(|_| Head::default()).collect() };
        Ok(Self { layout, slots: (0..n_slots).map(|_| slot()).collect() })
    }

    pub(in crate::cpu) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        let widths = self.widths();
        let len = self.slots.len();
        let slot = self.slots.get_mut(slot).ok_or(Error::IndexOutOfRange {
            op: "truncate",
            what: "slot",
            index: slot,
            len,
        })?;
        ensure(
            n_tokens <= slot.n_tokens,
            "truncate",
            "n_tokens",
            format_args!("at most {}", slot.n_tokens),
            n_tokens,
        )?;
        slot.n_tokens = n_tokens;
        for head in &mut slot.heads {
            head.first.truncate(n_tokens, widths[0]);
            head.second.truncate(n_tokens, widths[1]);
        }
        Ok(())
    }

    /// Values of a row of [`Head::first`] and of [`Head::second`].
    pub(super) fn widths(&self) -> [usize; 2] {
        match self.layout {
            KvLayout::Heads { head_dim, .. } => [head_dim; 2],
            KvLayout::Latent { rank, rope_dim } => [rank, rope_dim],
        }
    }

    /// Values of a query.
    pub(super) fn q_dim(&self) -> usize {
        match self.layout {
            KvLayout::Heads { head_dim, .. } => head_dim,
            KvLayout::Latent { rank, rope_dim } => rank + rope_dim,
        }
    }

    pub(super) fn n_heads(&self) -> usize {
        self.slots[0].heads.len()
    }

    pub(super) fn head(&self, slot: usize, head: usize) -> &Head {
        &self.slots[slot].heads[head]
    }

    pub(super) fn check(&self, op: &'static str, spans: &[Span], n_tokens: usize) -> Result<()> {
        crate::backend::check_spans(op, spans, n_tokens)?;
        for (i, span) in spans.iter().enumerate() {
            let len = self.slots.len();
            let slot = self.slots.get(span.slot).ok_or(Error::IndexOutOfRange {
                op,
                what: "slot",
                index: span.slot,
                len,
            })?;
            // Two spans of one slot would have to follow each other; nothing needs that.
            let repeated = spans[..i].iter().any(|s| s.slot == span.slot);
            ensure(!repeated, op, "spans", "each slot once", span.slot)?;
            ensure(
                span.start == slot.n_tokens,
                op,
                "span",
                format_args!("to start at the {} tokens cached in slot {}", slot.n_tokens, span.slot),
                span.start,
            )?;
        }
        Ok(())
    }

    /// Appends to each sequence its tokens' rows: `first` and `second` are `[n_tokens, n_heads, width]`.
    pub(super) fn append(&mut self, spans: &[Span], first: &CpuTensor, second: &CpuTensor) {
        let (n_heads, widths) = (self.n_heads(), self.widths());
        let mut t = 0;
        for span in spans {
            let slot = &mut self.slots[span.slot];
            for (h, head) in slot.heads.iter_mut().enumerate() {
                let rows = [(&mut head.first, first), (&mut head.second, second)];
                for ((rows, from), width) in rows.into_iter().zip(widths) {
                    rows.reserve(span.n_tokens, width);
                    for t in t..t + span.n_tokens {
                        rows.push(&from.values()[(t * n_heads + h) * width..][..width]);
                    }
                }
            }
            t += span.n_tokens;
            slot.n_tokens += span.n_tokens;
        }
    }
}

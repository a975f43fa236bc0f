//! Keys and values of one layer, grown as tokens come: 15-bit integers with a scale for each token and head.
//!
//! A value is off by at most 2⁻¹⁵ of the largest of its row, a sixtieth of what bf16 would lose, at the same size.

use super::cells::{Rows, round, stride};
use crate::pool::CpuTensor;
use zmlx_core::check::ensure;
use zmlx_core::{Error, KvLayout, Result, Span};

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CpuKvCache {
    pub(super) layout: KvLayout,
    slots: Vec<Slot>,
    /// A row that is being rounded.
    integers: Vec<i16>,
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

impl CpuKvCache {
    pub(crate) fn new(layout: KvLayout, n_slots: usize) -> Result<Self> {
        let (n_heads, dims_ok) = match layout {
            KvLayout::Heads { n_kv_heads, head_dim } => (n_kv_heads, n_kv_heads > 0 && head_dim > 0),
            KvLayout::Latent { rank, rope_dim } => (1, rank > 0 && rope_dim > 0),
        };
        ensure(dims_ok && n_slots > 0, "kv_cache", "layout", "no zero dimension", (layout, n_slots))?;
        let slot = || Slot { n_tokens: 0, heads: (0..n_heads).map(|_| Head::default()).collect() };
        Ok(Self { layout, slots: (0..n_slots).map(|_| slot()).collect(), integers: Vec::new() })
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
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
        // What lies behind is never looked at: it will be overwritten.
        slot.n_tokens = n_tokens;
        Ok(())
    }

    /// Values of a row of [`Head::first`] and of [`Head::second`].
    pub(super) fn widths(&self) -> [usize; 2] {
        match self.layout {
            KvLayout::Heads { head_dim, .. } => [head_dim; 2],
            KvLayout::Latent { rank, rope_dim } => [rank, rope_dim],
        }
    }

    pub(super) fn n_heads(&self) -> usize {
        self.slots[0].heads.len()
    }

    pub(super) fn head(&self, slot: usize, head: usize) -> &Head {
        &self.slots[slot].heads[head]
    }

    pub(super) fn check(&self, op: &'static str, spans: &[Span], n_tokens: usize) -> Result<()> {
        zmlx_core::check::check_spans(op, spans, n_tokens)?;
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
        let is_latent = matches!(self.layout, KvLayout::Latent { .. });
        self.integers.resize(stride(widths[0].max(widths[1])), 0);
        let mut t = 0;
        for span in spans {
            let slot = &mut self.slots[span.slot];
            for (h, head) in slot.heads.iter_mut().enumerate() {
                for (part, from) in [first, second].into_iter().enumerate() {
                    let (width, stride) = (widths[part], stride(widths[part]));
                    let rows = if part == 0 { &mut head.first } else { &mut head.second };
                    rows.grow(slot.n_tokens + span.n_tokens, stride);
                    let integers = &mut self.integers[..stride];
                    for i in 0..span.n_tokens {
                        let scale =
                            round(&from.values()[((t + i) * n_heads + h) * width..][..width], integers);
                        if part == 0 || is_latent {
                            rows.set_key(slot.n_tokens + i, integers, scale);
                        } else {
                            rows.set_value(slot.n_tokens + i, integers, scale);
                        }
                    }
                }
            }
            t += span.n_tokens;
            slot.n_tokens += span.n_tokens;
        }
    }
}

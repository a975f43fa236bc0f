//! What one layer keeps of the tokens of all sequences: integers with a scale for each token and head, on pages that
//! sequences share.
//!
//! In the native format the integers have 15 bits. A value is off by at most 2⁻¹⁵ of the largest value in its row. This
//! is a sixtieth of the error of bf16, at the same size. The module [`codes`](super::codes) has the other formats.

use super::cells::stride;
use super::codes::{Coding, Order};
use super::pages::{PAGE, PageShape, Pages, Rows};
use crate::cache::{check_slot, check_start};
use crate::pool::CpuTensor;
use zmlx_core::check::ensure;
use zmlx_core::{CacheKind, CacheSpec, Result, Span};

/// What one layer keeps of the tokens of all sequences.
#[derive(Debug)]
pub(crate) struct TokenCache {
    pub(crate) kind: CacheKind,
    pages: Pages,
    slots: Vec<Sequence>,
}

/// One sequence.
#[derive(Debug, Default)]
struct Sequence {
    /// Number of tokens of all committed steps.
    n_tokens: usize,
    /// The page of each [`PAGE`] positions, from the first page that is kept up to the end of the reserved memory.
    table: Vec<u32>,
    /// Number of pages before the window, which have been given back.
    first_page: usize,
}

impl Sequence {
    /// The index in the table of the page of a position.
    fn at(&self, position: usize) -> usize {
        position / PAGE - self.first_page
    }

    /// Number of pages in the table that the first `n_tokens` tokens need.
    fn n_pages(&self, n_tokens: usize) -> usize {
        n_tokens.div_ceil(PAGE).saturating_sub(self.first_page)
    }
}

/// Number of heads of that kind of cache, and the row widths of its two parts.
fn dims(kind: &CacheKind) -> (usize, [usize; 2]) {
    match *kind {
        CacheKind::Full { n_kv_heads, head_dim } | CacheKind::Window { n_kv_heads, head_dim, .. } => {
            (n_kv_heads, [head_dim; 2])
        }
        CacheKind::Latent { rank, rope_dim } => (1, [rank, rope_dim]),
        CacheKind::Conv { .. } | CacheKind::Delta(_) => (0, [0; 2]),
    }
}

/// How the pages of a cache are laid out.
fn page_shape(spec: &CacheSpec) -> Result<PageShape> {
    let (n_heads, widths) = dims(&spec.kind);
    let orders = match spec.kind {
        CacheKind::Full { .. } | CacheKind::Window { .. } => [Order::Keys, Order::Values],
        _ => [Order::Keys; 2],
    };
    Ok(PageShape { n_heads, strides: widths.map(stride), orders, coding: Coding::of(spec.format)? })
}

/// Number of positions before a window that are kept, so that a sequence can be shortened by a few tokens.
const SLACK: usize = 256;

/// Number of pages before the window of a sequence of that length.
fn n_before_window(kind: &CacheKind, n_tokens: usize) -> usize {
    match kind {
        // The next token sees `window - 1` of the tokens that are there.
        CacheKind::Window { window, .. } => (n_tokens + 1).saturating_sub(window + SLACK) / PAGE,
        _ => 0,
    }
}

impl TokenCache {
    pub(crate) fn new(spec: &CacheSpec) -> Result<Self> {
        const OP: &str = "cache";
        let (n_heads, widths) = dims(&spec.kind);
        ensure(n_heads > 0 && widths.iter().all(|w| *w > 0), OP, "kind", "no zero dimension", spec.kind)?;
        if let CacheKind::Window { window, .. } = spec.kind {
            ensure(window > 0, OP, "window", "at least one token", window)?;
        }
        Ok(Self { kind: spec.kind, pages: Pages::new(page_shape(spec)?), slots: Vec::new() })
    }

    /// Bytes of a sequence of that length that shares no page.
    pub(crate) fn cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64 {
        let n_pages = n_tokens.div_ceil(PAGE) - n_before_window(&spec.kind, n_tokens);
        // There is no cache in an unsupported format, so it has no bytes.
        n_pages as u64 * page_shape(spec).map_or(0, |shape| shape.page_bytes())
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.pages.n_used() as u64 * self.pages.shape.page_bytes()
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        let n_pages = self.slots.get(slot).map_or(0, |s| s.table.len());
        n_pages as u64 * self.pages.shape.page_bytes()
    }

    pub(crate) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        let n_pages = match self.slots.get(slot) {
            None => n_tokens.div_ceil(PAGE),
            Some(s) if n_tokens <= s.n_tokens => 0,
            Some(s) => {
                let n_copies = usize::from(self.shared_tail(s).is_some());
                s.n_pages(n_tokens).saturating_sub(s.table.len()) + n_copies
            }
        };
        n_pages as u64 * self.pages.shape.page_bytes()
    }

    /// The index in its table of the page that the sequence will write to next, if other sequences share that page.
    fn shared_tail(&self, s: &Sequence) -> Option<usize> {
        let at = s.at(s.n_tokens);
        s.table.get(at).filter(|id| self.pages.is_shared(**id)).map(|_| at)
    }

    pub(crate) fn reserve(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot("reserve", slot)?;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, Sequence::default);
        }
        if n_tokens <= self.slots[slot].n_tokens {
            return Ok(());
        }
        if let Some(at) = self.shared_tail(&self.slots[slot]) {
            let table = &mut self.slots[slot].table;
            table[at] = self.pages.copy(table[at]);
        }
        let sequence = &mut self.slots[slot];
        while sequence.table.len() < sequence.n_pages(n_tokens) {
            sequence.table.push(self.pages.take());
        }
        Ok(())
    }

    pub(crate) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "fork";
        ensure(from != to, OP, "to", "another slot than from", to)?;
        self.check_length(OP, from, n_tokens)?;
        check_slot(OP, to)?;
        self.reserve(to, 0)?;
        self.release(to);
        // A fork of no tokens needs no page, and it has no pages before a window.
        let first_page = self.slots.get(from).filter(|_| n_tokens > 0).map_or(0, |s| s.first_page);
        let mut table = std::mem::take(&mut self.slots[to].table);
        if let Some(s) = self.slots.get(from) {
            table.extend_from_slice(&s.table[..n_tokens.div_ceil(PAGE) - first_page]);
        }
        table.iter().for_each(|id| self.pages.share(*id));
        self.slots[to] = Sequence { n_tokens, table, first_page };
        Ok(())
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        self.check_length("truncate", slot, n_tokens)?;
        if let Some(s) = self.slots.get_mut(slot) {
            s.n_tokens = n_tokens;
            self.free_behind(slot);
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, slot: usize) {
        if let Some(s) = self.slots.get_mut(slot) {
            s.n_tokens = 0;
            self.free_behind(slot);
        }
    }

    /// Frees the pages after a sequence's tokens.
    fn free_behind(&mut self, slot: usize) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        for id in s.table.drain(s.n_pages(s.n_tokens).min(s.table.len())..) {
            self.pages.give_back(id);
        }
        if s.n_tokens == 0 {
            s.first_page = 0;
        }
    }

    /// The smallest number of tokens above 0 to which the sequence can be shortened.
    pub(crate) fn shortest(&self, slot: usize) -> usize {
        match (self.kind, self.slots.get(slot)) {
            // The next token must see all of its window.
            (CacheKind::Window { window, .. }, Some(s)) if s.first_page > 0 => {
                s.first_page * PAGE + window - 1
            }
            _ => 0,
        }
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot(op, slot)?;
        let (had, shortest) = (self.n_tokens(slot), self.shortest(slot));
        let is_kept = n_tokens == 0 || n_tokens >= shortest;
        let want = format_args!("0, or {shortest} to {had}");
        ensure(is_kept && n_tokens <= had, op, "n_tokens", want, n_tokens)
    }

    fn n_tokens(&self, slot: usize) -> usize {
        self.slots.get(slot).map_or(0, |s| s.n_tokens)
    }

    pub(crate) fn commit(&mut self, spans: &[Span]) {
        for span in spans {
            if let Some(s) = self.slots.get_mut(span.slot) {
                s.n_tokens = (span.start + span.n_tokens).min((s.first_page + s.table.len()) * PAGE);
                let n_gone = n_before_window(&self.kind, s.n_tokens).saturating_sub(s.first_page);
                for id in s.table.drain(..n_gone) {
                    self.pages.give_back(id);
                }
                s.first_page += n_gone;
            }
        }
    }

    pub(crate) fn rollback(&mut self, spans: &[Span]) {
        spans.iter().for_each(|span| self.free_behind(span.slot));
    }

    /// Row widths of the first and the second part.
    pub(super) fn widths(&self) -> [usize; 2] {
        dims(&self.kind).1
    }

    pub(super) fn n_heads(&self) -> usize {
        self.pages.shape.n_heads
    }

    /// The first position that the last of `n_tokens` tokens sees.
    pub(super) fn sees_from(&self, n_tokens: usize) -> usize {
        match self.kind {
            CacheKind::Window { window, .. } => n_tokens.saturating_sub(window),
            _ => 0,
        }
    }

    /// The rows of one part of one head of a sequence.
    pub(super) fn rows(&self, slot: usize, head: usize, part: usize) -> Rows<'_> {
        let Sequence { first_page, table, .. } = &self.slots[slot];
        self.pages.rows((*first_page, table), head, part)
    }

    /// Checks that each span begins at the end of its sequence.
    pub(super) fn check(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        spans.iter().try_for_each(|span| check_start(op, span, self.n_tokens(span.slot)))
    }

    /// Checks that memory is reserved for each sequence up to the end of its span.
    pub(super) fn check_room(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        for span in spans.iter().filter(|span| span.n_tokens > 0) {
            let n_tokens = span.start + span.n_tokens;
            let has_room = self.slots.get(span.slot).is_some_and(|s| s.table.len() >= s.n_pages(n_tokens));
            let want = format_args!("tokens that were written to slot {}", span.slot);
            ensure(has_room, op, "step", want, n_tokens)?;
        }
        Ok(())
    }

    /// Writes the rows of the new tokens after each sequence. `first` and `second` are `[n_tokens, n_heads, width]`.
    pub(super) fn append(&mut self, spans: &[Span], first: &CpuTensor, second: &CpuTensor) -> Result<()> {
        let (n_heads, widths) = (self.n_heads(), self.widths());
        let mut t = 0;
        for span in spans {
            self.reserve(span.slot, span.start + span.n_tokens)?;
            let sequence = &self.slots[span.slot];
            for head in 0..n_heads {
                for (part, from) in [first, second].into_iter().enumerate() {
                    let width = widths[part];
                    for i in 0..span.n_tokens {
                        let row = &from.values()[((t + i) * n_heads + head) * width..][..width];
                        let position = span.start + i;
                        let id = sequence.table[sequence.at(position)];
                        self.pages.write(id, (head, part), position % PAGE, row);
                    }
                }
            }
            t += span.n_tokens;
        }
        Ok(())
    }
}

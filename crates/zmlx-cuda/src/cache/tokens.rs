//! Keys and values of all tokens, or of those in a window: f16, on pages that sequences share.

use std::sync::Arc;

use zmlx_core::{CacheKind, CacheSpec, Error, KvFormat, Result, Span};

use super::{Table, check_slot, check_start};
use crate::NAME;
use crate::device::Device;
use crate::memory::Buffer;
use crate::tensor::ensure;

/// Positions of a page; `PAGE_TOKENS` of the kernels.
pub(crate) const PAGE: usize = 64;
/// Pages that are allocated at once, at first and at most.
const SLAB_PAGES: [usize; 2] = [4, 64];

/// Rows of a page, in values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    pub(crate) n_kv_heads: usize,
    /// Of a head, padded to a multiple of 8.
    pub(crate) key_width: usize,
    pub(crate) value_width: usize,
    /// Whether values are the first part of the keys.
    pub(crate) values_are_keys: bool,
}

impl PageShape {
    fn new(kind: &CacheKind) -> Self {
        let padded = |n: usize| n.next_multiple_of(8);
        match *kind {
            CacheKind::Full { n_kv_heads, head_dim } | CacheKind::Window { n_kv_heads, head_dim, .. } => {
                Self {
                    n_kv_heads,
                    key_width: padded(head_dim),
                    value_width: padded(head_dim),
                    values_are_keys: false,
                }
            }
            CacheKind::Latent { rank, rope_dim } => Self {
                n_kv_heads: 1,
                key_width: padded(rank + rope_dim),
                value_width: padded(rank),
                values_are_keys: true,
            },
            // There is no cache of these.
            CacheKind::Conv { .. } | CacheKind::Delta(_) => {
                Self { n_kv_heads: 0, key_width: 0, value_width: 0, values_are_keys: true }
            }
        }
    }

    /// Where values begin in a page; 0 where they are the first part of the keys.
    pub(crate) fn values_at(&self) -> usize {
        if self.values_are_keys { 0 } else { PAGE * self.n_kv_heads * self.key_width }
    }

    pub(crate) fn value_stride(&self) -> usize {
        if self.values_are_keys {
            self.n_kv_heads * self.key_width
        } else {
            self.n_kv_heads * self.value_width
        }
    }

    fn page_bytes(&self) -> usize {
        let values = if self.values_are_keys { 0 } else { self.value_width };
        2 * PAGE * self.n_kv_heads * (self.key_width + values)
    }
}

/// Tokens that a sequence with a window can be shortened by at any time, as when one was computed too many.
const SPARE: usize = 3 * PAGE;

/// Pages that no token after the first `n_tokens - SPARE` sees.
fn n_before_window(kind: &CacheKind, n_tokens: usize) -> usize {
    match kind {
        CacheKind::Window { window, .. } => (n_tokens + 1).saturating_sub(window + SPARE) / PAGE,
        _ => 0,
    }
}

/// One sequence.
#[derive(Debug, Default)]
struct Sequence {
    /// Tokens of all steps that have been committed.
    n_tokens: usize,
    /// The page of each [`PAGE`] positions, as far as memory is reserved; [`GONE`] before the window.
    pages: Vec<u32>,
    /// Pages that are gone.
    n_gone: usize,
}

/// What stands for a page that lies before the window.
const GONE: u32 = u32::MAX;

impl Sequence {
    fn held(&self) -> &[u32] {
        &self.pages[self.n_gone.min(self.pages.len())..]
    }
}

/// What one layer keeps of all sequences.
pub(crate) struct TokenCache {
    device: Arc<Device>,
    pub(crate) kind: CacheKind,
    pub(crate) shape: PageShape,
    slabs: Vec<Arc<Buffer>>,
    /// Address of each page.
    pages: Vec<u64>,
    /// Sequences that use each page.
    n_uses: Vec<u32>,
    free: Vec<u32>,
    slots: Vec<Sequence>,
    table: Table,
}

impl TokenCache {
    pub(crate) fn new(device: &Arc<Device>, spec: &CacheSpec) -> Result<Self> {
        const OP: &str = "cache";
        let zero = match spec.kind {
            CacheKind::Full { n_kv_heads, head_dim } => n_kv_heads * head_dim == 0,
            CacheKind::Window { n_kv_heads, head_dim, window } => n_kv_heads * head_dim * window == 0,
            CacheKind::Latent { rank, rope_dim } => rank * rope_dim == 0,
            // The caller makes other caches of these.
            CacheKind::Conv { .. } | CacheKind::Delta(_) => true,
        };
        ensure(!zero, OP, "kind", "no zero dimension", spec.kind)?;
        let shape = PageShape::new(&spec.kind);
        let unsupported = |why: String| Err(Error::Unsupported { op: OP, backend: NAME, why });
        if spec.format != KvFormat::Native {
            return unsupported(format!("keys and values as {:?} are not implemented", spec.format));
        }
        if shape.value_width > 512 {
            return unsupported(format!("values of {} per head; 512 are the most", shape.value_width));
        }
        Ok(Self {
            device: Arc::clone(device),
            kind: spec.kind,
            shape,
            slabs: Vec::new(),
            pages: Vec::new(),
            n_uses: Vec::new(),
            free: Vec::new(),
            slots: Vec::new(),
            table: Table::default(),
        })
    }

    /// Bytes of a sequence of that length that shares no page.
    pub(crate) fn cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64 {
        let n_pages = n_tokens.div_ceil(PAGE) - n_before_window(&spec.kind, n_tokens);
        (n_pages * PageShape::new(&spec.kind).page_bytes()) as u64
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        ((self.pages.len() - self.free.len()) * self.shape.page_bytes()) as u64
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        let n_pages = self.sequence(slot).map_or(0, |s| s.held().len());
        (n_pages * self.shape.page_bytes()) as u64
    }

    pub(crate) fn growth_bytes(&self, slot: usize, n_tokens: usize) -> u64 {
        let n_pages = match self.sequence(slot) {
            None => n_tokens.div_ceil(PAGE),
            Some(s) if n_tokens <= s.n_tokens => 0,
            Some(s) => {
                let n_copies = usize::from(self.shared_tail(s).is_some());
                n_tokens.div_ceil(PAGE).saturating_sub(s.pages.len()) + n_copies
            }
        };
        (n_pages * self.shape.page_bytes()) as u64
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
        self.make_room(row + 1, n_tokens.div_ceil(PAGE))?;
        if let Some(at) = self.shared_tail(&self.slots[row]) {
            let (old, new) = (self.slots[row].pages[at], self.take()?);
            // SAFETY: two pages of this cache; the new one is nobody else's.
            unsafe {
                let driver = &self.device.driver;
                driver.bind()?;
                driver.copy_within(
                    self.pages[new as usize],
                    self.pages[old as usize],
                    self.shape.page_bytes(),
                )?;
            }
            self.give_back(old);
            self.slots[row].pages[at] = new;
            self.put(row, at)?;
        }
        while self.slots[row].pages.len() < n_tokens.div_ceil(PAGE) {
            let page = self.take()?;
            self.slots[row].pages.push(page);
            self.put(row, self.slots[row].pages.len() - 1)?;
        }
        Ok(())
    }

    pub(crate) fn fork(&mut self, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "fork";
        ensure(from != to, OP, "to", "another slot than from", to)?;
        self.check_length(OP, from, n_tokens)?;
        self.check_length(OP, to, 0)?;
        self.reserve(to, 0)?;
        self.release(to);
        let n_pages = n_tokens.div_ceil(PAGE);
        let of_from = self.sequence(from).filter(|_| n_tokens > 0);
        let (pages, n_gone) = of_from.map_or((Vec::new(), 0), |s| (s.pages[..n_pages].to_vec(), s.n_gone));
        let row = self.device.row_of(to);
        self.make_room(row + 1, n_pages)?;
        pages[n_gone..].iter().for_each(|page| self.n_uses[*page as usize] += 1);
        self.slots[row] = Sequence { n_tokens, pages, n_gone };
        (n_gone..n_pages).try_for_each(|at| self.put(row, at))
    }

    /// The fewest tokens, apart from none, that the sequence can be shortened to.
    pub(crate) fn shortest(&self, slot: usize) -> usize {
        match (self.kind, self.sequence(slot)) {
            // The next token must see all of its window.
            (CacheKind::Window { window, .. }, Some(s)) if s.n_gone > 0 => s.n_gone * PAGE + window - 1,
            _ => 0,
        }
    }

    pub(crate) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        self.check_length("truncate", slot, n_tokens)?;
        self.shorten(slot, n_tokens);
        Ok(())
    }

    pub(crate) fn release(&mut self, slot: usize) {
        self.shorten(slot, 0);
    }

    pub(crate) fn commit(&mut self, spans: &[Span]) {
        for span in spans {
            let row = self.device.row_of(span.slot);
            let Some(s) = self.slots.get_mut(row) else { continue };
            s.n_tokens = (span.start + span.n_tokens).min(s.pages.len() * PAGE);
            let n_gone = n_before_window(&self.kind, s.n_tokens).max(s.n_gone);
            let gone: Vec<u32> = s.pages[s.n_gone..n_gone].to_vec();
            s.pages[s.n_gone..n_gone].fill(GONE);
            s.n_gone = n_gone;
            gone.into_iter().for_each(|page| self.give_back(page));
        }
    }

    pub(crate) fn rollback(&mut self, spans: &[Span]) {
        for span in spans {
            self.shorten(span.slot, usize::MAX);
        }
    }

    /// Gets the memory for a step's tokens.
    pub(crate) fn reserve_all(&mut self, spans: &[Span]) -> Result<()> {
        spans.iter().try_for_each(|span| self.reserve(span.slot, span.start + span.n_tokens))
    }

    /// Checks that each span begins where its sequence ends.
    pub(crate) fn check(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        spans.iter().try_for_each(|span| check_start(op, span, self.n_tokens(span.slot)))
    }

    /// Checks that each sequence has been given memory up to the end of its span.
    pub(crate) fn check_room(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        for span in spans.iter().filter(|span| span.n_tokens > 0) {
            let n_pages = self.sequence(span.slot).map_or(0, |s| s.pages.len());
            let has_room = span.start + span.n_tokens <= n_pages * PAGE;
            let want = format_args!("tokens that were written to slot {}", span.slot);
            ensure(has_room, op, "step", want, format_args!("{} from {} on", span.n_tokens, span.start))?;
        }
        Ok(())
    }

    /// The table's address, and pages of a slot in it.
    pub(crate) fn table(&self) -> (u64, usize) {
        (self.table.at(), self.table.per_slot())
    }

    fn sequence(&self, slot: usize) -> Option<&Sequence> {
        self.slots.get(self.device.row_of(slot))
    }

    fn n_tokens(&self, slot: usize) -> usize {
        self.sequence(slot).map_or(0, |s| s.n_tokens)
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        check_slot(op, slot)?;
        let (had, shortest) = (self.n_tokens(slot), self.shortest(slot));
        let is_kept = n_tokens == 0 || n_tokens >= shortest;
        let want = format_args!("0, or {shortest} to {had}");
        ensure(is_kept && n_tokens <= had, op, "n_tokens", want, n_tokens)
    }

    /// Where in its list a sequence has a page that it will write to, but shares.
    fn shared_tail(&self, s: &Sequence) -> Option<usize> {
        let at = s.n_tokens / PAGE;
        s.pages.get(at).filter(|page| self.n_uses[**page as usize] > 1).map(|_| at)
    }

    /// Cuts a sequence to `n_tokens` tokens at most, and frees the pages behind them.
    fn shorten(&mut self, slot: usize, n_tokens: usize) {
        let row = self.device.row_of(slot);
        let Some(s) = self.slots.get_mut(row) else { return };
        s.n_tokens = s.n_tokens.min(n_tokens);
        let kept = s.n_tokens.div_ceil(PAGE).min(s.pages.len());
        let n_gone = s.n_gone;
        let cut = s.pages.split_off(kept);
        if kept == 0 {
            s.n_gone = 0;
        }
        cut.into_iter().skip(n_gone.saturating_sub(kept)).for_each(|page| self.give_back(page));
    }

    fn give_back(&mut self, page: u32) {
        let n = &mut self.n_uses[page as usize];
        *n -= 1;
        if *n == 0 {
            self.free.push(page);
        }
    }

    /// A page that nobody uses. What it holds is not read before it is written.
    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            let n = self.pages.len().clamp(SLAB_PAGES[0], SLAB_PAGES[1]);
            let slab = Buffer::lasting(&self.device, n * self.shape.page_bytes())?;
            for i in 0..n {
                self.free.push(self.pages.len() as u32);
                self.pages.push(slab.at() + (i * self.shape.page_bytes()) as u64);
                self.n_uses.push(0);
            }
            self.slabs.push(slab);
        }
        let page = self.free.pop().unwrap_or_default();
        self.n_uses[page as usize] = 1;
        Ok(page)
    }

    /// Writes an entry of the table.
    fn put(&self, row: usize, at: usize) -> Result<()> {
        self.table.put(row, at, self.pages[self.slots[row].pages[at] as usize])
    }

    /// Makes the table large enough.
    fn make_room(&mut self, n_slots: usize, n_pages: usize) -> Result<()> {
        if !self.table.make_room(&self.device, n_slots, n_pages.max(64))? {
            return Ok(());
        }
        for row in 0..self.slots.len() {
            for at in self.slots[row].n_gone..self.slots[row].pages.len() {
                self.put(row, at)?;
            }
        }
        Ok(())
    }
}

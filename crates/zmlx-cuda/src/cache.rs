//! What one layer keeps of all sequences: f32, on pages that sequences share, found through a table on the device.

use std::sync::Arc;

use zmlx_core::{CacheKind, CacheSpec, Error, KvFormat, MAX_SLOTS, Result, Span};

use crate::NAME;
use crate::device::Device;
use crate::memory::Buffer;
use crate::tensor::ensure;

/// Positions of a page; `PAGE_TOKENS` of the kernels.
pub(crate) const PAGE: usize = 64;
/// Pages that are allocated at once, at first and at most.
const SLAB_PAGES: [usize; 2] = [4, 64];

/// Rows of a page, in floats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    pub(crate) n_kv_heads: usize,
    /// Of a head, padded to a multiple of 4.
    pub(crate) key_width: usize,
    pub(crate) value_width: usize,
    /// Whether values are the first part of the keys.
    pub(crate) values_are_keys: bool,
}

impl PageShape {
    fn new(kind: &CacheKind) -> Self {
        let padded = |n: usize| n.next_multiple_of(4);
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
        4 * PAGE * self.n_kv_heads * (self.key_width + values)
    }
}

/// Bytes of a sequence of that length that shares no page.
pub(crate) fn cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64 {
    (n_tokens.div_ceil(PAGE) * PageShape::new(&spec.kind).page_bytes()) as u64
}

/// One sequence.
#[derive(Debug, Default)]
struct Sequence {
    /// Tokens of all steps that have been committed.
    n_tokens: usize,
    /// The page of each [`PAGE`] positions, as far as memory is reserved.
    pages: Vec<u32>,
}

/// What one layer keeps of all sequences.
pub struct CudaCache {
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

/// Addresses of pages by slot and number, on the device.
struct Table {
    buffer: Option<Arc<Buffer>>,
    n_slots: usize,
    per_slot: usize,
}

impl std::fmt::Debug for CudaCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaCache").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl CudaCache {
    pub(crate) fn new(device: &Arc<Device>, spec: &CacheSpec) -> Result<Self> {
        const OP: &str = "cache";
        let zero = match spec.kind {
            CacheKind::Full { n_kv_heads, head_dim } => n_kv_heads * head_dim == 0,
            CacheKind::Window { n_kv_heads, head_dim, window } => n_kv_heads * head_dim * window == 0,
            CacheKind::Latent { rank, rope_dim } => rank * rope_dim == 0,
            CacheKind::Conv { .. } | CacheKind::Delta(_) => {
                let why = "the states of convolutions and delta rules are not implemented: use --backend cpu";
                return Err(Error::Unsupported { op: OP, backend: NAME, why: why.to_owned() });
            }
        };
        ensure(!zero, OP, "kind", "no zero dimension", spec.kind)?;
        let shape = PageShape::new(&spec.kind);
        let unsupported = |why: String| Err(Error::Unsupported { op: OP, backend: NAME, why });
        if spec.format != KvFormat::Native {
            return unsupported(format!("keys and values as {:?} are not implemented", spec.format));
        }
        if let CacheKind::Window { .. } = spec.kind {
            return unsupported("windows are not implemented: use --backend cpu".to_owned());
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
            table: Table { buffer: None, n_slots: 0, per_slot: 0 },
        })
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        ((self.pages.len() - self.free.len()) * self.shape.page_bytes()) as u64
    }

    pub(crate) fn slot_bytes(&self, slot: usize) -> u64 {
        let n_pages = self.sequence(slot).map_or(0, |s| s.pages.len());
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
        if slot >= MAX_SLOTS {
            return Err(Error::IndexOutOfRange { op: "reserve", what: "slot", index: slot, len: MAX_SLOTS });
        }
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
        let pages = self.sequence(from).map_or(Vec::new(), |s| s.pages[..n_pages].to_vec());
        let row = self.device.row_of(to);
        self.make_room(row + 1, n_pages)?;
        pages.iter().for_each(|page| self.n_uses[*page as usize] += 1);
        self.slots[row] = Sequence { n_tokens, pages };
        (0..n_pages).try_for_each(|at| self.put(row, at))
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
            if let Some(s) = self.slots.get_mut(row) {
                s.n_tokens = (span.start + span.n_tokens).min(s.pages.len() * PAGE);
            }
        }
    }

    pub(crate) fn rollback(&mut self, spans: &[Span]) {
        for span in spans {
            self.shorten(span.slot, usize::MAX);
        }
    }

    /// Checks that each span begins where its sequence ends.
    pub(crate) fn check(&self, op: &'static str, spans: &[Span]) -> Result<()> {
        for span in spans {
            let had = self.n_tokens(span.slot);
            let want = format_args!("to start at the {had} tokens cached in slot {}", span.slot);
            ensure(span.start == had, op, "step", want, span.start)?;
        }
        Ok(())
    }

    /// The table's address, and pages of a slot in it.
    pub(crate) fn table(&self) -> (u64, usize) {
        (self.table.buffer.as_ref().map_or(0, |b| b.at()), self.table.per_slot)
    }

    fn sequence(&self, slot: usize) -> Option<&Sequence> {
        self.slots.get(self.device.row_of(slot))
    }

    fn n_tokens(&self, slot: usize) -> usize {
        self.sequence(slot).map_or(0, |s| s.n_tokens)
    }

    fn check_length(&self, op: &'static str, slot: usize, n_tokens: usize) -> Result<()> {
        if slot >= MAX_SLOTS {
            return Err(Error::IndexOutOfRange { op, what: "slot", index: slot, len: MAX_SLOTS });
        }
        let had = self.n_tokens(slot);
        ensure(n_tokens <= had, op, "n_tokens", format_args!("at most {had}"), n_tokens)
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
        for page in s.pages.split_off(kept) {
            self.give_back(page);
        }
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
        let page = self.pages[self.slots[row].pages[at] as usize];
        match &self.table.buffer {
            Some(buffer) => buffer.write(8 * (row * self.table.per_slot + at), &page.to_le_bytes()),
            None => Ok(()),
        }
    }

    /// Makes the table large enough. Another table has another address, which recorded graphs do not know.
    fn make_room(&mut self, n_slots: usize, n_pages: usize) -> Result<()> {
        let table = &self.table;
        if n_slots <= table.n_slots && n_pages <= table.per_slot {
            return Ok(());
        }
        let n_slots = n_slots.max(4).next_power_of_two().max(table.n_slots);
        let per_slot = n_pages.max(64).next_power_of_two().max(table.per_slot);
        let buffer = Buffer::lasting(&self.device, 8 * n_slots * per_slot)?;
        self.device.table_moved();
        self.table = Table { buffer: Some(buffer), n_slots, per_slot };
        for row in 0..self.slots.len() {
            for at in 0..self.slots[row].pages.len() {
                self.put(row, at)?;
            }
        }
        Ok(())
    }
}

//! Pages: each holds [`PAGE`] positions of a layer. Sequences share a page until one of them writes to it.

use super::cells::{PAD, WIDE, round, set_key, set_value};
use super::codes::{Coding, Order};
use super::kernel::BLOCK;
use crate::pool::Aligned;

/// Positions of a page. No block spans two pages, so the rows of a block are contiguous.
pub(super) const PAGE: usize = BLOCK;

/// The layout of a page: for each head the rows of two parts, position by position.
///
/// The two parts are keys and values. With latent attention they are the latents, which are both keys and values, and
/// the rotated keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageShape {
    pub(super) n_heads: usize,
    /// Number of elements in a padded row of each part.
    pub(super) strides: [usize; 2],
    /// The order in which the integers of each part are stored.
    pub(super) orders: [Order; 2],
    /// How values become codes. `None` if integers are stored as cells.
    pub(super) coding: Option<Coding>,
}

/// An offset or a size in a page, for each kind of data: integers (or their codes), multipliers of groups, and scales.
#[derive(Clone, Copy, Debug)]
struct Place {
    integers: usize,
    multipliers: usize,
    scales: usize,
}

impl PageShape {
    /// The size of one head's rows of a part.
    fn of_part(&self, part: usize) -> Place {
        let stride = self.strides[part];
        let n_groups = self.coding.map_or(0, |coding| coding.n_groups(stride));
        Place { integers: PAGE * stride, multipliers: PAGE * n_groups, scales: PAGE }
    }

    /// The offset of one head's rows of a part.
    fn at(&self, head: usize, part: usize) -> Place {
        let [first, second] = [self.of_part(0), self.of_part(1)];
        let at = |first: usize, second: usize| head * (first + second) + part * first;
        Place {
            integers: at(first.integers, second.integers),
            multipliers: at(first.multipliers, second.multipliers),
            scales: at(first.scales, second.scales),
        }
    }

    /// The size of all rows.
    fn total(&self) -> Place {
        self.at(self.n_heads, 0)
    }

    pub(super) fn page_bytes(&self) -> u64 {
        let Place { integers, multipliers, scales } = self.total();
        let n_bytes = self.coding.map_or(2 * integers, |coding| coding.n_bytes(integers));
        (n_bytes + 2 * multipliers + 4 * scales) as u64
    }
}

/// The rows of some positions.
#[derive(Debug, Default)]
struct Page {
    /// Integers in pairs; empty if they are stored as codes.
    cells: Aligned<u32>,
    /// Codes and multipliers; empty if integers are stored as cells.
    codes: Aligned<u8>,
    multipliers: Aligned<u16>,
    scales: Aligned<f32>,
}

impl Page {
    fn new(shape: &PageShape) -> Self {
        fn filled<T: Clone>(len: usize, value: T) -> Aligned<T> {
            let mut all = Aligned::default();
            all.reserve_exact(len);
            all.resize(len, value);
            all
        }
        let Place { integers, multipliers, scales } = shape.total();
        Self {
            cells: filled(if shape.coding.is_none() { integers / 2 } else { 0 }, 0),
            codes: filled(shape.coding.map_or(0, |coding| coding.n_bytes(integers)), 0),
            multipliers: filled(multipliers, 0),
            scales: filled(scales, 0.0),
        }
    }
}

/// All pages of a layer. A page is used by one or more sequences. A page that no sequence uses has only a number and no
/// memory.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) shape: PageShape,
    pages: Vec<Page>,
    /// Number of sequences that use each page.
    n_uses: Vec<u32>,
    free: Vec<u32>,
    /// Buffers for the row that is being rounded and its multipliers.
    integers: Vec<i16>,
    multipliers: Vec<u16>,
}

impl Pages {
    pub(super) fn new(shape: PageShape) -> Self {
        let widest = shape.strides[0].max(shape.strides[1]);
        let multipliers = vec![0; shape.coding.map_or(0, |coding| coding.n_groups(widest))];
        let (pages, n_uses, free) = (Vec::new(), Vec::new(), Vec::new());
        Self { shape, pages, n_uses, free, integers: vec![0; widest], multipliers }
    }

    /// Number of pages that are not free.
    pub(super) fn n_used(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// Returns an unused page. Its contents are not read before they are written. The exception is its integers, which
    /// are small enough to be multiplied.
    pub(super) fn take(&mut self) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.pages.push(Page::default());
            self.n_uses.push(0);
            (self.pages.len() - 1) as u32
        });
        self.pages[id as usize] = Page::new(&self.shape);
        if cfg!(debug_assertions) {
            // Debug builds write the largest integers, so a read of unwritten data changes a result and fails a test.
            let page = &mut self.pages[id as usize];
            page.cells.fill(0x3fff_3fff);
            page.codes.fill(0x77);
            page.multipliers.fill(self.shape.coding.map_or(0, Coding::largest_multiplier));
            page.scales.fill(f32::NAN);
        }
        self.n_uses[id as usize] = 1;
        id
    }

    /// Records that another sequence uses the page.
    pub(super) fn share(&mut self, id: u32) {
        self.n_uses[id as usize] += 1;
    }

    pub(super) fn is_shared(&self, id: u32) -> bool {
        self.n_uses[id as usize] > 1
    }

    /// Records that a sequence no longer uses the page. Its memory goes back to the system when no sequence uses it.
    pub(super) fn give_back(&mut self, id: u32) {
        let n = &mut self.n_uses[id as usize];
        *n -= 1;
        if *n == 0 {
            self.pages[id as usize] = Page::default();
            self.free.push(id);
        }
    }

    /// Returns a copy for one of the sequences that share the page.
    pub(super) fn copy(&mut self, id: u32) -> u32 {
        let copy = self.take();
        let [from, to] =
            self.pages.get_disjoint_mut([id as usize, copy as usize]).expect("a page in use is not taken");
        to.cells.copy_from_slice(&from.cells);
        to.codes.copy_from_slice(&from.codes);
        to.multipliers.copy_from_slice(&from.multipliers);
        to.scales.copy_from_slice(&from.scales);
        self.give_back(id);
        copy
    }

    /// The rows of one part of a head on the pages of `table`. The table begins with page number `first_page` of the
    /// sequence.
    pub(super) fn rows<'a>(
        &'a self,
        (first_page, table): (usize, &'a [u32]),
        head: usize,
        part: usize,
    ) -> Rows<'a> {
        let (stride, order) = (self.shape.strides[part], self.shape.orders[part]);
        let (at, coding) = (self.shape.at(head, part), self.shape.coding);
        Rows { pages: &self.pages, first_page, table, at, stride, order, coding }
    }

    /// Writes the row of position `at` of page `id`.
    pub(super) fn write(&mut self, id: u32, (head, part): (usize, usize), at: usize, row: &[f32]) {
        let (stride, order) = (self.shape.strides[part], self.shape.orders[part]);
        let place = self.shape.at(head, part);
        let (page, integers) = (&mut self.pages[id as usize], &mut self.integers[..stride]);
        page.scales[place.scales + at] = match self.shape.coding {
            None => {
                let scale = round(row, integers);
                let cells = &mut page.cells[place.integers / 2..][..PAGE * stride / 2];
                match order {
                    Order::Keys => set_key(cells, at, integers),
                    Order::Values => set_value(cells, at, integers),
                }
                scale
            }
            Some(coding) => {
                let multipliers = &mut self.multipliers[..coding.n_groups(stride)];
                let scale = coding.round(row, integers, multipliers);
                let codes =
                    &mut page.codes[coding.n_bytes(place.integers)..][..coding.n_bytes(PAGE * stride)];
                coding.set(order, at, integers, codes);
                for (group, multiplier) in multipliers.iter().enumerate() {
                    let at = place.multipliers + coding.multiplier_at(at, group, stride);
                    page.multipliers[at] = *multiplier;
                }
                scale
            }
        };
    }
}

/// The rows of one part of one head, position by position: keys or values.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pages: &'a [Page],
    first_page: usize,
    /// The page of each [`PAGE`] positions from the first page on.
    table: &'a [u32],
    at: Place,
    stride: usize,
    order: Order,
    coding: Option<Coding>,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn page(&self, position: usize) -> &'a Page {
        &self.pages[self.table[position / PAGE - self.first_page] as usize]
    }

    /// The cells of `n` positions from `from` on, which begins a tile; all are on one page. Returns their address in
    /// the page, or expands them into `out`.
    #[inline(always)]
    pub(super) fn cells(&self, from: usize, n: usize, out: &mut Aligned<i16>) -> *const u32 {
        debug_assert!(self.stride.is_multiple_of(PAD) && from.is_multiple_of(WIDE));
        let (page, at) = (self.page(from), from % PAGE);
        let integers = self.at.integers + at * self.stride;
        let Some(coding) = self.coding else {
            return page.cells[integers / 2..].as_ptr();
        };
        let n_rows = n.next_multiple_of(WIDE);
        let n_groups = coding.n_groups(self.stride);
        if out.len() < n_rows * self.stride {
            out.resize(n_rows * self.stride, 0);
        }
        coding.expand(
            self.order,
            self.stride,
            &page.codes[coding.n_bytes(integers)..][..coding.n_bytes(n_rows * self.stride)],
            &page.multipliers[self.at.multipliers + at * n_groups..][..n_rows * n_groups],
            &mut out[..n_rows * self.stride],
        );
        out.as_ptr().cast()
    }

    /// The bytes of the integers or codes of up to `n` positions from `from` on, as far as they are on its page.
    #[inline(always)]
    pub(super) fn bytes(&self, from: usize, n: usize) -> &'a [u8] {
        let page = self.page(from);
        let integers = self.at.integers + from % PAGE * self.stride;
        match self.coding {
            None => {
                let cells = &page.cells[integers / 2..][..n * self.stride / 2];
                // SAFETY: these are the bytes of the words, which are initialised.
                unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), 4 * cells.len()) }
            }
            Some(coding) => &page.codes[coding.n_bytes(integers)..][..coding.n_bytes(n * self.stride)],
        }
    }

    /// The scales of a position and of all later ones on its page.
    #[inline(always)]
    pub(super) fn scales(&self, position: usize) -> &'a [f32] {
        &self.page(position).scales[self.at.scales..][..PAGE][position % PAGE..]
    }
}

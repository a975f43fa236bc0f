//! Pages: the memory of [`PAGE`] positions of a layer, which sequences share until one of them writes to it.

use super::cells::{PAD, set_key, set_value};
use super::kernel::BLOCK;
use crate::pool::Aligned;

/// Positions of a page. No block straddles two pages, so that a block's rows lie one behind the other.
pub(super) const PAGE: usize = BLOCK;

/// How a page's rows are laid out: of each head the rows of two parts, position by position.
///
/// The parts are keys and values; or latents, which are keys and values, and rotated keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageShape {
    pub(super) n_heads: usize,
    /// Values of a padded row of each part.
    pub(super) strides: [usize; 2],
}

impl PageShape {
    /// Words and scales of all rows.
    fn lens(&self) -> (usize, usize) {
        let [first, second] = self.strides;
        (self.n_heads * PAGE * (first + second) / 2, self.n_heads * PAGE * 2)
    }

    /// Where the rows of a part of a head begin among the words and the scales.
    fn at(&self, head: usize, part: usize) -> (usize, usize) {
        let [first, second] = self.strides;
        let before = if part == 0 { 0 } else { first };
        (PAGE * (head * (first + second) + before) / 2, PAGE * (2 * head + part))
    }

    pub(super) fn page_bytes(&self) -> u64 {
        let (n_words, n_scales) = self.lens();
        (4 * (n_words + n_scales)) as u64
    }
}

/// The rows of some positions, as cells and their scales.
#[derive(Debug, Default)]
struct Page {
    cells: Aligned<u32>,
    scales: Aligned<f32>,
}

/// All pages of a layer. A page is used by one or more sequences, or free: then it keeps its memory for the next one.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) shape: PageShape,
    pages: Vec<Page>,
    /// Sequences that use each page.
    n_uses: Vec<u32>,
    free: Vec<u32>,
}

impl Pages {
    pub(super) fn new(shape: PageShape) -> Self {
        Self { shape, pages: Vec::new(), n_uses: Vec::new(), free: Vec::new() }
    }

    /// Number of pages that are not free.
    pub(super) fn n_used(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// A page that nobody uses. What it holds is not read before it is written, but for its integers, which are small
    /// enough to be multiplied.
    pub(super) fn take(&mut self) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            let (n_words, n_scales) = self.shape.lens();
            let mut page = Page::default();
            page.cells.reserve_exact(n_words);
            page.cells.resize(n_words, 0);
            page.scales.reserve_exact(n_scales);
            page.scales.resize(n_scales, 0.0);
            self.pages.push(page);
            self.n_uses.push(0);
            (self.pages.len() - 1) as u32
        });
        if cfg!(debug_assertions) {
            // The largest integers: whoever looks at them without need shows.
            let page = &mut self.pages[id as usize];
            page.cells.fill(0x3fff_3fff);
            page.scales.fill(f32::NAN);
        }
        self.n_uses[id as usize] = 1;
        id
    }

    /// Another sequence uses the page.
    pub(super) fn share(&mut self, id: u32) {
        self.n_uses[id as usize] += 1;
    }

    pub(super) fn is_shared(&self, id: u32) -> bool {
        self.n_uses[id as usize] > 1
    }

    /// A sequence no longer uses the page.
    pub(super) fn give_back(&mut self, id: u32) {
        let n = &mut self.n_uses[id as usize];
        *n -= 1;
        if *n == 0 {
            self.free.push(id);
        }
    }

    /// A copy for one of the sequences that share the page.
    pub(super) fn copy(&mut self, id: u32) -> u32 {
        let copy = self.take();
        let [from, to] =
            self.pages.get_disjoint_mut([id as usize, copy as usize]).expect("a page in use is not taken");
        to.cells.copy_from_slice(&from.cells);
        to.scales.copy_from_slice(&from.scales);
        self.give_back(id);
        copy
    }

    /// The rows of a part of a head on the pages of `table`, which begins with page number `first_page` of the sequence.
    pub(super) fn rows<'a>(
        &'a self,
        (first_page, table): (usize, &'a [u32]),
        head: usize,
        part: usize,
    ) -> Rows<'a> {
        let (words_at, scales_at) = self.shape.at(head, part);
        Rows { pages: &self.pages, first_page, table, words_at, scales_at }
    }

    /// Writes the padded row of a position in page `id` as a key.
    pub(super) fn set_key(&mut self, id: u32, (head, part): (usize, usize), at: usize, row: (&[i16], f32)) {
        let (cells, scales) = self.part_mut(id, head, part);
        scales[at] = row.1;
        set_key(cells, at, row.0);
    }

    /// Writes the padded row of a position in page `id` as a value.
    pub(super) fn set_value(&mut self, id: u32, (head, part): (usize, usize), at: usize, row: (&[i16], f32)) {
        let (cells, scales) = self.part_mut(id, head, part);
        scales[at] = row.1;
        set_value(cells, at, row.0);
    }

    fn part_mut(&mut self, id: u32, head: usize, part: usize) -> (&mut [u32], &mut [f32]) {
        let (words_at, scales_at) = self.shape.at(head, part);
        let n_words = PAGE * self.shape.strides[part] / 2;
        let page = &mut self.pages[id as usize];
        (&mut page.cells[words_at..][..n_words], &mut page.scales[scales_at..][..PAGE])
    }
}

/// The rows of one part of one head, position by position: keys or values.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pages: &'a [Page],
    first_page: usize,
    /// The page of each [`PAGE`] positions from the first page on.
    table: &'a [u32],
    words_at: usize,
    scales_at: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn page(&self, position: usize) -> &'a Page {
        &self.pages[self.table[position / PAGE - self.first_page] as usize]
    }

    /// Where the row of a position begins that begins a tile; what follows it on its page comes behind.
    #[inline(always)]
    pub(super) fn at(&self, position: usize, stride: usize) -> *const u32 {
        debug_assert!(stride.is_multiple_of(PAD));
        self.page(position).cells[self.words_at + position % PAGE * stride / 2..].as_ptr()
    }

    /// The scales of a position and of all that follow it on its page.
    #[inline(always)]
    pub(super) fn scales(&self, position: usize) -> &'a [f32] {
        &self.page(position).scales[self.scales_at..][..PAGE][position % PAGE..]
    }
}

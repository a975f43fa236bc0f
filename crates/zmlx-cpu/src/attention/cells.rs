//! Keys and values as integers of 15 bits, in the order in which the products read them.
//!
//! Products work on *cells*: 32-bit lanes with two integers each, which one instruction multiplies and adds up. Lanes
//! are the *columns* of the matrix that is multiplied, so no sum crosses lanes. The columns of keys are positions. The
//! columns of values are the elements of a row. Cells are stored in units of [`GROUP`] cells of [`WIDE`] columns: the
//! first cells of these columns, then the second cells, and so on.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use crate::integers::to_integers;
use crate::simd::Simd;

/// The largest integer. The products of [`GROUP`] cells fit into a 32-bit sum.
pub(super) const LARGEST: i16 = 16383;
/// Cells whose products are summed as integers.
pub(super) const GROUP: usize = 4;
/// Columns of a unit: the number of lanes in the widest vectors.
pub(super) const WIDE: usize = 16;
/// Rows are padded with zeros to a multiple of this many elements, which makes whole units of both keys and values.
pub(super) const PAD: usize = 2 * WIDE;

const _: () = assert!(2 * GROUP as i64 * (LARGEST as i64 * LARGEST as i64) <= i32::MAX as i64);

/// Number of elements in a padded row.
pub(super) const fn stride(width: usize) -> usize {
    width.next_multiple_of(PAD)
}

/// Writes the row as integers, padded with zeros, and returns their scale. The scale is not finite if one of the values
/// is not.
#[inline(always)]
pub(super) fn round(row: &[f32], out: &mut [i16]) -> f32 {
    let (out, padding) = out.split_at_mut(row.len());
    padding.fill(0);
    let (scale, _) = to_integers(row, f32::from(LARGEST), out);
    if !scale.is_finite() {
        // NaN became some integer that may be too large. It is dropped, because the scale already marks the row.
        out.fill(0);
    }
    scale
}

/// Writes a padded key or query as cells. A cell pairs numbers that are [`WIDE`] apart, so that [`to_values`] finds
/// neighbours next to each other.
#[inline(always)]
pub(super) fn to_cells(integers: &[i16], out: &mut [u32]) {
    let (blocks, _) = integers.as_chunks::<PAD>();
    let (out, _) = out.as_chunks_mut::<WIDE>();
    for b in 0..blocks.len() {
        for i in 0..WIDE {
            let (lower, upper) = (blocks[b][i].cast_unsigned(), blocks[b][WIDE + i].cast_unsigned());
            out[b][i] = u32::from(lower) | u32::from(upper) << 16;
        }
    }
}

/// Writes the padded key of position `at` to its place in `cells`.
pub(super) fn set_key(cells: &mut [u32], at: usize, integers: &[i16]) {
    let n = integers.len() / 2 * WIDE;
    let tile = &mut cells[at / WIDE * n..][..n];
    let (blocks, _) = integers.as_chunks::<PAD>();
    for (block, units) in blocks.iter().zip(tile.chunks_exact_mut(WIDE * WIDE)) {
        let mut cells = [0; WIDE];
        to_cells(block, &mut cells);
        for i in 0..WIDE {
            units[i * WIDE + at % WIDE] = cells[i];
        }
    }
}

/// Writes the padded value of position `at` to its place in `cells`.
pub(super) fn set_value(cells: &mut [u32], at: usize, integers: &[i16]) {
    let n = integers.len() * GROUP;
    let tile = &mut cells[at / (2 * GROUP) * n..][..n];
    let (cell, shift) = (at % (2 * GROUP) / 2, at % 2 * 16);
    for (integers, unit) in integers.chunks_exact(WIDE).zip(tile.chunks_exact_mut(GROUP * WIDE)) {
        let cells = &mut unit[cell * WIDE..][..WIDE];
        for i in 0..WIDE {
            cells[i] = cells[i] & !(0xffff << shift) | u32::from(integers[i].cast_unsigned()) << shift;
        }
    }
}

/// Cells of some columns, and the number of words from one unit to the next.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    words: *const u32,
    to_next_group: usize,
    to_next_columns: usize,
}

impl Cells {
    /// The keys at `words`.
    #[inline(always)]
    pub(super) fn of_keys(words: *const u32, stride: usize) -> Self {
        Self { words, to_next_group: GROUP * WIDE, to_next_columns: WIDE / 2 * stride }
    }

    /// The values at `words`.
    #[inline(always)]
    pub(super) fn of_values(words: *const u32, stride: usize) -> Self {
        Self { words, to_next_group: GROUP * stride, to_next_columns: GROUP * WIDE }
    }

    /// Products of `R` rows of `x`, which are `x_stride` cells apart, with `N` vectors of columns from vector `first`
    /// on, summed over `n_groups` groups of cells. Calls `meanwhile` for each group.
    ///
    /// # Safety
    /// The cells and `x` are readable.
    #[allow(clippy::too_many_arguments, reason = "an inner loop with all that it reads")]
    #[inline(always)]
    pub(super) unsafe fn products<S: Simd, const R: usize, const N: usize>(
        self,
        s: S,
        first: usize,
        x: *const u32,
        x_stride: usize,
        n_groups: usize,
        mut meanwhile: impl FnMut(),
    ) -> [[S::F; N]; R] {
        let mut columns = [self.words; N];
        for i in 0..N {
            let column = (first + i) * S::LANES;
            columns[i] = columns[i].wrapping_add(column / WIDE * self.to_next_columns + column % WIDE);
        }
        let mut totals = [[s.splat(0.0); N]; R];
        for group in 0..n_groups {
            meanwhile();
            let mut sums = [[s.acc(); N]; R];
            for cell in 0..GROUP {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut cells = [s.splat_i(0); N];
                    for i in 0..N {
                        cells[i] = s.load_words(columns[i].add(cell * WIDE).cast());
                    }
                    for r in 0..R {
                        let x = s.splat_i(x.add(r * x_stride + group * GROUP + cell).read());
                        for i in 0..N {
                            sums[r][i] = s.dot16(sums[r][i], cells[i], x);
                        }
                    }
                }
            }
            for i in 0..N {
                columns[i] = columns[i].wrapping_add(self.to_next_group);
            }
            for r in 0..R {
                for i in 0..N {
                    totals[r][i] = s.add(totals[r][i], s.to_f32(s.acc_lanes(sums[r][i])));
                }
            }
        }
        totals
    }
}

/// Reads [`WIDE`] positions at `keys`, which are stored as keys, and writes them to `out` as values.
///
/// # Safety
/// [`WIDE`] rows of `stride` integers are readable and writable.
#[inline(always)]
pub(super) unsafe fn to_values<S: Simd>(s: S, keys: *const u32, stride: usize, out: *mut u32) {
    let mut square = Square([0; WIDE * WIDE]);
    let square = square.0.as_mut_ptr();
    for block in 0..stride / PAD {
        for position in (0..WIDE).step_by(S::LANES) {
            for cell in (0..WIDE).step_by(S::LANES) {
                // SAFETY: the loads read a square of the block's cells and positions; the stores write the two vectors
                // of a pair of positions.
                unsafe {
                    s.transpose(
                        #[inline(always)]
                        |i| s.load_words(keys.add((block * WIDE + cell + i) * WIDE + position).cast()),
                        #[inline(always)]
                        |i, cells| s.store(square.add(i * S::LANES).cast(), s.floats(cells)),
                    );
                    for i in (0..S::LANES).step_by(2) {
                        let row = |i: usize| s.load_words(square.add(i * S::LANES).cast());
                        let (lower, upper) = s.zip16(row(i), row(i + 1));
                        let pair = (position + i) / 2;
                        let group = out.add(pair / GROUP * GROUP * stride + pair % GROUP * WIDE + cell);
                        let to = group.add(2 * block * GROUP * WIDE);
                        s.store(to.cast(), s.floats(lower));
                        s.store(to.add(GROUP * WIDE).cast(), s.floats(upper));
                    }
                }
            }
        }
    }
}

/// Words of as many positions and cells as a vector has lanes.
#[repr(align(64))]
struct Square([u32; WIDE * WIDE]);

//! Keys and values as integers of 15 bits in the order in which products read them.
//!
//! Products are of *cells*, 32-bit lanes with two integers each, which one instruction multiplies and adds up. Lanes are
//! the *columns* of what is multiplied, so that no sum ever crosses them: of keys the positions, of values the numbers of
//! a row. Cells lie in units of [`GROUP`] cells of [`WIDE`] columns: the first cells of these columns, then the second, …
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use crate::integers::to_integers;
use crate::simd::Simd;

/// The largest integer. Products of [`GROUP`] cells fit into a 32-bit sum.
pub(super) const LARGEST: i16 = 16383;
/// Cells whose products are summed as integers.
pub(super) const GROUP: usize = 4;
/// Columns of a unit: the lanes of the widest vectors.
pub(super) const WIDE: usize = 16;
/// Rows are padded with zeros to a multiple of this many values: whole units of keys and of values.
pub(super) const PAD: usize = 2 * WIDE;

const _: () = assert!(2 * GROUP as i64 * (LARGEST as i64 * LARGEST as i64) <= i32::MAX as i64);

/// Values of a padded row.
pub(super) const fn stride(width: usize) -> usize {
    width.next_multiple_of(PAD)
}

/// The row as integers, padded with zeros, and their scale: not finite if one of the values is not.
#[inline(always)]
pub(super) fn round(row: &[f32], out: &mut [i16]) -> f32 {
    let (out, padding) = out.split_at_mut(row.len());
    padding.fill(0);
    let (scale, _) = to_integers(row, f32::from(LARGEST), out);
    if !scale.is_finite() {
        // Whatever NaN became need not fit; the scale says it all.
        out.fill(0);
    }
    scale
}

/// A padded key or query as cells. They pair numbers that are [`WIDE`] apart, so that [`to_values`] finds neighbours side by
/// side.
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

/// Writes the padded key of position `at` into the rows at `cells`.
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

/// Writes the padded value of position `at` into the rows at `cells`.
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

/// Cells of some columns, and the words from one unit to the next.
#[derive(Clone, Copy)]
pub(super) struct Cells {
    words: *const u32,
    to_next_group: usize,
    to_next_columns: usize,
}

impl Cells {
    /// Keys that lie at `words`.
    #[inline(always)]
    pub(super) fn of_keys(words: *const u32, stride: usize) -> Self {
        Self { words, to_next_group: GROUP * WIDE, to_next_columns: WIDE / 2 * stride }
    }

    /// Values that lie at `words`.
    #[inline(always)]
    pub(super) fn of_values(words: *const u32, stride: usize) -> Self {
        Self { words, to_next_group: GROUP * stride, to_next_columns: GROUP * WIDE }
    }

    /// Products of `R` rows of `x`, `x_stride` cells apart, with `N` vectors of columns from vector `first` on, summed up
    /// over `n_groups` groups of cells; calls `meanwhile` for each.
    ///
    /// # Safety
    /// The cells and `x` can be read.
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

/// Writes as values what lies as keys at `keys`, [`WIDE`] positions, to `out`.
///
/// # Safety
/// So many rows of `stride` integers can be read and written.
#[inline(always)]
pub(super) unsafe fn to_values<S: Simd>(s: S, keys: *const u32, stride: usize, out: *mut u32) {
    let mut square = Square([0; WIDE * WIDE]);
    let square = square.0.as_mut_ptr();
    for block in 0..stride / PAD {
        for position in (0..WIDE).step_by(S::LANES) {
            for cell in (0..WIDE).step_by(S::LANES) {
                // SAFETY: a square of the block's cells and positions; the two vectors of a pair of positions.
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

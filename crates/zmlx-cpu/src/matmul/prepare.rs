//! Puts activations into the order of a weight's cells, once per op: as integers with a scale for each group, or as
//! floats.

use super::decoders::Decoder;
#[cfg(target_arch = "x86_64")]
use super::elements::MAX_TWO_I8;
use super::elements::{Element, Floats, Integers, MAX_I8};
use super::layout::RowLayout;
use super::zipped;
use crate::integers::to_integers;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::TwoBytes;

/// The order in which activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CellOrder {
    /// Vectors of cells: for each vector of a chunk's words, the first cells of all words, then the second cells, and
    /// so on.
    Vectors,
    /// Word after word, each with all its cells.
    Words,
    /// As [`CellOrder::Words`], but a cell of four integers in two planes becomes two cells of 16-bit integers: one
    /// with its first and third integer, then one with the others.
    Pairs,
}

/// Elements that activations can be turned into.
pub(super) trait Prepare<S: Simd>: Element<S> {
    /// Puts a row of `layout.n_in` activations into the order of `D`'s cells: the values, plane by plane, then the sums
    /// of all groups, then their scales, and in [`CellOrder::Pairs`] the common terms of their pairs. `out` has
    /// `layout.stride` floats.
    fn prepare<D: Decoder<S, Element = Self>>(
        layout: &RowLayout,
        order: CellOrder,
        x: &[f32],
        out: &mut [f32],
    );
}

/// Number of activations in the longest chunk.
const MAX_CHUNK: usize = 256;

/// The largest activation of 16 bits to which the weights can be added without overflow.
fn max_i16<S: Simd, D: Decoder<S>>() -> f32 {
    (i16::MAX as usize - D::MAX_WEIGHT) as f32
}

impl<S: Simd> Prepare<S> for Integers<2, 1> {
    #[inline(always)]
    fn prepare<D: Decoder<S, Element = Self>>(
        layout: &RowLayout,
        order: CellOrder,
        x: &[f32],
        out: &mut [f32],
    ) {
        prepare_integers::<S, D, 2, 1>(layout, order, max_i16::<S, D>(), x, out);
    }
}

impl<S: Simd> Prepare<S> for Integers<4, 1> {
    #[inline(always)]
    fn prepare<D: Decoder<S, Element = Self>>(
        layout: &RowLayout,
        order: CellOrder,
        x: &[f32],
        out: &mut [f32],
    ) {
        prepare_integers::<S, D, 4, 1>(layout, order, MAX_I8, x, out);
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: TwoBytes> Prepare<S> for Integers<4, 2> {
    #[inline(always)]
    fn prepare<D: Decoder<S, Element = Self>>(
        layout: &RowLayout,
        order: CellOrder,
        x: &[f32],
        out: &mut [f32],
    ) {
        prepare_integers::<S, D, 4, 2>(layout, order, MAX_TWO_I8.min(max_i16::<S, D>()), x, out);
    }
}

impl<S: Simd> Prepare<S> for Floats {
    /// No float format has biases, so the sums of the groups are not needed.
    #[inline(always)]
    fn prepare<D: Decoder<S, Element = Self>>(layout: &RowLayout, _: CellOrder, x: &[f32], out: &mut [f32]) {
        const { assert!(D::CELLS == 1) };
        let (values, rest) = out.split_at_mut(x.len());
        values.copy_from_slice(x);
        rest[..layout.stride - x.len()].fill(0.0);
    }
}

/// [`Prepare::prepare`] for integers up to `largest`.
#[inline(always)]
fn prepare_integers<S: Simd, D: Decoder<S>, const N: usize, const PLANES: usize>(
    layout: &RowLayout,
    order: CellOrder,
    largest: f32,
    x: &[f32],
    out: &mut [f32],
) {
    let (values, groups) = out.split_at_mut(layout.n_values);
    let (sums, groups) = groups.split_at_mut(layout.padded_groups);
    let (scales, pairs) = groups.split_at_mut(layout.padded_groups);
    let chunk = N * D::CELLS * S::LANES * D::LOADS;
    let mut integers = [0i16; MAX_CHUNK];
    let mut n_done = 0;
    sums.fill(0.0);
    scales.fill(0.0);
    let mut chunks = (0..layout.plane).step_by(chunk / N);
    for (g, group) in x.chunks_exact(layout.group_size).enumerate() {
        let out = &mut integers[n_done..n_done + group.len()];
        let (scale, total) = to_integers(group, largest, out);
        sums[g] = scale * total as f32;
        scales[g] = scale * D::UNIT;
        if order == CellOrder::Pairs {
            pairs[g] = f32::from_bits(products_of_pairs::<S, D, N>(out).cast_unsigned());
        }
        n_done += group.len();
        // A chunk may be several groups, or a group several chunks.
        let mut n_taken = 0;
        while n_done - n_taken >= chunk {
            if let Some(at) = chunks.next() {
                let integers = &integers[n_taken..n_taken + chunk];
                in_planes::<S, D, N, PLANES>(layout, order, integers, at, values);
            }
            n_taken += chunk;
        }
        if n_taken > 0 && n_taken < n_done {
            integers.copy_within(n_taken..n_done, 0);
        }
        n_done -= n_taken;
    }
    for at in chunks {
        integers[n_done..chunk].fill(0);
        in_planes::<S, D, N, PLANES>(layout, order, &integers[..chunk], at, values);
        n_done = 0;
    }
}

/// The sum of the products of pairs, modulo 2^32. In [`CellOrder::Pairs`] a pair is a 16-bit cell and the next one.
#[inline(always)]
fn products_of_pairs<S: Simd, D: Decoder<S>, const N: usize>(x: &[i16]) -> i32 {
    // The other number of a pair is next to it or, with cells of four, in the same cell.
    let apart = if N == 2 { 1 } else { D::CELLS };
    let mut sum = 0i32;
    for pairs in x.chunks_exact(2 * apart) {
        let (firsts, seconds) = pairs.split_at(apart);
        for (a, b) in firsts.iter().zip(seconds) {
            sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
    }
    sum
}

/// Writes the activations of a chunk to `at` in each plane.
#[inline(always)]
fn in_planes<S: Simd, D: Decoder<S>, const N: usize, const PLANES: usize>(
    layout: &RowLayout,
    order: CellOrder,
    x: &[i16],
    at: usize,
    out: &mut [f32],
) {
    if order == CellOrder::Pairs && N == 4 {
        return in_pairs::<S, D>(x, &mut out[2 * at..]);
    }
    for plane in 0..PLANES {
        let out = &mut out[plane * layout.plane + at..][..x.len() / N];
        in_order::<S, D, N>(order, x, plane + 1 < PLANES, out);
    }
}

/// Writes the activations of a chunk in [`CellOrder::Pairs`].
#[inline(always)]
fn in_pairs<S: Simd, D: Decoder<S>>(x: &[i16], out: &mut [f32]) {
    let n = 4 * D::CELLS * S::LANES * D::LOADS;
    let (x, out) = (&x[..n], &mut out[..n / 2]);
    let pair =
        |a: i16, b: i16| f32::from_bits(u32::from(a.cast_unsigned()) | u32::from(b.cast_unsigned()) << 16);
    for (out, word) in out.chunks_exact_mut(2 * D::CELLS).zip(x.chunks_exact(4 * D::CELLS)) {
        for (i, out) in out.chunks_exact_mut(2).enumerate() {
            out[0] = pair(word[i], word[i + 2 * D::CELLS]);
            out[1] = pair(word[i + D::CELLS], word[i + 3 * D::CELLS]);
        }
    }
}

/// Writes the activations of a chunk. Of two bytes it writes the upper ones if `is_upper`, rounded, because the lower
/// bytes have signs.
#[inline(always)]
fn in_order<S: Simd, D: Decoder<S>, const N: usize>(
    order: CellOrder,
    x: &[i16],
    is_upper: bool,
    out: &mut [f32],
) {
    // The compiler knows this number, so the loops need no bounds checks.
    let n = N * D::CELLS * S::LANES * D::LOADS;
    let (x, out) = (&x[..n], &mut out[..n / N]);
    let cell = |word: &[i16], i: usize| {
        let mut bits = 0;
        for j in 0..N {
            let integer = word[i + j * D::CELLS];
            let integer = if is_upper { (integer + 128) >> 8 } else { integer };
            bits |= (u32::from(integer.cast_unsigned()) & (u32::MAX >> (32 - 32 / N))) << (32 / N * j);
        }
        f32::from_bits(bits)
    };
    match order {
        CellOrder::Vectors => {
            for (load, out) in out.chunks_exact_mut(D::CELLS * S::LANES).enumerate() {
                for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                    for (lane, out) in out.iter_mut().enumerate() {
                        let word = zipped::word::<S, D>(load, lane) * N * D::CELLS;
                        *out = cell(&x[word..word + N * D::CELLS], i);
                    }
                }
            }
        }
        CellOrder::Words | CellOrder::Pairs => {
            for (out, word) in out.chunks_exact_mut(D::CELLS).zip(x.chunks_exact(N * D::CELLS)) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = cell(word, i);
                }
            }
        }
    }
}

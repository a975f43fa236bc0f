//! What cells hold: integers, two of 16 bits or four of 8 bits, or floats. And activations as such.
//!
//! Quantised weights are integers. Then activations are integers too, with a scale for each group of weights: of 16 bits
//! an activation is off by about 2⁻¹⁶ at most of the largest of its group, of 8 bits 2⁻⁸. Everything else is exact up to the
//! sum over the groups, which is in f32: codes are integers, and their products with activations are summed as integers.
//! Against floats 16 bits take half the instructions, 8 bits a quarter, and the result does not depend on the order
//! within a group.
//!
//! Where codes become bytes easily and levels have the products ([`TwoBytes`]), 16 bits are two bytes, `256 · upper + lower`, each in
//! a plane of its own: as many products as of 16 bits, but weights stay bytes, which take half the instructions to unpack.

#[cfg(target_arch = "x86_64")]
use super::cells::Words3;
use super::cells::{Cells, OddBits};
use super::layout::RowLayout;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::TwoBytes;

/// What a cell holds, and how cells are multiplied.
pub(super) trait Element<S: Simd>: Sized {
    /// Weights of a cell.
    const WEIGHTS: usize;
    /// Whether activations have a scale for each group of weights, behind the sums of the groups.
    const X_SCALED: bool;
    /// Planes of a row of activations: after the products with one and before those with the next, sums go through
    /// [`Element::next_plane`].
    const PLANES: usize = 1;
    /// Whether words are zipped ([`Cells::word`]) in chunks of two vectors, which then are of the same groups lane by lane, and sums
    /// are those of each plane apart, so that products with all planes may come in any order.
    const ZIPPED: bool = false;
    /// What the weights may add up to whose products with the largest activations a sum holds.
    const CAPACITY: usize;
    /// Running sums of products, lane by lane.
    type Sum: Copy;

    /// No sums yet.
    fn zero(s: S) -> Self::Sum;
    /// Vector `i` of the two vectors of words at `p`, zipped if words are.
    ///
    /// # Safety
    /// The words are readable.
    #[inline(always)]
    unsafe fn load_zipped(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_words(p.add(4 * i * S::LANES)) }
    }
    /// Adds the products of weights and a plane's activations.
    fn add(s: S, sum: Self::Sum, w: S::I, x: S::I, plane: usize) -> Self::Sum;
    /// Multiplies sums by what a number of this plane is worth in the next.
    fn next_plane(s: S, sum: Self::Sum) -> Self::Sum {
        let _ = s;
        sum
    }
    /// The sums so far.
    fn total(s: S, sum: Self::Sum) -> S::F;

    /// Puts a row of activations, `layout.n_in` of them, into the order of `C`'s cells: values, plane by plane, then for each
    /// group their sum, then its scale; in [`Order::Pairs`] then what its pairs have in common. `out` has `layout.stride` floats.
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]);
}

/// In which order activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Vectors of cells: for each vector of a chunk's words, the first cells of all words, then the second, …
    Vectors,
    /// Word after word, each with all its cells.
    Words,
    /// As [`Order::Words`], but cells of four integers in two planes become two of 16-bit integers: the first and the third,
    /// then the others.
    Pairs,
}

/// Integers: two of 16 bits, or four of 8 bits, where weights have no sign and activations one byte in each plane.
pub(super) struct Integers<const N: usize, const PLANES: usize>;
/// Floats.
pub(super) struct Floats;

/// Activations of the longest chunk.
const MAX_CHUNK: usize = 256;
/// The largest activations of two bytes with signs, and of one.
#[cfg(target_arch = "x86_64")]
const MAX_TWO_I8: f32 = 127.0 * 257.0;
const MAX_I8: f32 = 127.0;

/// The largest activations of 16 bits to which the weights can be added.
fn max_i16<S: Simd, C: Cells<S>>() -> f32 {
    (i16::MAX as usize - C::MAX_WEIGHT) as f32
}

/// What levels do in ways of their own.
pub(super) trait Ways: Simd {
    /// How activations of 16 bits are held.
    type Int16: Element<Self>;
    /// How they are held for codes that become bytes easily, of which a group has at least four words.
    type Int16ForBytes: Element<Self>;
    /// How affine codes of 3 bits in groups of at least `CHUNK` are decoded.
    type ThreeBits<E: Element<Self>, const CHUNK: usize>: Cells<Self, Element = E>;
}

impl Ways for crate::simd::scalar::Scalar {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "aarch64")]
impl Ways for crate::simd::neon::Neon {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx2::Avx2 {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<4, 2>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx512::Avx512<false> {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx512::Avx512<true> {
    type Int16 = Integers<4, 2>;
    type Int16ForBytes = Integers<4, 2>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = Words3<E>;
}

impl<S: Simd> Element<S> for Integers<2, 1> {
    const WEIGHTS: usize = 2;
    const X_SCALED: bool = true;
    const CAPACITY: usize = i32::MAX as usize / (2 * i16::MAX as usize);
    type Sum = S::Acc;

    #[inline(always)]
    fn zero(s: S) -> S::Acc {
        s.acc()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc, w: S::I, x: S::I, _: usize) -> S::Acc {
        s.dot16(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc) -> S::F {
        s.to_f32(s.acc_lanes(sum))
    }

    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]) {
        prepare_integers::<S, C, 2, 1>(layout, order, max_i16::<S, C>(), x, out);
    }
}

impl<S: Simd> Element<S> for Integers<4, 1> {
    const WEIGHTS: usize = 4;
    const X_SCALED: bool = true;
    const CAPACITY: usize = S::CAPACITY8;
    type Sum = S::Acc8;

    #[inline(always)]
    fn zero(s: S) -> S::Acc8 {
        s.acc8()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc8, w: S::I, x: S::I, _: usize) -> S::Acc8 {
        s.dot8(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc8) -> S::F {
        s.to_f32(s.acc8_lanes(sum))
    }

    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]) {
        prepare_integers::<S, C, 4, 1>(layout, order, MAX_I8, x, out);
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: TwoBytes> Element<S> for Integers<4, 2> {
    const WEIGHTS: usize = 4;
    const X_SCALED: bool = true;
    const PLANES: usize = 2;
    const ZIPPED: bool = S::ZIPPED;
    const CAPACITY: usize = i32::MAX as usize / (4 * MAX_TWO_I8 as usize);
    type Sum = S::Sum2;

    #[inline(always)]
    fn zero(s: S) -> S::Sum2 {
        s.sum2()
    }

    #[inline(always)]
    unsafe fn load_zipped(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_zipped(p, i) }
    }

    #[inline(always)]
    fn add(s: S, sum: S::Sum2, w: S::I, x: S::I, plane: usize) -> S::Sum2 {
        s.dot8_of(sum, w, x, plane)
    }

    #[inline(always)]
    fn next_plane(s: S, sum: S::Sum2) -> S::Sum2 {
        s.lower_plane(sum)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Sum2) -> S::F {
        s.to_f32(s.sum2_lanes(sum))
    }

    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]) {
        prepare_integers::<S, C, 4, 2>(layout, order, MAX_TWO_I8.min(max_i16::<S, C>()), x, out);
    }
}

/// [`Element::prepare`] for integers up to `largest`.
#[inline(always)]
fn prepare_integers<S: Simd, C: Cells<S>, const N: usize, const PLANES: usize>(
    layout: &RowLayout,
    order: Order,
    largest: f32,
    x: &[f32],
    out: &mut [f32],
) {
    let (values, groups) = out.split_at_mut(layout.n_values);
    let (sums, groups) = groups.split_at_mut(layout.padded_groups);
    let (scales, pairs) = groups.split_at_mut(layout.padded_groups);
    let chunk = N * C::CELLS * S::LANES * C::LOADS;
    let mut integers = [0i16; MAX_CHUNK];
    let mut n_done = 0;
    sums.fill(0.0);
    scales.fill(0.0);
    let mut chunks = (0..layout.plane).step_by(chunk / N);
    for (g, group) in x.chunks_exact(layout.group_size).enumerate() {
        let out = &mut integers[n_done..n_done + group.len()];
        let (scale, total) = to_integers(group, largest, out);
        sums[g] = scale * total as f32;
        scales[g] = scale * C::UNIT;
        if order == Order::Pairs {
            pairs[g] = f32::from_bits(products_of_pairs::<S, C, N>(out).cast_unsigned());
        }
        n_done += group.len();
        // A chunk may be several groups, or a group several chunks.
        let mut n_taken = 0;
        while n_done - n_taken >= chunk {
            if let Some(at) = chunks.next() {
                let integers = &integers[n_taken..n_taken + chunk];
                in_planes::<S, C, N, PLANES>(layout, order, integers, at, values);
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
        in_planes::<S, C, N, PLANES>(layout, order, &integers[..chunk], at, values);
        n_done = 0;
    }
}

/// The group as integers up to `largest`, its scale and the sum of the integers.
#[inline(always)]
pub(crate) fn to_integers(group: &[f32], largest: f32, out: &mut [i16]) -> (f32, i32) {
    // Adding this rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // As bits, magnitudes are ordered, NaN and infinity above all: then the scale is not finite, and so is the result.
    let max = group.iter().fold(0, |max: u32, v| max.max(v.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(max);
    let inverse = if max > 0.0 { largest / max } else { 0.0 };
    // Of the smallest numbers the inverse is infinite: they vanish.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut total = 0;
    for (out, v) in out.iter_mut().zip(group) {
        let q = (v * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
        *out = q as i16;
        total += i32::from(*out);
    }
    (max / largest, total)
}

/// The sum of the products of pairs, modulo 2^32: in [`Order::Pairs`] of each 16-bit cell with the next.
#[inline(always)]
fn products_of_pairs<S: Simd, C: Cells<S>, const N: usize>(x: &[i16]) -> i32 {
    // A number's partner is next to it or, of cells of four, in the same cell.
    let apart = if N == 2 { 1 } else { C::CELLS };
    let mut sum = 0i32;
    for pairs in x.chunks_exact(2 * apart) {
        let (firsts, seconds) = pairs.split_at(apart);
        for (a, b) in firsts.iter().zip(seconds) {
            sum = sum.wrapping_add(i32::from(*a) * i32::from(*b));
        }
    }
    sum
}

/// The activations of a chunk, at `at` in each plane.
#[inline(always)]
fn in_planes<S: Simd, C: Cells<S>, const N: usize, const PLANES: usize>(
    layout: &RowLayout,
    order: Order,
    x: &[i16],
    at: usize,
    out: &mut [f32],
) {
    if order == Order::Pairs && N == 4 {
        return in_pairs::<S, C>(x, &mut out[2 * at..]);
    }
    for plane in 0..PLANES {
        let out = &mut out[plane * layout.plane + at..][..x.len() / N];
        in_order::<S, C, N>(order, x, plane + 1 < PLANES, out);
    }
}

/// The activations of a chunk in [`Order::Pairs`].
#[inline(always)]
fn in_pairs<S: Simd, C: Cells<S>>(x: &[i16], out: &mut [f32]) {
    let n = 4 * C::CELLS * S::LANES * C::LOADS;
    let (x, out) = (&x[..n], &mut out[..n / 2]);
    let pair =
        |a: i16, b: i16| f32::from_bits(u32::from(a.cast_unsigned()) | u32::from(b.cast_unsigned()) << 16);
    for (out, word) in out.chunks_exact_mut(2 * C::CELLS).zip(x.chunks_exact(4 * C::CELLS)) {
        for (i, out) in out.chunks_exact_mut(2).enumerate() {
            out[0] = pair(word[i], word[i + 2 * C::CELLS]);
            out[1] = pair(word[i + C::CELLS], word[i + 3 * C::CELLS]);
        }
    }
}

/// The activations of a chunk; of two bytes the upper ones if `is_upper`, rounded: the lower ones have signs.
#[inline(always)]
fn in_order<S: Simd, C: Cells<S>, const N: usize>(order: Order, x: &[i16], is_upper: bool, out: &mut [f32]) {
    // Known to the compiler, so that the loops need no bounds checks.
    let n = N * C::CELLS * S::LANES * C::LOADS;
    let (x, out) = (&x[..n], &mut out[..n / N]);
    let cell = |word: &[i16], i: usize| {
        let mut bits = 0;
        for j in 0..N {
            let integer = word[i + j * C::CELLS];
            let integer = if is_upper { (integer + 128) >> 8 } else { integer };
            bits |= (u32::from(integer.cast_unsigned()) & (u32::MAX >> (32 - 32 / N))) << (32 / N * j);
        }
        f32::from_bits(bits)
    };
    match order {
        Order::Vectors => {
            for (load, out) in out.chunks_exact_mut(C::CELLS * S::LANES).enumerate() {
                for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                    for (lane, out) in out.iter_mut().enumerate() {
                        let word = C::word(load, lane) * N * C::CELLS;
                        *out = cell(&x[word..word + N * C::CELLS], i);
                    }
                }
            }
        }
        Order::Words | Order::Pairs => {
            for (out, word) in out.chunks_exact_mut(C::CELLS).zip(x.chunks_exact(N * C::CELLS)) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = cell(word, i);
                }
            }
        }
    }
}

impl<S: Simd> Element<S> for Floats {
    const WEIGHTS: usize = 1;
    const X_SCALED: bool = false;
    const CAPACITY: usize = usize::MAX;
    type Sum = S::F;

    #[inline(always)]
    fn zero(s: S) -> S::F {
        s.splat(0.0)
    }

    #[inline(always)]
    fn add(s: S, sum: S::F, w: S::I, x: S::I, _: usize) -> S::F {
        s.fma(s.floats(w), s.floats(x), sum)
    }

    #[inline(always)]
    fn total(_: S, sum: S::F) -> S::F {
        sum
    }

    /// No float format has biases: nobody asks for the sums of the groups.
    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, _: Order, x: &[f32], out: &mut [f32]) {
        const { assert!(C::CELLS == 1) };
        let (values, rest) = out.split_at_mut(x.len());
        values.copy_from_slice(x);
        rest[..layout.stride - x.len()].fill(0.0);
    }
}

//! What cells hold: integers, two of 16 bits or four of 8 bits, or floats. And activations as such.
//!
//! Quantised weights are integers. Then activations are integers of as many bits, with a scale for each group of weights:
//! an activation is off by at most 2⁻¹⁶ of the largest of its group, of 8 bits 2⁻⁸. Everything else is exact up to the
//! sum over the groups, which is in f32: codes are integers, and their products with activations are summed as integers.
//! Against floats 16 bits take half the instructions, 8 bits a quarter, and the result does not depend on the order
//! within a group.

use super::cells::Cells;
use super::layout::RowLayout;
use crate::cpu::simd::Simd;

/// What a cell holds, and how cells are multiplied.
pub(super) trait Element<S: Simd>: Sized {
    /// Weights of a cell.
    const WEIGHTS: usize;
    /// Whether activations have a scale for each group of weights, behind the sums of the groups.
    const X_SCALED: bool;
    /// What the weights may add up to whose products with the largest activations a sum holds.
    const CAPACITY: usize;
    /// Running sums of products, lane by lane.
    type Sum: Copy;

    /// No sums yet.
    fn zero(s: S) -> Self::Sum;
    /// Adds the products of weights and activations.
    fn add(s: S, sum: Self::Sum, w: S::I, x: S::I) -> Self::Sum;
    /// The sums so far.
    fn total(s: S, sum: Self::Sum) -> S::F;

    /// Puts a row of activations, `layout.n_in` of them, into the order of `C`'s cells: values, then for each group their
    /// sum, then its scale. `out` has `layout.stride` floats.
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]);
}

/// In which order activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Vectors of cells: for a vector of words, the first cells of all words, then the second, …
    Vectors,
    /// Word after word, each with all its cells.
    Words,
}

/// Integers: two of 16 bits, or four of 8 bits, where weights have no sign.
pub(super) struct Integers<const N: usize>;
/// Floats.
pub(super) struct Floats;

/// Activations of the most words that are loaded at once.
const MAX_LOAD: usize = 256;
/// The largest activations of 16 and of 8 bits.
pub(in crate::cpu) const MAX_I16: f32 = 32767.0;
const MAX_I8: f32 = 127.0;

impl<S: Simd> Element<S> for Integers<2> {
    const WEIGHTS: usize = 2;
    const X_SCALED: bool = true;
    const CAPACITY: usize = i32::MAX as usize / (2 * MAX_I16 as usize);
    type Sum = S::Acc;

    #[inline(always)]
    fn zero(s: S) -> S::Acc {
        s.acc()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc, w: S::I, x: S::I) -> S::Acc {
        s.dot16(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc) -> S::F {
        s.to_f32(s.acc_lanes(sum))
    }

    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]) {
        prepare_integers::<S, C, 2>(layout, order, MAX_I16, x, out);
    }
}

impl<S: Simd> Element<S> for Integers<4> {
    const WEIGHTS: usize = 4;
    const X_SCALED: bool = true;
    const CAPACITY: usize = S::CAPACITY8;
    type Sum = S::Acc8;

    #[inline(always)]
    fn zero(s: S) -> S::Acc8 {
        s.acc8()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc8, w: S::I, x: S::I) -> S::Acc8 {
        s.dot8(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc8) -> S::F {
        s.to_f32(s.acc8_lanes(sum))
    }

    #[inline(always)]
    fn prepare<C: Cells<S, Element = Self>>(layout: &RowLayout, order: Order, x: &[f32], out: &mut [f32]) {
        prepare_integers::<S, C, 4>(layout, order, MAX_I8, x, out);
    }
}

/// [`Element::prepare`] for integers up to `largest`.
#[inline(always)]
fn prepare_integers<S: Simd, C: Cells<S>, const N: usize>(
    layout: &RowLayout,
    order: Order,
    largest: f32,
    x: &[f32],
    out: &mut [f32],
) {
    let (values, groups) = out.split_at_mut(layout.n_values);
    let (sums, scales) = groups.split_at_mut(layout.padded_groups);
    let load = N * C::CELLS * S::LANES;
    let mut integers = [0i16; MAX_LOAD];
    let mut n_done = 0;
    sums.fill(0.0);
    scales.fill(0.0);
    let mut values = values.chunks_exact_mut(load / N);
    for ((group, sum), scale) in x.chunks_exact(layout.group_size).zip(sums).zip(scales) {
        let out = &mut integers[n_done..n_done + group.len()];
        let total;
        (*scale, total) = to_integers(group, largest, out);
        *sum = *scale * total as f32;
        *scale *= C::UNIT;
        n_done += group.len();
        // What is loaded at once may be several groups, or a group several loads.
        let mut n_taken = 0;
        while n_done - n_taken >= load {
            if let Some(out) = values.next() {
                in_order::<S, C, N>(order, &integers[n_taken..n_taken + load], out);
            }
            n_taken += load;
        }
        integers.copy_within(n_taken..n_done, 0);
        n_done -= n_taken;
    }
    for out in values {
        integers[n_done..load].fill(0);
        in_order::<S, C, N>(order, &integers[..load], out);
        n_done = 0;
    }
}

/// The group as integers up to `largest`, its scale and the sum of the integers.
#[inline(always)]
pub(in crate::cpu) fn to_integers(group: &[f32], largest: f32, out: &mut [i16]) -> (f32, i32) {
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

/// The activations of a vector of words.
#[inline(always)]
fn in_order<S: Simd, C: Cells<S>, const N: usize>(order: Order, x: &[i16], out: &mut [f32]) {
    // Known to the compiler, so that the loops need no bounds checks.
    let n = N * C::CELLS * S::LANES;
    let (x, out) = (&x[..n], &mut out[..n / N]);
    let cell = |word: &[i16], i: usize| {
        let mut bits = 0;
        for j in 0..N {
            let integer = u32::from(word[i + j * C::CELLS].cast_unsigned()) & (u32::MAX >> (32 - 32 / N));
            bits |= integer << (32 / N * j);
        }
        f32::from_bits(bits)
    };
    match order {
        Order::Vectors => {
            for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                for (out, word) in out.iter_mut().zip(x.chunks_exact(N * C::CELLS)) {
                    *out = cell(word, i);
                }
            }
        }
        Order::Words => {
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
    fn add(s: S, sum: S::F, w: S::I, x: S::I) -> S::F {
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

//! Products on integers: quantised formats, activations as 16-bit integers with a scale for each group of weights.
//!
//! An activation is off by at most 2⁻¹⁶ of the largest of its group. Everything else is exact up to the sum over the
//! groups, which is in f32: codes are integers, and their products with activations are summed as integers. Against
//! floats it takes half the instructions, and the result does not depend on the order within a group.

use super::codes::Codes;
use super::kernels::{RowLayout, Sums};
use crate::cpu::simd::Simd;

/// The integers of a decoder.
pub(super) struct Integers<C>(std::marker::PhantomData<C>);

/// Activations of the largest chunk.
const MAX_CHUNK: usize = 256;
/// The largest activation.
const MAX_X: f32 = 32767.0;

impl<S: Simd, C: Codes<S>> Sums<S> for Integers<C> {
    const LANE_WEIGHTS: usize = 2 * C::VECS;
    const CHUNK_BYTES: usize = C::CHUNK_BYTES;
    const SCALED: bool = true;
    const OVERREAD: bool = C::OVERREAD;
    const X_SCALED: bool = true;
    const X_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn sum_chunk<const X: usize, const R: usize>(
        s: S,
        n: usize,
        at: &[*const u8; R],
        x: &[*const f32; X],
    ) -> [[S::F; R]; X] {
        let mut accs = [[s.acc(); R]; X];
        for i in 0..if X == 1 { C::VECS } else { n / 2 } {
            // SAFETY: the caller's promise.
            unsafe {
                for r in 0..R {
                    let w = C::codes(s, at[r], i);
                    for m in 0..X {
                        accs[m][r] = s.dot16(accs[m][r], w, s.load_words(x[m].add(i * S::LANES).cast()));
                    }
                }
            }
        }
        let mut sums = [[s.splat(0.0); R]; X];
        for m in 0..X {
            for r in 0..R {
                sums[m][r] = s.to_f32(s.acc_lanes(accs[m][r]));
            }
        }
        sums
    }

    #[inline(always)]
    fn prepare(layout: &RowLayout, x: &[f32], out: &mut [f32]) {
        let (values, groups) = out.split_at_mut(layout.n_values);
        let (sums, scales) = groups.split_at_mut(layout.padded_groups);
        let chunk = 2 * C::VECS * S::LANES;
        let mut integers = [0i16; MAX_CHUNK];
        let mut n_done = 0;
        sums.fill(0.0);
        scales.fill(0.0);
        let mut values = values.chunks_exact_mut(chunk / 2);
        for ((group, sum), scale) in x.chunks_exact(layout.group_size).zip(sums).zip(scales) {
            let out = &mut integers[n_done..n_done + group.len()];
            let total;
            (*scale, total) = to_integers(group, out);
            *sum = *scale * total as f32;
            *scale *= C::UNIT;
            n_done += group.len();
            // A chunk may be several groups, or a group several chunks.
            let mut n_taken = 0;
            while n_done - n_taken >= chunk {
                if let Some(out) = values.next() {
                    in_order::<S, C>(&integers[n_taken..n_taken + chunk], out);
                }
                n_taken += chunk;
            }
            integers.copy_within(n_taken..n_done, 0);
            n_done -= n_taken;
        }
        if let Some(out) = values.next() {
            integers[n_done..chunk].fill(0);
            in_order::<S, C>(&integers[..chunk], out);
        }
    }
}

/// The group as integers, its scale and the sum of the integers.
#[inline(always)]
fn to_integers(group: &[f32], out: &mut [i16]) -> (f32, i32) {
    // Adding this rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // As bits, magnitudes are ordered, NaN and infinity above all: then the scale is not finite, and so is the result.
    let max = group.iter().fold(0, |max: u32, v| max.max(v.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(max);
    let inverse = if max > 0.0 { MAX_X / max } else { 0.0 };
    // Of the smallest numbers the inverse is infinite: they vanish.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut total = 0;
    for (out, v) in out.iter_mut().zip(group) {
        let q = (v * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
        *out = q as i16;
        total += i32::from(*out);
    }
    (max / MAX_X, total)
}

/// A chunk of activations in the order of the codes.
#[inline(always)]
fn in_order<S: Simd, C: Codes<S>>(x: &[i16], out: &mut [f32]) {
    // Known to the compiler, so that the loops need no bounds checks.
    let n = 2 * C::VECS * S::LANES;
    let (x, out) = (&x[..n], &mut out[..n / 2]);
    let pair = |low: i16, high: i16| {
        f32::from_bits(u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16)
    };
    for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
        if C::WORD_ORDER {
            for (out, words) in out.iter_mut().zip(x.chunks_exact(2 * C::VECS)) {
                *out = pair(words[i], words[C::VECS + i]);
            }
        } else {
            for (out, x) in out.iter_mut().zip(x[2 * i * S::LANES..].chunks_exact(2)) {
                *out = pair(x[0], x[1]);
            }
        }
    }
}

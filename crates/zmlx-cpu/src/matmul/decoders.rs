//! Weight formats as the kernels see them: how vectors of a row's words become vectors of cells.
//!
//! A *cell* is the content of a 32-bit lane: two 16-bit integers, four 8-bit ones, or a float ([`Element`]). A row is
//! loaded as vectors of `LANES` words. Masks and shifts turn each into [`Decoder::CELLS`] vectors of cells, and nothing
//! moves between lanes: cell `i` of a word holds its integer number `i` and every `CELLS`th after it. Activations are
//! put into the same order once per op.

use std::marker::PhantomData;

use super::elements::{Element, Floats};
#[cfg(target_arch = "x86_64")]
use crate::simd::Vnni;
use crate::simd::{Simd, codes_of_16};

/// How words of a format become cells, on vectors of `S`.
pub(super) trait Decoder<S: Simd> {
    /// What the cells hold.
    type Element: Element<S>;
    /// Number of vectors of cells that a vector of words gives.
    const CELLS: usize;
    /// Number of bytes of a row in a vector of words.
    const LOAD_BYTES: usize;
    /// Number of vectors of words in a chunk, which the dot kernels take at once.
    const LOADS: usize;
    /// Whether loading reads past those bytes, up to [`MAX_OVERREAD`].
    const OVERREAD: bool = false;
    /// Whether weights have scales (and perhaps biases).
    const SCALED: bool = true;
    /// The value of a weight before scale and bias, as a multiple of its integer.
    const UNIT: f32 = 1.0;
    /// The bias as a multiple of the scale, if the format has no biases of its own.
    const OFFSET: i8 = 0;
    /// The largest integer of a weight.
    const MAX_WEIGHT: usize = 1;
    /// The largest number of cells whose products with the largest activations fit into a sum: a power of two.
    const MAX_CELLS: usize = {
        let n = <Self::Element as Element<S>>::CAPACITY / Self::MAX_WEIGHT;
        if n < 64 { 1 << n.ilog2() } else { 64 }
    };

    /// The vector of words at `p`.
    ///
    /// # Safety
    /// `LOAD_BYTES` bytes, and the overread, are readable at `p`.
    unsafe fn load(s: S, p: *const u8) -> S::I;

    /// Vector `i` of cells.
    #[inline(always)]
    fn cells(s: S, words: S::I, i: usize) -> S::I {
        let _ = (s, i);
        words
    }
}

/// Bytes that a decoder may read past its words.
pub(super) const MAX_OVERREAD: usize = 16;

/// Code `i` of each 16-bit lane. A lane holds as many codes as fit; the last one is at the top, and the others are
/// below it.
#[inline(always)]
fn code_of_16<S: Simd, const BITS: usize>(s: S, words: S::I, i: usize) -> S::I {
    let from = 16 - BITS * (codes_of_16(BITS) - i);
    let shifted = if from == 0 { words } else { s.shr16(words, from as u32) };
    // For the top code the shift alone removes everything else from a lane.
    if from + BITS == 16 { shifted } else { s.and(shifted, s.splat_i(0x1_0001 * ((1 << BITS) - 1))) }
}

/// Affine codes of 2, 4 or 8 bits.
pub(super) struct PowerOfTwoBits<const BITS: usize, E>(PhantomData<E>);

impl<S: Simd, E: Element<S>, const BITS: usize> Decoder<S> for PowerOfTwoBits<BITS, E> {
    type Element = E;
    const CELLS: usize = 32 / E::WEIGHTS / BITS;
    const LOAD_BYTES: usize = 4 * S::LANES;
    const LOADS: usize = if E::ZIPPED { 2 } else { 1 };
    const MAX_WEIGHT: usize = (1 << BITS) - 1;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_words(p) }
    }

    #[inline(always)]
    fn cells(s: S, words: S::I, i: usize) -> S::I {
        if E::WEIGHTS == 4 {
            return s.bits_of_8::<BITS>(words, BITS * i);
        }
        code_of_16::<S, BITS>(s, words, i)
    }
}

/// Affine codes of 3, 5 or 6 bits. A chunk is `CHUNK` weights, or one vector if that is more; groups have at least
/// `CHUNK` weights. A 16-bit lane is loaded with as many neighbouring codes as fit, and an 8-bit lane with one.
pub(super) struct OddBits<const BITS: usize, E, const CHUNK: usize>(PhantomData<E>);

impl<S: Simd, E: Element<S>, const BITS: usize, const CHUNK: usize> Decoder<S> for OddBits<BITS, E, CHUNK> {
    type Element = E;
    const CELLS: usize = if E::WEIGHTS == 2 { codes_of_16(BITS) } else { 1 };
    const LOAD_BYTES: usize = S::LANES * BITS * E::WEIGHTS * Self::CELLS / 8;
    const LOADS: usize = {
        let load = E::WEIGHTS * Self::CELLS * S::LANES;
        if CHUNK > load { CHUNK / load } else { 1 }
    };
    const OVERREAD: bool = true;
    const MAX_WEIGHT: usize = (1 << BITS) - 1;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { if E::WEIGHTS == 2 { s.load_tops16::<BITS>(p) } else { s.load_codes8::<BITS>(p) } }
    }

    #[inline(always)]
    fn cells(s: S, words: S::I, i: usize) -> S::I {
        if E::WEIGHTS == 4 {
            return words;
        }
        code_of_16::<S, BITS>(s, words, i)
    }
}

/// Affine codes of 3 bits. Each lane gets a word of eight codes.
#[cfg(target_arch = "x86_64")]
pub(super) struct Words3<E>(PhantomData<E>);

#[cfg(target_arch = "x86_64")]
impl<S: Vnni, E: Element<S>> Decoder<S> for Words3<E> {
    type Element = E;
    const CELLS: usize = 2;
    const LOAD_BYTES: usize = 3 * S::LANES;
    const LOADS: usize = 1;
    const MAX_WEIGHT: usize = 7;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::I {
        const { assert!(E::WEIGHTS == 4) };
        // SAFETY: the caller's promise.
        unsafe { s.load_words3(p) }
    }

    #[inline(always)]
    fn cells(s: S, words: S::I, i: usize) -> S::I {
        s.codes_of_words3(words, i)
    }
}

/// e2m1 codes. Integers of 16 bits are 512 times their values. Bytes are twice their values plus 12, which is never
/// negative.
pub(super) struct E2m1<E>(PhantomData<E>);

impl<S: Simd, E: Element<S>> Decoder<S> for E2m1<E> {
    type Element = E;
    const CELLS: usize = 8 / E::WEIGHTS;
    const LOAD_BYTES: usize = 4 * S::LANES;
    const LOADS: usize = if E::ZIPPED { 2 } else { 1 };
    const UNIT: f32 = if E::WEIGHTS == 2 { 1.0 / 512.0 } else { 0.5 };
    const OFFSET: i8 = if E::WEIGHTS == 2 { 0 } else { -6 };
    const MAX_WEIGHT: usize = if E::WEIGHTS == 2 { 6 * 512 } else { 24 };

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_words(p) }
    }

    #[inline(always)]
    fn cells(s: S, words: S::I, i: usize) -> S::I {
        if E::WEIGHTS == 4 {
            return s.e2m1_times_2_plus_12(s.bits_of_8::<4>(words, 4 * i));
        }
        // Two codes at once; each goes to the top of a 16-bit lane.
        let twice = s.e2m1_times_2(s.bits_of_8::<4>(words, 4 * (i % 2)));
        if i < 2 { s.shl16(twice, 8) } else { s.and(twice, s.splat_i(0xff00_ff00)) }
    }
}

/// e4m3 codes. Their values need more than 16 bits, so they become floats. A chunk is 32 weights.
pub(super) struct E4m3;

impl<S: Simd> Decoder<S> for E4m3 {
    type Element = Floats;
    const CELLS: usize = 1;
    const LOAD_BYTES: usize = S::LANES;
    const LOADS: usize = 32 / S::LANES;

    #[inline(always)]
    unsafe fn load(s: S, p: *const u8) -> S::I {
        // SAFETY: the caller's promise.
        s.bits(s.mul(unsafe { s.load_e4m3(p) }, s.splat(256.0)))
    }
}

/// Dense floats.
pub(super) struct DenseF32;
/// Dense halves.
pub(super) struct DenseF16;
/// Dense bf16.
pub(super) struct DenseBf16;

macro_rules! dense {
    ($name:ident, $size:literal, $load:expr) => {
        impl<S: Simd> Decoder<S> for $name {
            type Element = Floats;
            const CELLS: usize = 1;
            const LOAD_BYTES: usize = S::LANES * $size;
            const LOADS: usize = 4;
            const SCALED: bool = false;

            #[inline(always)]
            unsafe fn load(s: S, p: *const u8) -> S::I {
                // SAFETY: the caller's promise.
                s.bits(unsafe { $load(s, p) })
            }
        }
    };
}
dense!(DenseF32, 4, |s: S, p: *const u8| s.load(p.cast()));
dense!(DenseF16, 2, |s: S, p: *const u8| s.load_f16(p));
dense!(DenseBf16, 2, |s: S, p: *const u8| s.load_bf16(p));

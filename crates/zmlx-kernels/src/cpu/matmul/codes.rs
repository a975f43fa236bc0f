//! Weight formats as the integer kernels see them: how a chunk of a row becomes vectors of 16-bit integers.
//!
//! Chunks and orders are those of [`decode`](super::decode) with 16-bit words: in word order, 16-bit lane `j` of a
//! chunk holds the `j`-th 16-bit word and vector `i` its `i`-th code. Two neighbouring lanes are one 32-bit word, whose
//! products the kernels add up in one 32-bit lane; so scales belong to lanes as they do there.

use super::decode::{E2m1, OddBits, PowerOfTwoBits};
use crate::cpu::simd::Simd;

/// A format's integer decoder for vectors of `S`.
pub(super) trait Codes<S: Simd> {
    /// Vectors of a chunk, `2 · LANES` codes each.
    const VECS: usize;
    /// Bytes of a chunk.
    const CHUNK_BYTES: usize;
    /// Whether lanes are words; else the order is natural.
    const WORD_ORDER: bool;
    /// Whether decoding reads past the chunk, up to [`MAX_OVERREAD`](super::decode::MAX_OVERREAD) bytes.
    const OVERREAD: bool;
    /// What a weight is before scale and bias, as a multiple of its integer.
    const UNIT: f32;

    /// Vector `i` of the chunk at `p`. A chunk's products with integers up to 32,767 must fit 32 bits, in pairs of
    /// lanes over all vectors.
    ///
    /// # Safety
    /// `CHUNK_BYTES` bytes, and the overread, are readable at `p`.
    unsafe fn codes(s: S, p: *const u8, i: usize) -> S::I;
}

impl<S: Simd, const BITS: usize> Codes<S> for PowerOfTwoBits<BITS> {
    const VECS: usize = 16 / BITS;
    const CHUNK_BYTES: usize = 4 * S::LANES;
    const WORD_ORDER: bool = true;
    const OVERREAD: bool = false;
    const UNIT: f32 = 1.0;

    #[inline(always)]
    unsafe fn codes(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: a chunk is LANES words.
        let words = unsafe { s.load_words(p) };
        let shifted = if i == 0 { words } else { s.shr16(words, (BITS * i) as u32) };
        if i + 1 == 16 / BITS { shifted } else { s.and(shifted, s.splat_i(0x1_0001 * ((1 << BITS) - 1))) }
    }
}

impl<S: Simd, const BITS: usize> Codes<S> for OddBits<BITS> {
    const VECS: usize = 16 / S::LANES;
    const CHUNK_BYTES: usize = 4 * BITS;
    const WORD_ORDER: bool = false;
    const OVERREAD: bool = true;
    const UNIT: f32 = 1.0;

    #[inline(always)]
    unsafe fn codes(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: vector i begins within the chunk; the reads stay within the overread.
        unsafe { s.load_codes16::<BITS>(p.add(i * S::LANES * BITS / 4)) }
    }
}

impl<S: Simd> Codes<S> for E2m1 {
    const VECS: usize = 4;
    const CHUNK_BYTES: usize = 4 * S::LANES;
    const WORD_ORDER: bool = true;
    const OVERREAD: bool = false;
    const UNIT: f32 = 1.0 / 512.0;

    #[inline(always)]
    unsafe fn codes(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: a chunk is LANES words.
        let words = unsafe { s.load_words(p) };
        let at_8 = match i {
            0 => s.shl16(words, 8),
            1 => s.shl16(words, 4),
            2 => words,
            _ => s.shr16(words, 4),
        };
        s.e2m1_times_512(s.and(at_8, s.splat_i(0x0f00_0f00)))
    }
}

//! Weight formats as the kernels see them: how a chunk of a row becomes vectors of floats.
//!
//! A row is cut into chunks of `VECS · LANES` weights. Two orders occur. In *word* order, lane `j` of a chunk holds
//! the `j`-th 32-bit word and vector `i` its `i`-th code: unpacking is a mask, never a move between lanes. In
//! *natural* order, vector `i` holds `LANES` consecutive weights. Activations are put into the same order once per
//! op, so the kernels need not know.

use crate::cpu::simd::Simd;

/// A format's decoder for vectors of `S`.
pub(crate) trait Decode<S: Simd> {
    /// Vectors of a chunk.
    const VECS: usize;
    /// Bytes of a chunk.
    const CHUNK_BYTES: usize;
    /// Whether weights have scales (and perhaps biases).
    const SCALED: bool;
    /// Whether lanes are words; else the order is natural.
    const WORD_ORDER: bool;
    /// Whether decoding reads past the chunk, up to [`MAX_OVERREAD`] bytes.
    const OVERREAD: bool;

    /// Vector `i` of the chunk at `p`, times `1 / x_factor(i)`, before scale and bias.
    ///
    /// # Safety
    /// `CHUNK_BYTES` bytes, and [`MAX_OVERREAD`] more if `OVERREAD`, are readable at `p`.
    unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F;

    /// Puts a chunk of activations into the order of [`Decode::decode`], `VECS · LANES` floats.
    #[inline(always)]
    fn prepare_chunk(x: &[f32], out: &mut [f32]) {
        if !Self::WORD_ORDER {
            return out.copy_from_slice(x);
        }
        // Whole chunks, known to the compiler, so that the loops need no bounds checks.
        let (x, out) = (&x[..Self::VECS * S::LANES], &mut out[..Self::VECS * S::LANES]);
        for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
            let factor = Self::x_factor(i);
            for (out, word) in out.iter_mut().zip(x.chunks_exact(Self::VECS)) {
                *out = word[i] * factor;
            }
        }
    }

    /// What the activations of vector `i` are multiplied by: a power of two, so exact.
    fn x_factor(i: usize) -> f32 {
        let _ = i;
        1.0
    }
}

/// Bytes that a decoder may read past its chunk.
pub(crate) const MAX_OVERREAD: usize = 16;

/// Affine codes of 2, 4 or 8 bits. A code is masked in place and never shifted: vector `i` is `2^(BITS·i)` times too
/// large, and its activations are made as much smaller. The last is shifted instead, to stay a signed integer.
pub(crate) struct PowerOfTwoBits<const BITS: usize>;

impl<S: Simd, const BITS: usize> Decode<S> for PowerOfTwoBits<BITS> {
    const VECS: usize = 32 / BITS;
    const CHUNK_BYTES: usize = 4 * S::LANES;
    const SCALED: bool = true;
    const WORD_ORDER: bool = true;
    const OVERREAD: bool = false;

    #[inline(always)]
    unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F {
        // SAFETY: a chunk is LANES words.
        let words = unsafe { s.load_words(p) };
        if i + 1 == 32 / BITS {
            s.to_f32(s.shr(words, 32 - BITS as u32))
        } else {
            s.to_f32(s.and(words, s.splat_i(((1 << BITS) - 1) << (BITS * i))))
        }
    }

    fn x_factor(i: usize) -> f32 {
        if i + 1 == 32 / BITS { 1.0 } else { 1.0 / (1u64 << (BITS * i)) as f32 }
    }
}

/// Affine codes of 3, 5 or 6 bits, 32 weights a chunk.
pub(crate) struct OddBits<const BITS: usize>;

impl<S: Simd, const BITS: usize> Decode<S> for OddBits<BITS> {
    const VECS: usize = 32 / S::LANES;
    const CHUNK_BYTES: usize = 4 * BITS;
    const SCALED: bool = true;
    const WORD_ORDER: bool = false;
    const OVERREAD: bool = true;

    #[inline(always)]
    unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F {
        // SAFETY: vector i begins within the chunk; reading 16 bytes from there stays within the overread.
        s.to_f32(unsafe { s.load_codes::<BITS>(p.add(i * S::LANES * BITS / 8)) })
    }
}

/// e2m1 codes.
pub(crate) struct E2m1;

impl<S: Simd> Decode<S> for E2m1 {
    const VECS: usize = 8;
    const CHUNK_BYTES: usize = 4 * S::LANES;
    const SCALED: bool = true;
    const WORD_ORDER: bool = true;
    const OVERREAD: bool = false;

    #[inline(always)]
    unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F {
        // SAFETY: a chunk is LANES words.
        s.e2m1(s.shr(unsafe { s.load_words(p) }, 4 * i as u32))
    }
}

/// e4m3 codes, 32 weights a chunk.
pub(crate) struct E4m3;

impl<S: Simd> Decode<S> for E4m3 {
    const VECS: usize = 32 / S::LANES;
    const CHUNK_BYTES: usize = 32;
    const SCALED: bool = true;
    const WORD_ORDER: bool = false;
    const OVERREAD: bool = false;

    #[inline(always)]
    unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F {
        // SAFETY: vector i is LANES bytes within the chunk.
        s.mul(unsafe { s.load_e4m3(p.add(i * S::LANES)) }, s.splat(256.0))
    }
}

/// Dense floats.
pub(crate) struct DenseF32;
/// Dense halves.
pub(crate) struct DenseF16;
/// Dense bf16.
pub(crate) struct DenseBf16;

macro_rules! dense {
    ($name:ident, $size:literal, $load:expr) => {
        impl<S: Simd> Decode<S> for $name {
            const VECS: usize = 4;
            const CHUNK_BYTES: usize = 4 * S::LANES * $size;
            const SCALED: bool = false;
            const WORD_ORDER: bool = false;
            const OVERREAD: bool = false;

            #[inline(always)]
            unsafe fn decode(s: S, p: *const u8, i: usize) -> S::F {
                // SAFETY: vector i is LANES elements within the chunk.
                unsafe { $load(s, p.add(i * S::LANES * $size)) }
            }
        }
    };
}
dense!(DenseF32, 4, |s: S, p: *const u8| s.load(p.cast()));
dense!(DenseF16, 2, |s: S, p: *const u8| s.load_f16(p));
dense!(DenseBf16, 2, |s: S, p: *const u8| s.load_bf16(p));

//! Four-bit codes through the bf16 dot product of AVX-512.
//!
//! A 16-bit lane holds four codes; a table lookup by its low bits gives the value of one as bf16, exactly. Vector `i` of
//! a chunk of 128 weights holds code `i` of each 16-bit lane, and the dot product adds pairs of lanes, so a 32-bit lane
//! sums one word, as in word order. Activations are two bf16 numbers each, whose sum has 16 bits of mantissa.

use std::arch::x86_64::*;

use half::bf16;

use super::decode::Decode;
use crate::cpu::simd::Simd;
use crate::cpu::simd::avx512::Avx512;
use crate::quant::float::E2M1_TIMES_2;

/// Codes of an affine format, or with `E2M1` of a float format.
pub(crate) struct Nibbles<const E2M1: bool>;

/// 16-bit lanes of a vector.
const LANES_16: usize = 32;
/// Codes in a 16-bit lane.
const CODES: usize = 4;

impl<const E2M1: bool> Nibbles<E2M1> {
    /// The bf16 values by the low five bits of a lane; the fifth belongs to the next code and does not matter.
    const TABLE: [u16; LANES_16] = {
        let (mut table, mut i) = ([0; LANES_16], 0);
        while i < LANES_16 {
            let code = i % 16;
            let value = if E2M1 { 0.5 * E2M1_TIMES_2[code] as f32 } else { code as f32 };
            table[i] = (value.to_bits() >> 16) as u16; // exact: at most four significant bits
            i += 1;
        }
        table
    };
}

impl<const E2M1: bool> Decode<Avx512<true>> for Nibbles<E2M1> {
    const VECS: usize = 8;
    const CHUNK_BYTES: usize = 64;
    const SCALED: bool = true;
    const WORD_ORDER: bool = true;
    const OVERREAD: bool = false;

    unsafe fn decode(_: Avx512<true>, _: *const u8, _: usize) -> __m512 {
        unreachable!("these codes are only summed, see sum_chunk")
    }

    /// For each code position, the high parts of 32 activations, then their low parts.
    #[inline(always)]
    fn prepare_chunk(x: &[f32], out: &mut [f32]) {
        let pair = |low: bf16, high: bf16| {
            f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16)
        };
        for i in 0..CODES {
            let (high, low) = out[i * LANES_16..][..LANES_16].split_at_mut(LANES_16 / 2);
            for j in 0..LANES_16 / 2 {
                let x = [x[8 * j + i], x[8 * j + CODES + i]];
                let first = x.map(bf16::from_f32);
                let second = [0, 1].map(|k| bf16::from_f32(x[k] - first[k].to_f32()));
                high[j] = pair(first[0], first[1]);
                low[j] = pair(second[0], second[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum_chunk<const X: usize, const R: usize>(
        s: Avx512<true>,
        _: usize,
        at: &[*const u8; R],
        x: &[*const f32; X],
    ) -> [[__m512; R]; X] {
        let mut sums = [[s.splat(0.0); R]; X];
        let mut codes = [s.splat_i(0); R];
        // SAFETY: `s` proves the instructions; a chunk is 64 bytes, and 128 prepared floats are readable at each x.
        unsafe {
            let table = s.load_words(Self::TABLE.as_ptr().cast());
            for r in 0..R {
                codes[r] = s.load_words(at[r]);
            }
            let load = |p: *const f32| std::mem::transmute::<__m512i, __m512bh>(s.load_words(p.cast()));
            for i in 0..CODES {
                for r in 0..R {
                    let idx = if i == 0 { codes[r] } else { s.shr(codes[r], 4 * i as u32) };
                    let w = std::mem::transmute::<__m512i, __m512bh>(_mm512_permutexvar_epi16(idx, table));
                    for m in 0..X {
                        let high = x[m].add(i * LANES_16);
                        sums[m][r] = _mm512_dpbf16_ps(sums[m][r], w, load(high));
                        sums[m][r] = _mm512_dpbf16_ps(sums[m][r], w, load(high.add(LANES_16 / 2)));
                    }
                }
            }
        }
        sums
    }
}

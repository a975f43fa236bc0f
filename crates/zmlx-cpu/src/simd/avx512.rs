//! 512-bit x86 vectors: AVX-512 F, BW, DQ, VL, with or without both VNNI and VBMI.

#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx2::{Avx2, halves};
use super::{Simd, TwoBytes, Vnni, WordSums, codes_of_16, in_aligned_frame, windows16};
use zmlx_core::quant::float::{E2M1_TIMES_2, E2M1_TIMES_2_PLUS_12};

/// Proof that the processor has AVX-512 F, BW, DQ and VL (and AVX2, FMA, F16C). With `VNNI` it also has the integer dot
/// products and VBMI's byte permutations.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const VNNI: bool>(());

/// Each 64-bit lane holds eight of 64 codes. The tables give the bytes that these come from, and the offset in them of
/// the 8-bit window that begins with a code.
const fn code_tables8(bits: usize) -> ([u8; 64], [u8; 64]) {
    let (mut bytes, mut first_bits) = ([0; 64], [0; 64]);
    let mut j = 0;
    while j < 64 {
        bytes[j] = (j / 8 * bits + j % 8 % bits) as u8;
        first_bits[j] = (j % 8 * bits) as u8;
        j += 1;
    }
    (bytes, first_bits)
}

/// The instruction `vpdpwssd`. In short chains the compiler turns its intrinsic into a product and a sum, which are
/// twice as many instructions.
///
/// # Safety
/// The processor has AVX-512 VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dpwssd(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the caller's promise. Only the register is written.
    unsafe {
        asm!(
            "vpdpwssd {}, {}, {}",
            inout(zmm_reg) acc, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// The 16 bytes at `p`, and three more times the 16 bytes `stride` bytes after the last ones.
///
/// # Safety
/// The processor has AVX-512 F, and the bytes are readable.
#[inline(always)]
unsafe fn quarters(p: *const u8, stride: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm512_castsi256_si512(halves(p, stride));
        _mm512_inserti64x4::<1>(low, halves(p.add(2 * stride), stride))
    }
}

/// Transposes four rows within each quarter: column 0 of all four rows, then column 1, and so on.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

// SAFETY of every block below: `self` proves that the instructions exist; pointers are as the trait's callers promise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
impl<const VNNI: bool> Simd for Avx512<VNNI> {
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;
    type F = __m512;
    type I = __m512i;
    type Acc = __m512i;
    /// Without `VNNI` these are sums of pairs in 16 bits.
    type Acc8 = __m512i;
    const CAPACITY8: usize = if VNNI { i32::MAX as usize / (4 * 127) } else { i16::MAX as usize / (2 * 127) };

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn enabled<R>(f: impl FnOnce() -> R) -> R {
            in_aligned_frame(f)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
        unsafe fn enabled_vnni<R>(f: impl FnOnce() -> R) -> R {
            in_aligned_frame(f)
        }
        if VNNI { unsafe { enabled_vnni(f) } } else { unsafe { enabled(f) } }
    }

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    fn splat_i(self, v: u32) -> Self::I {
        unsafe { _mm512_set1_epi32(v.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> Self::I {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Self::F {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_tops16<const BITS: usize>(self, p: *const u8) -> Self::I {
        let (bytes, shifts) = const { windows16(codes_of_16(BITS) * BITS) };
        unsafe {
            let row = quarters(p, codes_of_16(BITS) * BITS);
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let shifts = _mm_loadu_si128(shifts.as_ptr().cast());
            let windows = _mm512_shuffle_epi8(row, _mm512_broadcast_i32x4(bytes));
            _mm512_sllv_epi16(windows, _mm512_broadcast_i32x4(shifts))
        }
    }

    #[inline(always)]
    unsafe fn load_codes8<const BITS: usize>(self, p: *const u8) -> Self::I {
        if VNNI {
            let (bytes, bits) = const { code_tables8(BITS) };
            return unsafe {
                let codes = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - 8 * BITS), p.cast());
                let eights = _mm512_permutexvar_epi8(_mm512_loadu_si512(bytes.as_ptr().cast()), codes);
                let windows = _mm512_multishift_epi64_epi8(_mm512_loadu_si512(bits.as_ptr().cast()), eights);
                self.and(windows, self.splat_i(0x101_0101 * ((1 << BITS) - 1)))
            };
        }
        let (bytes, shifts) = const { windows16(BITS) };
        unsafe {
            let row = quarters(p, 2 * BITS);
            // The first or the last eight codes of each quarter, in 16-bit lanes.
            let eight = |i: usize| {
                let bytes = _mm_loadu_si128(bytes.as_ptr().add(16 * i).cast());
                let shifts = _mm_loadu_si128(shifts.as_ptr().add(8 * i).cast());
                let windows = _mm512_shuffle_epi8(row, _mm512_broadcast_i32x4(bytes));
                let tops = _mm512_sllv_epi16(windows, _mm512_broadcast_i32x4(shifts));
                self.shr16(tops, 16 - BITS as u32)
            };
            _mm512_packus_epi16(eight(0), eight(1))
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F {
        unsafe {
            // The sign twice, then the magnitude. The second sign is dropped.
            let codes = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())));
            _mm512_cvtph_ps(_mm256_and_si256(codes, _mm256_set1_epi16(0xbf80u16.cast_signed())))
        }
    }

    #[inline(always)]
    unsafe fn load_e8m0(self, p: *const u8) -> Self::F {
        unsafe {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            // The code becomes the exponent. Code 0 becomes a subnormal number, and code 255 becomes NaN.
            let powers = _mm512_max_epi32(_mm512_slli_epi32::<23>(codes), self.splat_i(0x0040_0000));
            let is_nan = _mm512_cmpeq_epi32_mask(codes, self.splat_i(255));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(powers, is_nan, self.splat_i(u32::MAX)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::F) {
        unsafe { _mm512_stream_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v))) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn times_power(self, a: Self::F, n: Self::F) -> Self::F {
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn shr16(self, a: Self::I, n: u32) -> Self::I {
        unsafe { _mm512_srl_epi16(a, _mm_cvtsi32_si128(n.cast_signed())) }
    }

    #[inline(always)]
    fn shl16(self, a: Self::I, n: u32) -> Self::I {
        unsafe { _mm512_sll_epi16(a, _mm_cvtsi32_si128(n.cast_signed())) }
    }

    #[inline(always)]
    fn e2m1_times_2(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(E2M1_TIMES_2.as_ptr().cast()));
            _mm512_shuffle_epi8(table, codes)
        }
    }

    #[inline(always)]
    fn e2m1_times_2_plus_12(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = _mm_loadu_si128(E2M1_TIMES_2_PLUS_12.as_ptr().cast());
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
        }
    }

    #[inline(always)]
    fn acc(self) -> Self::Acc {
        self.splat_i(0)
    }

    #[inline(always)]
    fn dot16(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc {
        unsafe { if VNNI { dpwssd(acc, a, b) } else { _mm512_add_epi32(acc, _mm512_madd_epi16(a, b)) } }
    }

    #[inline(always)]
    fn acc_lanes(self, acc: Self::Acc) -> Self::I {
        acc
    }

    #[inline(always)]
    fn acc8(self) -> Self::Acc8 {
        self.splat_i(0)
    }

    #[inline(always)]
    fn dot8(self, acc: Self::Acc8, a: Self::I, b: Self::I) -> Self::Acc8 {
        unsafe {
            if VNNI {
                _mm512_dpbusd_epi32(acc, a, b)
            } else {
                _mm512_add_epi16(acc, _mm512_maddubs_epi16(a, b))
            }
        }
    }

    #[inline(always)]
    fn acc8_lanes(self, acc: Self::Acc8) -> Self::I {
        if VNNI { acc } else { unsafe { _mm512_madd_epi16(acc, _mm512_set1_epi16(1)) } }
    }

    #[inline(always)]
    fn floats(self, a: Self::I) -> Self::F {
        unsafe { _mm512_castsi512_ps(a) }
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        unsafe { _mm512_castps_si512(a) }
    }

    #[inline(always)]
    fn transpose(self, row: impl Fn(usize) -> Self::I, mut column: impl FnMut(usize, Self::I)) {
        unsafe {
            // The four quarters have columns c, c + 4, c + 8 and c + 12 of the rows 4h to 4h + 3.
            let mut rows = [[self.splat_i(0); 4]; 4];
            for h in 0..4 {
                rows[h] = transpose4([row(4 * h), row(4 * h + 1), row(4 * h + 2), row(4 * h + 3)]);
            }
            for c in 0..4 {
                // Quarters 0 and 2, and quarters 1 and 3, of eight rows.
                let even = _mm512_shuffle_i32x4::<0x88>(rows[0][c], rows[1][c]);
                let odd = _mm512_shuffle_i32x4::<0xdd>(rows[0][c], rows[1][c]);
                let even2 = _mm512_shuffle_i32x4::<0x88>(rows[2][c], rows[3][c]);
                let odd2 = _mm512_shuffle_i32x4::<0xdd>(rows[2][c], rows[3][c]);
                column(c, _mm512_shuffle_i32x4::<0x88>(even, even2));
                column(c + 4, _mm512_shuffle_i32x4::<0x88>(odd, odd2));
                column(c + 8, _mm512_shuffle_i32x4::<0xdd>(even, even2));
                column(c + 12, _mm512_shuffle_i32x4::<0xdd>(odd, odd2));
            }
        }
    }

    #[inline(always)]
    fn zip16(self, a: Self::I, b: Self::I) -> (Self::I, Self::I) {
        const UPPER: u32 = 0xaaaa_aaaa;
        unsafe {
            let lower = _mm512_mask_mov_epi16(a, UPPER, _mm512_slli_epi32::<16>(b));
            (lower, _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(a), UPPER, b))
        }
    }

    #[inline(always)]
    fn permute(self, v: Self::F, idx: Self::I) -> Self::F {
        unsafe { _mm512_permutexvar_ps(idx, v) }
    }

    #[inline(always)]
    fn first(self, v: Self::F, n: usize) -> Self::F {
        unsafe { _mm512_maskz_mov_ps(((1u32 << n) - 1) as __mmask16, v) }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn sums(self, v: [Self::F; 4]) -> [f32; 4] {
        unsafe {
            let mut folded = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v[i])));
                folded[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), high);
            }
            Avx2::assume().sums(folded)
        }
    }

    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
}

impl TwoBytes for Avx512<true> {
    const ZIPPED: bool = false;
    type Sum2 = __m512i;

    #[inline(always)]
    fn sum2(self) -> Self::Sum2 {
        self.acc8()
    }

    #[inline(always)]
    fn dot8_of(self, sum: Self::Sum2, a: Self::I, b: Self::I, _: usize) -> Self::Sum2 {
        self.dot8(sum, a, b)
    }

    #[inline(always)]
    fn lower_plane(self, sum: Self::Sum2) -> Self::Sum2 {
        self.times_256(sum)
    }

    #[inline(always)]
    fn sum2_lanes(self, sum: Self::Sum2) -> Self::I {
        self.acc8_lanes(sum)
    }
}

impl Vnni for Avx512<true> {
    #[inline(always)]
    fn times_256(self, acc: Self::Acc8) -> Self::Acc8 {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi32::<8>(acc) }
    }

    #[inline(always)]
    unsafe fn load_words3(self, p: *const u8) -> Self::I {
        let bytes = const {
            let mut bytes = [0u8; 64];
            let mut j = 0;
            while j < 64 {
                bytes[j] = (j / 4 * 3 + j % 4 % 3) as u8;
                j += 1;
            }
            bytes
        };
        // SAFETY: as above.
        unsafe {
            let words = _mm512_maskz_loadu_epi8(u64::MAX >> 16, p.cast());
            _mm512_permutexvar_epi8(_mm512_loadu_si512(bytes.as_ptr().cast()), words)
        }
    }

    #[inline(always)]
    fn codes_of_words3(self, words: Self::I, i: usize) -> Self::I {
        let first_bits = const {
            let mut first_bits = [[0u8; 64]; 2];
            let mut j = 0;
            while j < 64 {
                first_bits[0][j] = (j % 8 / 4 * 32 + j % 4 * 6) as u8;
                first_bits[1][j] = first_bits[0][j] + 3;
                j += 1;
            }
            first_bits
        };
        // SAFETY: as above.
        unsafe {
            let first_bits = _mm512_loadu_si512(first_bits[i].as_ptr().cast());
            self.and(_mm512_multishift_epi64_epi8(first_bits, words), self.splat_i(0x707_0707))
        }
    }

    #[inline(always)]
    fn add_lanes(self, acc: Self::Acc8, lanes: Self::I) -> Self::Acc8 {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(acc, lanes) }
    }
}

impl<const VNNI: bool> WordSums for Avx512<VNNI> {
    #[inline(always)]
    fn acc_of(self, lanes: Self::I) -> Self::Acc {
        lanes
    }

    #[inline(always)]
    fn add16(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves that the instructions exist.
        unsafe { _mm512_add_epi16(a, b) }
    }

    #[inline(always)]
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves that the instructions exist.
        unsafe { _mm512_sub_epi32(a, b) }
    }
}

//! 256-bit x86 vectors: AVX2, FMA, F16C.

use std::arch::x86_64::*;

use super::{Simd, TwoBytes, WordSums, codes_of_16, in_aligned_frame, windows16};
use zmlx_core::quant::float::{E2M1_TIMES_2, E2M1_TIMES_2_PLUS_12};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// [`windows16`] with factors in place of shifts.
const fn windows16_by_factors(bits: usize) -> ([u8; 32], [u16; 16]) {
    let (bytes, mut factors) = windows16(bits);
    let mut j = 0;
    while j < 16 {
        factors[j] = 1 << factors[j];
        j += 1;
    }
    (bytes, factors)
}

/// Eight lanes of ones and eight lanes of zeros. A vector loaded from `8 - n` on covers the first `n` lanes.
const fn first_lanes() -> [u32; 16] {
    let (mut masks, mut i) = ([0; 16], 0);
    while i < 8 {
        masks[i] = u32::MAX;
        i += 1;
    }
    masks
}

/// The 16 bytes at `p`, and the 16 bytes `stride` bytes after them.
///
/// # Safety
/// The processor has AVX2, and the bytes are readable.
#[inline(always)]
pub(super) unsafe fn halves(p: *const u8, stride: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadu_si128(p.cast()));
        _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(p.add(stride).cast()))
    }
}

/// Transposes four rows within each half: column 0 of all four rows, then column 1, and so on.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

// SAFETY of every block below: `self` proves that the instructions exist; pointers are as the trait's callers promise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;
    type F = __m256;
    type I = __m256i;
    type Acc = __m256i;
    /// Sums of pairs, in 16 bits.
    type Acc8 = __m256i;
    const CAPACITY8: usize = i16::MAX as usize / (2 * 127);

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn enabled<R>(f: impl FnOnce() -> R) -> R {
            in_aligned_frame(f)
        }
        unsafe { enabled(f) }
    }

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    fn splat_i(self, v: u32) -> Self::I {
        unsafe { _mm256_set1_epi32(v.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> Self::I {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Self::F {
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_tops16<const BITS: usize>(self, p: *const u8) -> Self::I {
        let (bytes, factors) = const { windows16_by_factors(codes_of_16(BITS) * BITS) };
        unsafe {
            let row = halves(p, codes_of_16(BITS) * BITS);
            let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
            let factors = _mm_loadu_si128(factors.as_ptr().cast());
            let windows = _mm256_shuffle_epi8(row, _mm256_broadcastsi128_si256(bytes));
            _mm256_mullo_epi16(windows, _mm256_broadcastsi128_si256(factors))
        }
    }

    #[inline(always)]
    unsafe fn load_codes8<const BITS: usize>(self, p: *const u8) -> Self::I {
        let (bytes, factors) = const { windows16_by_factors(BITS) };
        unsafe {
            let row = halves(p, 2 * BITS);
            // The first or the last eight codes of each half, in 16-bit lanes.
            let eight = |i: usize| {
                let bytes = _mm_loadu_si128(bytes.as_ptr().add(16 * i).cast());
                let factors = _mm_loadu_si128(factors.as_ptr().add(8 * i).cast());
                let windows = _mm256_shuffle_epi8(row, _mm256_broadcastsi128_si256(bytes));
                let tops = _mm256_mullo_epi16(windows, _mm256_broadcastsi128_si256(factors));
                self.shr16(tops, 16 - BITS as u32)
            };
            _mm256_packus_epi16(eight(0), eight(1))
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F {
        unsafe {
            // The sign twice, then the magnitude. The second sign is dropped.
            let codes = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(_mm_loadl_epi64(p.cast())));
            _mm256_cvtph_ps(_mm_and_si128(codes, _mm_set1_epi16(0xbf80u16.cast_signed())))
        }
    }

    #[inline(always)]
    unsafe fn load_e8m0(self, p: *const u8) -> Self::F {
        unsafe {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            // The code becomes the exponent. Code 0 becomes a subnormal number, and code 255 becomes NaN.
            let powers = _mm256_max_epi32(_mm256_slli_epi32::<23>(codes), self.splat_i(0x0040_0000));
            let nan = _mm256_cmpeq_epi32(codes, self.splat_i(255));
            _mm256_castsi256_ps(_mm256_or_si256(powers, nan))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::F) {
        unsafe { _mm256_stream_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F) {
        unsafe {
            let words = _mm256_cvtps_epi32(v);
            let halves = _mm256_packs_epi32(words, words);
            // The first quarter of each half of the vector.
            let halves = _mm256_permute4x64_epi64::<0b1000>(halves);
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(halves));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn times_power(self, a: Self::F, n: Self::F) -> Self::F {
        unsafe {
            let exponents = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponents)))
        }
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm256_and_si256(a, b) }
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        unsafe { _mm256_cvtepi32_ps(a) }
    }

    #[inline(always)]
    fn shr16(self, a: Self::I, n: u32) -> Self::I {
        unsafe { _mm256_srl_epi16(a, _mm_cvtsi32_si128(n.cast_signed())) }
    }

    #[inline(always)]
    fn shl16(self, a: Self::I, n: u32) -> Self::I {
        unsafe { _mm256_sll_epi16(a, _mm_cvtsi32_si128(n.cast_signed())) }
    }

    #[inline(always)]
    fn e2m1_times_2(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(E2M1_TIMES_2.as_ptr().cast()));
            _mm256_shuffle_epi8(table, codes)
        }
    }

    #[inline(always)]
    fn e2m1_times_2_plus_12(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = _mm_loadu_si128(E2M1_TIMES_2_PLUS_12.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes)
        }
    }

    #[inline(always)]
    fn acc(self) -> Self::Acc {
        self.splat_i(0)
    }

    #[inline(always)]
    fn dot16(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc {
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)) }
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
        unsafe { _mm256_add_epi16(acc, _mm256_maddubs_epi16(a, b)) }
    }

    #[inline(always)]
    fn acc8_lanes(self, acc: Self::Acc8) -> Self::I {
        unsafe { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    fn floats(self, a: Self::I) -> Self::F {
        unsafe { _mm256_castsi256_ps(a) }
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        unsafe { _mm256_castps_si256(a) }
    }

    #[inline(always)]
    fn transpose(self, row: impl Fn(usize) -> Self::I, mut column: impl FnMut(usize, Self::I)) {
        unsafe {
            let low = transpose4([row(0), row(1), row(2), row(3)]);
            let high = transpose4([row(4), row(5), row(6), row(7)]);
            for c in 0..4 {
                column(c, _mm256_permute2x128_si256::<0x20>(low[c], high[c]));
                column(c + 4, _mm256_permute2x128_si256::<0x31>(low[c], high[c]));
            }
        }
    }

    #[inline(always)]
    fn zip16(self, a: Self::I, b: Self::I) -> (Self::I, Self::I) {
        unsafe {
            let lower = _mm256_blend_epi16::<0xaa>(a, _mm256_slli_epi32::<16>(b));
            (lower, _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(a), b))
        }
    }

    #[inline(always)]
    fn permute(self, v: Self::F, idx: Self::I) -> Self::F {
        unsafe { _mm256_permutevar8x32_ps(v, idx) }
    }

    #[inline(always)]
    fn first(self, v: Self::F, n: usize) -> Self::F {
        const MASKS: [u32; 16] = first_lanes();
        debug_assert!(n <= 8);
        unsafe { _mm256_and_ps(v, _mm256_loadu_ps(MASKS.as_ptr().add(8 - n).cast())) }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        unsafe {
            let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
        }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        unsafe {
            let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let whole = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            _mm_storeu_ps(sums.as_mut_ptr(), whole);
        }
        sums
    }

    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        unsafe {
            let q = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps::<1>(d, d)))
        }
    }
}

// SAFETY of every block below: as above.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
impl TwoBytes for Avx2 {
    const ZIPPED: bool = true;
    type Sum2 = [__m256i; 2];

    #[inline(always)]
    fn sum2(self) -> Self::Sum2 {
        [self.acc8(); 2]
    }

    #[inline(always)]
    fn dot8_of(self, mut sum: Self::Sum2, a: Self::I, b: Self::I, plane: usize) -> Self::Sum2 {
        sum[plane] = self.dot8(sum[plane], a, b);
        sum
    }

    #[inline(always)]
    fn sum2_lanes(self, [upper, lower]: Self::Sum2) -> Self::I {
        unsafe {
            let upper = _mm256_madd_epi16(upper, _mm256_set1_epi16(256));
            _mm256_add_epi32(upper, self.acc8_lanes(lower))
        }
    }

    #[inline(always)]
    unsafe fn load_zipped(self, p: *const u8, i: usize) -> Self::I {
        unsafe {
            // The source loads both vectors for each `i`; after inlining each is loaded once.
            let (a, b) = (self.load_words(p), self.load_words(p.add(32)));
            if i == 0 { _mm256_unpacklo_epi64(a, b) } else { _mm256_unpackhi_epi64(a, b) }
        }
    }
}

impl WordSums for Avx2 {
    #[inline(always)]
    fn acc_of(self, lanes: Self::I) -> Self::Acc {
        lanes
    }

    #[inline(always)]
    fn add16(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: `self` proves that the instructions exist.
        unsafe { _mm256_add_epi16(a, b) }
    }

    #[inline(always)]
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { _mm256_sub_epi32(a, b) }
    }
}

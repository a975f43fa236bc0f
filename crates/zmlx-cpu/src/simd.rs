//! The vector operations that the kernels use, with one implementation for each instruction-set level.
//!
//! A value of an implementing type proves that the processor has the level's instructions: it is made only after
//! detection. Kernels are `#[inline(always)]` functions that are generic over [`Simd`]. They are instantiated inside a
//! function that enables the level's target features.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Calls a function from a stack frame that begins on a cache line.
///
/// If the compiler has too few registers and puts vectors on the stack, they are then aligned too. Otherwise the depth
/// of the stack decides which of them cross cache lines: then two threads of a Zen 4 read 15 GB/s of weights with 2
/// bits, instead of 23 (AVX2, 2026-11).
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn in_aligned_frame<R>(f: impl FnOnce() -> R) -> R {
    #[repr(align(64))]
    struct Line(#[expect(dead_code, reason = "only its place matters")] std::mem::MaybeUninit<u8>);
    std::hint::black_box(&mut Line(std::mem::MaybeUninit::uninit()));
    f()
}

/// Prefetches the cache line at `p` into the second-level cache. `p` need not be valid. Data that is used later does
/// not need to take one of the few slots for misses of the first level. This works only on x86-64, because there is no
/// stable intrinsic elsewhere.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Makes writes by [`Simd::stream`] visible to other threads before this thread's later writes.
pub(crate) fn finish_streams() {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction, which accesses nothing.
        #[allow(unused_unsafe, reason = "whether it is unsafe depends on the compiler's version")]
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }
}

/// Number of codes that a 16-bit lane holds, rounded down to a power of two.
pub(crate) const fn codes_of_16(bits: usize) -> usize {
    1 << (16 / bits).ilog2()
}

/// For numbers of `bits` bits, stored one after the other: the two bytes that contain number `j`, and the left shift
/// that brings it to the top of 16 bits.
const fn windows16(bits: usize) -> ([u8; 32], [u16; 16]) {
    let (mut bytes, mut shifts) = ([0; 32], [0; 16]);
    let mut j = 0;
    while j < 16 {
        bytes[2 * j] = (j * bits / 8) as u8;
        bytes[2 * j + 1] = bytes[2 * j] + 1;
        shifts[j] = (16 - bits - j * bits % 8) as u16;
        j += 1;
    }
    (bytes, shifts)
}

/// Vectors of `LANES` 32-bit lanes.
///
/// # Safety of the loads and stores
/// Each reads or writes the stated number of bytes at a pointer of any alignment, which must be valid for that.
pub(crate) trait Simd: Copy {
    /// Number of lanes in a vector: 8 or 16.
    const LANES: usize;
    /// Whether there are 32 vector registers instead of 16.
    const MANY_REGISTERS: bool;
    /// A vector of floats.
    type F: Copy;
    /// A vector of integers.
    type I: Copy;
    /// Running sums of [`Simd::dot16`].
    type Acc: Copy;
    /// Running sums of [`Simd::dot8`].
    type Acc8: Copy;
    /// The largest sum of the unsigned factors in a running sum of [`Simd::dot8`], if the signed factors are at most
    /// 127.
    const CAPACITY8: usize;

    /// Makes the proof without detection.
    ///
    /// # Safety
    /// The processor has the level's instructions.
    unsafe fn assume() -> Self;

    /// Runs `f` with the level's instructions enabled.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;

    fn splat(self, v: f32) -> Self::F;
    fn splat_i(self, v: u32) -> Self::I;
    /// Reads `LANES` floats.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Reads `LANES` little-endian words from `4 · LANES` bytes.
    unsafe fn load_words(self, p: *const u8) -> Self::I;
    /// Reads `LANES` bf16 values from `2 · LANES` bytes.
    unsafe fn load_bf16(self, p: *const u8) -> Self::F;
    /// Reads `LANES` f16 values from `2 · LANES` bytes.
    unsafe fn load_f16(self, p: *const u8) -> Self::F;
    /// Reads `2 · LANES` times [`codes_of_16`] codes of `BITS` (3, 5 or 6) bits. Each 16-bit lane gets as many
    /// neighbouring codes as it holds: the last one at the top, the others below it. The bits below these are
    /// unspecified. May read 16 bytes more.
    unsafe fn load_tops16<const BITS: usize>(self, p: *const u8) -> Self::I;
    /// Reads `4 · LANES` codes of `BITS` (3, 5 or 6) bits from `LANES · BITS / 2` bytes into 8-bit lanes. May read up
    /// to `LANES · BITS / 2 + 16` bytes.
    unsafe fn load_codes8<const BITS: usize>(self, p: *const u8) -> Self::I;
    /// Reads `LANES` e4m3 codes; the results are 2^8 times too small. The NaN codes give ±480 · 2^-8.
    ///
    /// The bits are moved to their places in a half-precision float, because that conversion is fast for subnormal
    /// numbers too.
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F;
    /// Reads `LANES` e8m0 codes.
    unsafe fn load_e8m0(self, p: *const u8) -> Self::F;
    /// Writes `LANES` floats.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Writes `LANES` floats to an address that is a multiple of their size, past the caches if the hardware can.
    /// [`finish_streams`] must follow.
    #[inline(always)]
    unsafe fn stream(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller's promise.
        unsafe { self.store(p, v) }
    }
    /// Writes the integers nearest to `LANES` floats, which must fit. NaN gives any integer.
    unsafe fn store_i16(self, p: *mut i16, v: Self::F);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once if the hardware can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` if it is greater than `b`, else `b`; so also `b` if one of them is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · 2^n` for whole numbers `n` from -126 to 0.
    fn times_power(self, a: Self::F, n: Self::F) -> Self::F;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// The lanes as signed integers, converted to the nearest floats.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// Logical shift right of 16-bit lanes by `n` < 16, which is a constant after unrolling.
    fn shr16(self, a: Self::I, n: u32) -> Self::I;
    /// Logical shift left of 16-bit lanes by `n` < 16, which is a constant after unrolling.
    fn shl16(self, a: Self::I, n: u32) -> Self::I;
    /// The `BITS` bits from bit `from` on of each 8-bit lane. `from` is a constant after unrolling.
    #[inline(always)]
    fn bits_of_8<const BITS: usize>(self, a: Self::I, from: usize) -> Self::I {
        let shifted = if from == 0 { a } else { self.shr16(a, from as u32) };
        self.and(shifted, self.splat_i(0x101_0101 * ((1 << BITS) - 1)))
    }
    /// Twice the e2m1 values of the codes in the 8-bit lanes, with signs.
    fn e2m1_times_2(self, codes: Self::I) -> Self::I;
    /// Twice the e2m1 values of the codes in the 8-bit lanes, plus 12.
    fn e2m1_times_2_plus_12(self, codes: Self::I) -> Self::I;
    /// Sums of zero.
    fn acc(self) -> Self::Acc;
    /// Adds the products of signed 16-bit lanes in pairs: 32-bit lane `j` of [`Simd::acc_lanes`] is the sum over lanes
    /// `2j` and `2j + 1`. The sums must fit.
    fn dot16(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc;
    /// The sums so far, as signed 32-bit lanes.
    fn acc_lanes(self, acc: Self::Acc) -> Self::I;
    /// Sums of zero.
    fn acc8(self) -> Self::Acc8;
    /// Adds the products of the unsigned 8-bit lanes of `a`, which are at most 63 except with [`Vnni`], and the signed
    /// ones of `b`: 32-bit lane `j` of [`Simd::acc8_lanes`] is the sum over lanes `4j` to `4j + 3`. The sums must fit,
    /// see [`Simd::CAPACITY8`].
    fn dot8(self, acc: Self::Acc8, a: Self::I, b: Self::I) -> Self::Acc8;
    /// The sums so far, as signed 32-bit lanes.
    fn acc8_lanes(self, acc: Self::Acc8) -> Self::I;
    /// Reinterprets the lanes' bits as floats.
    fn floats(self, a: Self::I) -> Self::F;
    /// Reinterprets the lanes' bits as integers.
    fn bits(self, a: Self::F) -> Self::I;
    /// Transposes `LANES` vectors of words. Calls `row(i)` for all of them, then `column(j, v)` for the vector `v` of
    /// their lanes `j`, in any order of `j`.
    fn transpose(self, row: impl Fn(usize) -> Self::I, column: impl FnMut(usize, Self::I));
    /// Pairs 16-bit halves: in each 32-bit lane of the first result the lower half of `a` with that of `b` above it,
    /// and in the second result the upper halves.
    fn zip16(self, a: Self::I, b: Self::I) -> (Self::I, Self::I);
    /// Lane `j` of the result is lane `idx[j]` of `v`.
    fn permute(self, v: Self::F, idx: Self::I) -> Self::F;
    /// The first `n` lanes of `v`, then zeros.
    fn first(self, v: Self::F, n: usize) -> Self::F;
    /// The sum of the lanes.
    fn sum(self, v: Self::F) -> f32;
    /// The sums of the lanes of four vectors.
    fn sums(self, v: [Self::F; 4]) -> [f32; 4];
    /// The largest lane. No lane is NaN.
    fn largest(self, v: Self::F) -> f32;
}

/// Vectors whose sums of [`Simd::dot16`] are modulo 2^32.
#[cfg(target_arch = "x86_64")]
pub(crate) trait WordSums: Simd {
    /// Sums that start with these 32-bit lanes.
    fn acc_of(self, lanes: Self::I) -> Self::Acc;
    /// Adds 16-bit lanes. The sums must fit.
    fn add16(self, a: Self::I, b: Self::I) -> Self::I;
    /// Subtracts 32-bit lanes, modulo 2^32.
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I;
}

/// Vectors that multiply 16-bit activations as two planes of bytes, `256 · upper + lower`.
#[cfg(target_arch = "x86_64")]
pub(crate) trait TwoBytes: Simd {
    /// Whether sums of products of bytes have 16 bits. Then each plane has sums of its own, and words are zipped, so
    /// that the sums of two vectors of words, which are of the same groups, become 32 bits wide together.
    const ZIPPED: bool;
    /// Running sums of products with both planes.
    type Sum2: Copy;

    /// Sums of zero.
    fn sum2(self) -> Self::Sum2;
    /// Adds products as [`Simd::dot8`] does, with the upper plane (0) or the lower one (1).
    fn dot8_of(self, sum: Self::Sum2, a: Self::I, b: Self::I, plane: usize) -> Self::Sum2;
    /// The step between all products with the upper plane and those with the lower one, if words are not zipped.
    #[inline(always)]
    fn lower_plane(self, sum: Self::Sum2) -> Self::Sum2 {
        sum
    }
    /// The sums so far, as signed 32-bit lanes.
    fn sum2_lanes(self, sum: Self::Sum2) -> Self::I;
    /// Vector `i` of the two vectors of words from `p` on. If words are zipped, the first vector takes the first two
    /// words of each half of both, and the second takes the last two.
    #[inline(always)]
    unsafe fn load_zipped(self, p: *const u8, i: usize) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { self.load_words(p.add(4 * i * Self::LANES)) }
    }
}

/// Vectors with VNNI's dot products, whose sums of products of bytes have 32 bits.
#[cfg(target_arch = "x86_64")]
pub(crate) trait Vnni: Simd {
    /// The sums times 256. The results must fit.
    fn times_256(self, acc: Self::Acc8) -> Self::Acc8;
    /// Reads `LANES` words of eight codes of 3 bits from `3 · LANES` bytes into the low 24 bits of 32-bit lanes. The
    /// other bits are unspecified.
    unsafe fn load_words3(self, p: *const u8) -> Self::I;
    /// The codes `i`, `i + 2`, `i + 4` and `i + 6` of each such word in 8-bit lanes; `i` is 0 or 1.
    fn codes_of_words3(self, words: Self::I, i: usize) -> Self::I;
    /// Adds 32-bit lanes to the sums.
    fn add_lanes(self, acc: Self::Acc8, lanes: Self::I) -> Self::Acc8;
}

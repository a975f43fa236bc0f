//! 128-bit Arm vectors, used in pairs so that a vector has eight lanes.

use std::arch::aarch64::*;

use super::{Simd, codes_of_16, windows16};
use zmlx_core::quant::float::{E2M1_TIMES_2, E2M1_TIMES_2_PLUS_12, e8m0_to_f32};

/// Proof that the processor has NEON, as every 64-bit Arm processor that Rust supports has.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

type Pair<T> = (T, T);

/// Eight lanes of ones and eight lanes of zeros. A vector loaded from `8 - n` on covers the first `n` lanes.
const fn first_lanes() -> [u32; 16] {
    let (mut masks, mut i) = ([0; 16], 0);
    while i < 8 {
        masks[i] = u32::MAX;
        i += 1;
    }
    masks
}

/// Transposes four rows.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [uint32x4_t; 4]) -> [uint32x4_t; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let pair = |a, b| (vreinterpretq_u64_u32(vtrn1q_u32(a, b)), vreinterpretq_u64_u32(vtrn2q_u32(a, b)));
        let ((even_ab, odd_ab), (even_cd, odd_cd)) = (pair(a, b), pair(c, d));
        [
            vreinterpretq_u32_u64(vtrn1q_u64(even_ab, even_cd)),
            vreinterpretq_u32_u64(vtrn1q_u64(odd_ab, odd_cd)),
            vreinterpretq_u32_u64(vtrn2q_u64(even_ab, even_cd)),
            vreinterpretq_u32_u64(vtrn2q_u64(odd_ab, odd_cd)),
        ]
    }
}

// SAFETY of every block below: NEON is part of the target's baseline; pointers are as the trait's callers promise.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, stated above")]
impl Simd for Neon {
    const LANES: usize = 8;
    /// A vector takes two registers.
    const MANY_REGISTERS: bool = false;
    type F = Pair<float32x4_t>;
    type I = Pair<uint32x4_t>;
    /// The products of the low lanes and of the high lanes of each half. Pairs are added at the end.
    type Acc = Pair<Pair<int32x4_t>>;
    /// As `Acc`.
    type Acc8 = Self::Acc;
    const CAPACITY8: usize = i32::MAX as usize / (4 * 127);

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self
    }

    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        unsafe { (vdupq_n_f32(v), vdupq_n_f32(v)) }
    }

    #[inline(always)]
    fn splat_i(self, v: u32) -> Self::I {
        unsafe { (vdupq_n_u32(v), vdupq_n_u32(v)) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { (vld1q_f32(p), vld1q_f32(p.add(4))) }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> Self::I {
        unsafe { (vreinterpretq_u32_u8(vld1q_u8(p)), vreinterpretq_u32_u8(vld1q_u8(p.add(16)))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Self::F {
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(p));
            let low = vshll_n_u16::<16>(vget_low_u16(halves));
            let high = vshll_n_u16::<16>(vget_high_u16(halves));
            (vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F {
        let values: [f32; 8] = std::array::from_fn(|i| unsafe {
            half::f16::from_le_bytes([p.add(2 * i).read(), p.add(2 * i + 1).read()]).to_f32()
        });
        unsafe { self.load(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_tops16<const BITS: usize>(self, p: *const u8) -> Self::I {
        let (bytes, shifts) = const { windows16(codes_of_16(BITS) * BITS) };
        unsafe {
            let (bytes, shifts) =
                (vld1q_u8(bytes.as_ptr()), vreinterpretq_s16_u16(vld1q_u16(shifts.as_ptr())));
            let half = |i: usize| {
                let row = vld1q_u8(p.add(i * codes_of_16(BITS) * BITS));
                vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(row, bytes)), shifts))
            };
            (half(0), half(1))
        }
    }

    #[inline(always)]
    unsafe fn load_codes8<const BITS: usize>(self, p: *const u8) -> Self::I {
        let (bytes, shifts) = const { windows16(BITS) };
        unsafe {
            let down = vdupq_n_s16(BITS as i16 - 16);
            let sixteen = |half: usize| {
                let row = vld1q_u8(p.add(2 * BITS * half));
                let eight = |i: usize| {
                    let window = vreinterpretq_u16_u8(vqtbl1q_u8(row, vld1q_u8(bytes.as_ptr().add(16 * i))));
                    let top = vshlq_u16(window, vreinterpretq_s16_u16(vld1q_u16(shifts.as_ptr().add(8 * i))));
                    vmovn_u16(vshlq_u16(top, down))
                };
                vreinterpretq_u32_u8(vcombine_u8(eight(0), eight(1)))
            };
            (sixteen(0), sixteen(1))
        }
    }

    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F {
        let values: [f32; 8] = std::array::from_fn(|i| {
            let c = u16::from(unsafe { p.add(i).read() });
            half::f16::from_bits((c & 0x80) << 8 | (c & 0x7f) << 7).to_f32()
        });
        unsafe { self.load(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_e8m0(self, p: *const u8) -> Self::F {
        let values: [f32; 8] = std::array::from_fn(|i| e8m0_to_f32(unsafe { p.add(i).read() }));
        unsafe { self.load(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        unsafe {
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
        }
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F) {
        unsafe {
            let low = vmovn_s32(vcvtnq_s32_f32(v.0));
            vst1q_s16(p, vmovn_high_s32(low, vcvtnq_s32_f32(v.1)));
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { (vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe { (vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { (vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            let half = |a, b| vbslq_f32(vcgtq_f32(a, b), a, b);
            (half(a.0, b.0), half(a.1, b.1))
        }
    }

    #[inline(always)]
    fn times_power(self, a: Self::F, n: Self::F) -> Self::F {
        unsafe {
            let half = |a, n| {
                let exponents = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
                vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponents)))
            };
            (half(a.0, n.0), half(a.1, n.1))
        }
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        unsafe { (vandq_u32(a.0, b.0), vandq_u32(a.1, b.1)) }
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        unsafe { (vcvtq_f32_s32(vreinterpretq_s32_u32(a.0)), vcvtq_f32_s32(vreinterpretq_s32_u32(a.1))) }
    }

    #[inline(always)]
    fn shr16(self, a: Self::I, n: u32) -> Self::I {
        unsafe {
            let by = vdupq_n_s16(-(n as i16));
            let half = |a| vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u32(a), by));
            (half(a.0), half(a.1))
        }
    }

    #[inline(always)]
    fn shl16(self, a: Self::I, n: u32) -> Self::I {
        unsafe {
            let by = vdupq_n_s16(n as i16);
            let half = |a| vreinterpretq_u32_u16(vshlq_u16(vreinterpretq_u16_u32(a), by));
            (half(a.0), half(a.1))
        }
    }

    #[inline(always)]
    fn e2m1_times_2(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = vld1q_s8(E2M1_TIMES_2.as_ptr());
            let half = |c| vreinterpretq_u32_s8(vqtbl1q_s8(table, vreinterpretq_u8_u32(c)));
            (half(codes.0), half(codes.1))
        }
    }

    #[inline(always)]
    fn e2m1_times_2_plus_12(self, codes: Self::I) -> Self::I {
        unsafe {
            let table = vld1q_u8(E2M1_TIMES_2_PLUS_12.as_ptr());
            let half = |c| vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(c)));
            (half(codes.0), half(codes.1))
        }
    }

    #[inline(always)]
    fn acc(self) -> Self::Acc {
        let zero = unsafe { vdupq_n_s32(0) };
        ((zero, zero), (zero, zero))
    }

    #[inline(always)]
    fn dot16(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc {
        unsafe {
            let half = |acc: Pair<int32x4_t>, a, b| {
                let (a, b) = (vreinterpretq_s16_u32(a), vreinterpretq_s16_u32(b));
                (vmlal_s16(acc.0, vget_low_s16(a), vget_low_s16(b)), vmlal_high_s16(acc.1, a, b))
            };
            (half(acc.0, a.0, b.0), half(acc.1, a.1, b.1))
        }
    }

    #[inline(always)]
    fn acc_lanes(self, acc: Self::Acc) -> Self::I {
        unsafe {
            let half = |a: Pair<int32x4_t>| vreinterpretq_u32_s32(vpaddq_s32(a.0, a.1));
            (half(acc.0), half(acc.1))
        }
    }

    #[inline(always)]
    fn acc8(self) -> Self::Acc8 {
        self.acc()
    }

    /// Factors up to 63 are the same as signed bytes.
    #[inline(always)]
    fn dot8(self, acc: Self::Acc8, a: Self::I, b: Self::I) -> Self::Acc8 {
        unsafe {
            let half = |acc: Pair<int32x4_t>, a, b| {
                let (a, b) = (vreinterpretq_s8_u32(a), vreinterpretq_s8_u32(b));
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
                (vpadalq_s16(acc.0, low), vpadalq_s16(acc.1, vmull_high_s8(a, b)))
            };
            (half(acc.0, a.0, b.0), half(acc.1, a.1, b.1))
        }
    }

    #[inline(always)]
    fn acc8_lanes(self, acc: Self::Acc8) -> Self::I {
        self.acc_lanes(acc)
    }

    #[inline(always)]
    fn floats(self, a: Self::I) -> Self::F {
        unsafe { (vreinterpretq_f32_u32(a.0), vreinterpretq_f32_u32(a.1)) }
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        unsafe { (vreinterpretq_u32_f32(a.0), vreinterpretq_u32_f32(a.1)) }
    }

    #[inline(always)]
    fn transpose(self, row: impl Fn(usize) -> Self::I, mut column: impl FnMut(usize, Self::I)) {
        unsafe {
            let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
            let (left, right) = (rows.map(|row| row.0), rows.map(|row| row.1));
            // The first four columns, then the other four, of the first four rows and of the other four.
            for (first, half) in [(0, left), (4, right)] {
                let [a, b, c, d, e, f, g, h] = half;
                let (upper, lower) = (transpose4([a, b, c, d]), transpose4([e, f, g, h]));
                for i in 0..4 {
                    column(first + i, (upper[i], lower[i]));
                }
            }
        }
    }

    #[inline(always)]
    fn zip16(self, a: Self::I, b: Self::I) -> (Self::I, Self::I) {
        unsafe {
            let half = |a, b| {
                let (a, b) = (vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
                (vreinterpretq_u32_u16(vtrn1q_u16(a, b)), vreinterpretq_u32_u16(vtrn2q_u16(a, b)))
            };
            let (first, second) = (half(a.0, b.0), half(a.1, b.1));
            ((first.0, second.0), (first.1, second.1))
        }
    }

    #[inline(always)]
    fn permute(self, v: Self::F, idx: Self::I) -> Self::F {
        unsafe {
            let table = uint8x16x2_t(vreinterpretq_u8_f32(v.0), vreinterpretq_u8_f32(v.1));
            // The bytes 4i to 4i + 3 for lane i.
            let pick = |idx| {
                let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), idx, vdupq_n_u32(0x0404_0404));
                vreinterpretq_f32_u8(vqtbl2q_u8(table, vreinterpretq_u8_u32(bytes)))
            };
            (pick(idx.0), pick(idx.1))
        }
    }

    #[inline(always)]
    fn first(self, v: Self::F, n: usize) -> Self::F {
        const MASKS: [u32; 16] = first_lanes();
        debug_assert!(n <= 8);
        unsafe {
            let p = MASKS.as_ptr().add(8 - n);
            let half = |v, mask| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), mask));
            (half(v.0, vld1q_u32(p)), half(v.1, vld1q_u32(p.add(4))))
        }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(v.0, v.1)) }
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        unsafe {
            let ab = vpaddq_f32(vaddq_f32(a.0, a.1), vaddq_f32(b.0, b.1));
            let cd = vpaddq_f32(vaddq_f32(c.0, c.1), vaddq_f32(d.0, d.1));
            vst1q_f32(sums.as_mut_ptr(), vpaddq_f32(ab, cd));
        }
        sums
    }

    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(v.0, v.1)) }
    }
}

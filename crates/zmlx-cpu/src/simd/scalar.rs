//! Portable vectors: arrays of eight lanes.

use super::{Simd, codes_of_16};
use zmlx_core::quant::float::{E2M1_TIMES_2, E2M1_TIMES_2_PLUS_12, e8m0_to_f32};

/// Needs only the target's baseline instructions.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

const N: usize = 8;

/// Applies `f` to both 16-bit halves of a word.
fn halves(word: u32, f: impl Fn(u16) -> u16) -> u32 {
    u32::from(f(word as u16)) | u32::from(f((word >> 16) as u16)) << 16
}

impl Simd for Scalar {
    const LANES: usize = N;
    const MANY_REGISTERS: bool = false;
    type F = [f32; N];
    type I = [u32; N];
    type Acc = [i32; N];
    type Acc8 = [i32; N];
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
        [v; N]
    }

    #[inline(always)]
    fn splat_i(self, v: u32) -> Self::I {
        [v; N]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller passes N readable floats.
        unsafe { p.cast::<[f32; N]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> Self::I {
        // SAFETY: the caller passes 4 N readable bytes.
        unsafe { p.cast::<[u32; N]>().read_unaligned() }.map(u32::from_le)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> Self::F {
        // SAFETY: the caller passes 2 N readable bytes.
        unsafe { p.cast::<[u16; N]>().read_unaligned() }
            .map(|b| f32::from_bits(u32::from(u16::from_le(b)) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u8) -> Self::F {
        // SAFETY: the caller passes 2 N readable bytes.
        unsafe { p.cast::<[u16; N]>().read_unaligned() }
            .map(|b| half::f16::from_bits(u16::from_le(b)).to_f32())
    }

    #[inline(always)]
    unsafe fn load_tops16<const BITS: usize>(self, p: *const u8) -> Self::I {
        let lane_bits = codes_of_16(BITS) * BITS;
        // SAFETY: eight lanes take `lane_bits` bytes, and the caller passes 16 more readable ones.
        let bits =
            [0, 1].map(|i| u128::from_le(unsafe { p.add(lane_bits * i).cast::<u128>().read_unaligned() }));
        let top =
            |i: usize| u32::from((bits[i / 8] >> (i % 8 * lane_bits)) as u16) << (16 - lane_bits) & 0xffff;
        std::array::from_fn(|i| top(2 * i) | top(2 * i + 1) << 16)
    }

    #[inline(always)]
    unsafe fn load_codes8<const BITS: usize>(self, p: *const u8) -> Self::I {
        // SAFETY: sixteen codes take 2 BITS bytes, and the caller passes 16 more readable ones.
        let bits =
            [0, 1].map(|i| u128::from_le(unsafe { p.add(2 * BITS * i).cast::<u128>().read_unaligned() }));
        let code = |i: usize| (bits[i / 16] >> (i % 16 * BITS)) as u32 & ((1 << BITS) - 1);
        std::array::from_fn(|i| {
            code(4 * i) | code(4 * i + 1) << 8 | code(4 * i + 2) << 16 | code(4 * i + 3) << 24
        })
    }

    #[inline(always)]
    unsafe fn load_e4m3(self, p: *const u8) -> Self::F {
        // SAFETY: the caller passes N readable bytes.
        unsafe { p.cast::<[u8; N]>().read_unaligned() }.map(|c| {
            let c = u16::from(c);
            half::f16::from_bits((c & 0x80) << 8 | (c & 0x7f) << 7).to_f32()
        })
    }

    #[inline(always)]
    unsafe fn load_e8m0(self, p: *const u8) -> Self::F {
        // SAFETY: the caller passes N readable bytes.
        unsafe { p.cast::<[u8; N]>().read_unaligned() }.map(e8m0_to_f32)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: Self::F) {
        // SAFETY: the caller passes room for N floats.
        unsafe { p.cast::<[f32; N]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, v: Self::F) {
        // Adding and subtracting this rounds to a whole number.
        const ROUND: f32 = 12_582_912.0;
        // SAFETY: the caller passes room for N integers.
        unsafe { p.cast::<[i16; N]>().write_unaligned(v.map(|v| (v + ROUND - ROUND) as i16)) }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i]) // two roundings: without hardware, one is a library call
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn times_power(self, a: Self::F, n: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * f32::from_bits((n[i] as i32 + 127).cast_unsigned() << 23))
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn to_f32(self, a: Self::I) -> Self::F {
        a.map(|v| v.cast_signed() as f32)
    }

    #[inline(always)]
    fn shr16(self, a: Self::I, n: u32) -> Self::I {
        a.map(|v| halves(v, |h| h >> n))
    }

    #[inline(always)]
    fn shl16(self, a: Self::I, n: u32) -> Self::I {
        a.map(|v| halves(v, |h| h << n))
    }

    #[inline(always)]
    fn e2m1_times_2(self, codes: Self::I) -> Self::I {
        codes.map(|c| {
            let twice = |code: u8| E2M1_TIMES_2[usize::from(code & 15)].cast_unsigned();
            u32::from_le_bytes(c.to_le_bytes().map(twice))
        })
    }

    #[inline(always)]
    fn e2m1_times_2_plus_12(self, codes: Self::I) -> Self::I {
        codes.map(|c| {
            u32::from_le_bytes(c.to_le_bytes().map(|code| E2M1_TIMES_2_PLUS_12[usize::from(code & 15)]))
        })
    }

    #[inline(always)]
    fn acc(self) -> Self::Acc {
        [0; N]
    }

    #[inline(always)]
    fn dot16(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc {
        let low = |v: u32| i32::from(v as i16);
        let high = |v: u32| v.cast_signed() >> 16;
        std::array::from_fn(|i| acc[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }

    #[inline(always)]
    fn acc_lanes(self, acc: Self::Acc) -> Self::I {
        acc.map(i32::cast_unsigned)
    }

    #[inline(always)]
    fn acc8(self) -> Self::Acc8 {
        [0; N]
    }

    #[inline(always)]
    fn dot8(self, acc: Self::Acc8, a: Self::I, b: Self::I) -> Self::Acc8 {
        let product = |a: u32, b: u32, byte: u32| {
            let shift = 8 * byte;
            (a >> shift & 255).cast_signed() * i32::from((b >> shift) as i8)
        };
        std::array::from_fn(|i| {
            let [p, q, r, s] = [0, 1, 2, 3].map(|byte| product(a[i], b[i], byte));
            acc[i] + p + q + r + s
        })
    }

    #[inline(always)]
    fn acc8_lanes(self, acc: Self::Acc8) -> Self::I {
        acc.map(i32::cast_unsigned)
    }

    #[inline(always)]
    fn floats(self, a: Self::I) -> Self::F {
        a.map(f32::from_bits)
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        a.map(f32::to_bits)
    }

    #[inline(always)]
    fn transpose(self, row: impl Fn(usize) -> Self::I, mut column: impl FnMut(usize, Self::I)) {
        let rows: [Self::I; N] = std::array::from_fn(row);
        for j in 0..N {
            column(j, rows.map(|row| row[j]));
        }
    }

    #[inline(always)]
    fn zip16(self, a: Self::I, b: Self::I) -> (Self::I, Self::I) {
        let lower = std::array::from_fn(|i| a[i] & 0xffff | b[i] << 16);
        (lower, std::array::from_fn(|i| a[i] >> 16 | b[i] & 0xffff_0000))
    }

    #[inline(always)]
    fn permute(self, v: Self::F, idx: Self::I) -> Self::F {
        idx.map(|i| v[i as usize % N])
    }

    #[inline(always)]
    fn first(self, v: Self::F, n: usize) -> Self::F {
        std::array::from_fn(|i| if i < n { v[i] } else { 0.0 })
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn sums(self, v: [Self::F; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }

    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

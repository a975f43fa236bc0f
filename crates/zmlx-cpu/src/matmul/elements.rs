//! What cells hold (two integers of 16 bits, four integers of 8 bits, or a float), and how cells are multiplied.
//!
//! Quantised weights are integers. Their activations then are integers too, with a scale for each group of weights. An
//! activation of 16 bits is off by at most about 2⁻¹⁶ of the largest in its group, one of 8 bits by 2⁻⁸. Everything
//! else is exact up to the sum over the groups, which is in f32: codes are integers, and their products with
//! activations are summed as integers. 16 bits take half the instructions of floats, 8 bits a quarter. The result does
//! not depend on the order within a group.
//!
//! If codes become bytes easily and the level has the products ([`TwoBytes`]), a 16-bit activation is two bytes,
//! `256 · upper + lower`. Each byte is in a plane of its own. There are as many products as with 16 bits, but weights
//! stay bytes, and bytes take half the instructions to unpack.

use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::TwoBytes;

/// What a cell holds, and how cells are multiplied.
pub(super) trait Element<S: Simd>: Sized {
    /// Number of weights in a cell.
    const WEIGHTS: usize;
    /// Whether activations have a scale for each group of weights. The scales are stored after the sums of the groups.
    const X_SCALED: bool;
    /// Number of planes of a row of activations. Between the products with one plane and those with the next, sums go
    /// through [`Element::next_plane`].
    const PLANES: usize = 1;
    /// Whether words are [zipped](super::zipped) in chunks of two vectors. Each plane then has sums of its own, so
    /// products with all planes may come in any order.
    const ZIPPED: bool = false;
    /// The largest sum of weights that does not overflow a running sum when all activations are as large as possible.
    const CAPACITY: usize;
    /// Running sums of products, lane by lane.
    type Sum: Copy;

    /// The sums at the start.
    fn zero(s: S) -> Self::Sum;
    /// Vector `i` of the two vectors of words at `p`, zipped if words are zipped.
    ///
    /// # Safety
    /// The words are readable.
    #[inline(always)]
    unsafe fn load_zipped(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_words(p.add(4 * i * S::LANES)) }
    }
    /// Adds the products of weights and a plane's activations.
    fn add(s: S, sum: Self::Sum, w: S::I, x: S::I, plane: usize) -> Self::Sum;
    /// Multiplies the sums by the factor between this plane and the next.
    fn next_plane(s: S, sum: Self::Sum) -> Self::Sum {
        let _ = s;
        sum
    }
    /// The sums so far.
    fn total(s: S, sum: Self::Sum) -> S::F;
}

/// Two integers of 16 bits, or four of 8 bits. With 8 bits, weights have no sign, and activations have one byte in each
/// plane.
pub(super) struct Integers<const N: usize, const PLANES: usize>;
/// Floats.
pub(super) struct Floats;

/// The largest activations of two signed bytes, and of one.
#[cfg(target_arch = "x86_64")]
pub(super) const MAX_TWO_I8: f32 = 127.0 * 257.0;
pub(super) const MAX_I8: f32 = 127.0;

impl<S: Simd> Element<S> for Integers<2, 1> {
    const WEIGHTS: usize = 2;
    const X_SCALED: bool = true;
    const CAPACITY: usize = i32::MAX as usize / (2 * i16::MAX as usize);
    type Sum = S::Acc;

    #[inline(always)]
    fn zero(s: S) -> S::Acc {
        s.acc()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc, w: S::I, x: S::I, _: usize) -> S::Acc {
        s.dot16(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc) -> S::F {
        s.to_f32(s.acc_lanes(sum))
    }
}

impl<S: Simd> Element<S> for Integers<4, 1> {
    const WEIGHTS: usize = 4;
    const X_SCALED: bool = true;
    const CAPACITY: usize = S::CAPACITY8;
    type Sum = S::Acc8;

    #[inline(always)]
    fn zero(s: S) -> S::Acc8 {
        s.acc8()
    }

    #[inline(always)]
    fn add(s: S, sum: S::Acc8, w: S::I, x: S::I, _: usize) -> S::Acc8 {
        s.dot8(sum, w, x)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Acc8) -> S::F {
        s.to_f32(s.acc8_lanes(sum))
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: TwoBytes> Element<S> for Integers<4, 2> {
    const WEIGHTS: usize = 4;
    const X_SCALED: bool = true;
    const PLANES: usize = 2;
    const ZIPPED: bool = S::ZIPPED;
    const CAPACITY: usize = i32::MAX as usize / (4 * MAX_TWO_I8 as usize);
    type Sum = S::Sum2;

    #[inline(always)]
    fn zero(s: S) -> S::Sum2 {
        s.sum2()
    }

    #[inline(always)]
    unsafe fn load_zipped(s: S, p: *const u8, i: usize) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { s.load_zipped(p, i) }
    }

    #[inline(always)]
    fn add(s: S, sum: S::Sum2, w: S::I, x: S::I, plane: usize) -> S::Sum2 {
        s.dot8_of(sum, w, x, plane)
    }

    #[inline(always)]
    fn next_plane(s: S, sum: S::Sum2) -> S::Sum2 {
        s.lower_plane(sum)
    }

    #[inline(always)]
    fn total(s: S, sum: S::Sum2) -> S::F {
        s.to_f32(s.sum2_lanes(sum))
    }
}

impl<S: Simd> Element<S> for Floats {
    const WEIGHTS: usize = 1;
    const X_SCALED: bool = false;
    const CAPACITY: usize = usize::MAX;
    type Sum = S::F;

    #[inline(always)]
    fn zero(s: S) -> S::F {
        s.splat(0.0)
    }

    #[inline(always)]
    fn add(s: S, sum: S::F, w: S::I, x: S::I, _: usize) -> S::F {
        s.fma(s.floats(w), s.floats(x), sum)
    }

    #[inline(always)]
    fn total(_: S, sum: S::F) -> S::F {
        sum
    }
}

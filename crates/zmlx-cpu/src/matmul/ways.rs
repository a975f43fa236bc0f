//! What instruction sets do in ways of their own: how they hold activations, and how they decode 3 bits.

#[cfg(target_arch = "x86_64")]
use super::decoders::Words3;
use super::decoders::{Decoder, OddBits};
use super::elements::{Element, Integers};
use super::prepare::Prepare;
use crate::simd::Simd;

/// What levels do in ways of their own.
pub(super) trait Ways: Simd {
    /// How activations of 16 bits are held.
    type Int16: Prepare<Self>;
    /// How they are held for codes that become bytes easily, in groups of at least four words.
    type Int16ForBytes: Prepare<Self>;
    /// How affine codes of 3 bits in groups of at least `CHUNK` are decoded.
    type ThreeBits<E: Element<Self>, const CHUNK: usize>: Decoder<Self, Element = E>;
}

impl Ways for crate::simd::scalar::Scalar {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "aarch64")]
impl Ways for crate::simd::neon::Neon {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx2::Avx2 {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<4, 2>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx512::Avx512<false> {
    type Int16 = Integers<2, 1>;
    type Int16ForBytes = Integers<2, 1>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = OddBits<3, E, CHUNK>;
}
#[cfg(target_arch = "x86_64")]
impl Ways for crate::simd::avx512::Avx512<true> {
    type Int16 = Integers<4, 2>;
    type Int16ForBytes = Integers<4, 2>;
    type ThreeBits<E: Element<Self>, const CHUNK: usize> = Words3<E>;
}

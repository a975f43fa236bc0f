//! What each instruction set chooses: the form of activations, and the decoder for 3 bits.

#[cfg(target_arch = "x86_64")]
use super::decoders::Words3;
use super::decoders::{Decoder, OddBits};
use super::elements::{Element, Integers};
use super::prepare::Prepare;
use crate::simd::Simd;

/// The choices of an instruction set.
pub(super) trait Ways: Simd {
    /// The form of 16-bit activations.
    type Int16: Prepare<Self>;
    /// Their form for codes that become bytes easily, in groups of at least four words.
    type Int16ForBytes: Prepare<Self>;
    /// The decoder of affine codes of 3 bits in groups of at least `CHUNK`.
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

//! Packing, unpacking and dequantising whole buffers: the plain form, used at load time and by tests.

use super::float::{e2m1_to_f32, e4m3_to_f32, e8m0_to_f32};
use super::{QuantMode, QuantSpec};
use crate::DType;

/// Packs codes of `bits` bits into a little-endian bit stream; `codes.len() · bits` is a multiple of 8.
/// Bits of a code above `bits` are ignored.
pub fn pack(bits: usize, codes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity((codes.len() * bits).div_ceil(8));
    let (mut acc, mut n_bits) = (0u32, 0);
    for &code in codes {
        acc |= (u32::from(code) & ((1 << bits) - 1)) << n_bits;
        n_bits += bits;
        while n_bits >= 8 {
            out.push((acc & 0xff) as u8);
            acc >>= 8;
            n_bits -= 8;
        }
    }
    if n_bits > 0 {
        out.push((acc & 0xff) as u8);
    }
    out
}

/// The codes of a packed buffer: the inverse of [`pack`].
pub fn unpack(bits: usize, packed: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed.len() * 8 / bits);
    unpack_each(bits, packed, |_, code| out.push(code));
    out
}

/// Calls `f(i, code)` for each code of a packed buffer.
#[inline(always)]
pub(crate) fn unpack_each(bits: usize, packed: &[u8], mut f: impl FnMut(usize, u8)) {
    let mask = (1u32 << bits) - 1;
    let (mut acc, mut n_bits, mut i) = (0u32, 0, 0);
    for &byte in packed {
        acc |= u32::from(byte) << n_bits;
        n_bits += 8;
        while n_bits >= bits {
            f(i, (acc & mask) as u8);
            i += 1;
            acc >>= bits;
            n_bits -= bits;
        }
    }
}

/// The real weights of packed rows, in f32: `scale · q + bias` with one rounding for the product and one for the
/// sum, as `mx.dequantize` in f32.
///
/// **Shapes** `packed` holds n weights, `scales` (and `biases` for affine, else empty) `n / group_size` values of
/// `scale_dtype`; a shorter `scales` ends the output early.
pub fn dequantize(
    spec: QuantSpec,
    scale_dtype: DType,
    packed: &[u8],
    scales: &[u8],
    biases: &[u8],
) -> Vec<f32> {
    let mut out = Vec::with_capacity(packed.len() * 8 / spec.bits());
    dequantize_each(spec, scale_dtype, [packed, scales, biases], |weight| out.push(weight));
    out
}

/// Calls `f` with each weight that [`dequantize`] gives, in order.
pub fn dequantize_each(
    spec: QuantSpec,
    scale_dtype: DType,
    [packed, scales, biases]: [&[u8]; 3],
    mut f: impl FnMut(f32),
) {
    let group = spec.group_size();
    let size = scale_dtype.size_bytes();
    for (g, words) in packed.chunks_exact(spec.packed_bytes(group)).enumerate() {
        let Some(scale) = scales.get(g * size..(g + 1) * size) else { break };
        let (scale, bias) = match spec.mode() {
            QuantMode::Affine => {
                let Some(bias) = biases.get(g * size..(g + 1) * size) else { break };
                (scale_dtype.read_f32(scale), scale_dtype.read_f32(bias))
            }
            _ => (scale_to_f32(spec.mode(), scale[0]), 0.0),
        };
        unpack_each(spec.bits(), words, |_, q| {
            f(match spec.mode() {
                QuantMode::Affine => scale * f32::from(q) + bias,
                mode => scale * code_to_f32(mode, q),
            });
        });
    }
}

/// The value of a one-byte scale of a float mode.
#[inline]
pub(crate) fn scale_to_f32(mode: QuantMode, scale: u8) -> f32 {
    match mode {
        QuantMode::Nvfp4 => e4m3_to_f32(scale),
        _ => e8m0_to_f32(scale),
    }
}

/// The value of a code before scaling.
#[inline]
pub(crate) fn code_to_f32(mode: QuantMode, code: u8) -> f32 {
    match mode {
        QuantMode::Affine => f32::from(code),
        QuantMode::Mxfp8 => e4m3_to_f32(code),
        QuantMode::Mxfp4 | QuantMode::Nvfp4 => e2m1_to_f32(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpack_inverts_pack() {
        for bits in 1..=8usize {
            let codes: Vec<u8> = (0..64u32).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
            assert_eq!(unpack(bits, &pack(bits, &codes)), codes, "{bits} bits");
        }
    }

    #[test]
    fn element_i_sits_at_bit_i_times_bits() {
        assert_eq!(pack(4, &[0x1, 0x2, 0xf, 0x0]), [0x21, 0x0f]);
        assert_eq!(pack(3, &[1, 2, 3, 4, 5, 6, 7, 0]), [0xd1, 0x58, 0x1f]);
    }
}

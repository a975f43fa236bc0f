//! Turns a block of a weight's values into the bytes that are written.

use std::ops::Range;

use zmlx_kernels::quant::{Quantized, float, pack, quantize};
use zmlx_kernels::{DType, QuantMode, QuantSpec, WeightBytes};

use crate::{Error, Result, floats};

/// Number of values that are converted at once: a multiple of every group size.
pub(super) const BLOCK: usize = 1 << 20;

/// How a weight is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Encoding {
    /// Floats, rounded to another type if the types differ.
    Dense { from: DType, to: DType },
    /// Floats, rounded to the type `via` and then quantised.
    Quantize { from: DType, via: DType, spec: QuantSpec },
    /// Codes, unchanged. Scales and biases change their type if the types differ.
    Packed { from: DType, to: DType, spec: QuantSpec },
    /// Codes, turned into floats. Affine scales are first rounded to the type `via`.
    Dequantize { from: DType, via: DType, spec: QuantSpec },
}

/// The bytes of a block of up to three tensors.
pub(super) type Encoded = [Vec<u8>; 3];

impl Encoding {
    /// The format of quantised values, and the type of their scales.
    pub(super) fn quantized(self) -> Option<(QuantSpec, DType)> {
        match self {
            Self::Quantize { via, spec, .. } => Some((spec, scale_dtype(spec, via))),
            Self::Packed { to, spec, .. } => Some((spec, to)),
            Self::Dense { .. } | Self::Dequantize { .. } => None,
        }
    }

    /// The type of dense values.
    pub(super) fn dense_dtype(self) -> DType {
        match self {
            Self::Dense { to, .. } => to,
            Self::Dequantize { via, spec, .. } => floats::dequantized_dtype(spec, via),
            Self::Quantize { via, .. } => via,
            Self::Packed { to, .. } => to,
        }
    }

    /// Encodes the values `range` of a matrix. The ends of the range are multiples of the group size.
    ///
    /// # Errors
    /// [`Error::Unconvertible`] for a value that is to be quantised but is not finite.
    pub(super) fn encode(self, name: &str, bytes: &WeightBytes, range: Range<usize>) -> Result<Encoded> {
        match self {
            Self::Dense { from, to } => {
                let data = of_elements(&bytes.data, &range, from.size_bytes());
                let data =
                    if from == to { data.to_vec() } else { floats::to_bytes(to, &from.to_f32_vec(data)) };
                Ok([data, Vec::new(), Vec::new()])
            }
            Self::Quantize { from, via, spec } => {
                let mut w = from.to_f32_vec(of_elements(&bytes.data, &range, from.size_bytes()));
                if via != from {
                    w.iter_mut().for_each(|w| *w = floats::round(via, *w));
                }
                if let Some(i) = w.iter().position(|w| !w.is_finite()) {
                    let (name, got) = (name.to_owned(), format!("{} at {}", w[i], range.start + i));
                    let want = format!("values to quantise that {via:?} holds as finite numbers");
                    return Err(Error::Unconvertible { name, want, got });
                }
                let q = match (via, spec.mode()) {
                    (DType::F16, QuantMode::Mxfp4 | QuantMode::Mxfp8) => quantize_f16(spec, &w),
                    // Groups are independent: a row of one group gives the same bytes.
                    _ => quantize(spec, scale_dtype(spec, via), &w, spec.group_size())?,
                };
                Ok([q.data, q.scales, q.biases])
            }
            Self::Packed { from, to, spec } => {
                let [data, scales, biases] = of_groups(bytes, &range, spec, from);
                let cast = |bytes: &[u8]| {
                    if from == to { bytes.to_vec() } else { floats::to_bytes(to, &from.to_f32_vec(bytes)) }
                };
                Ok([data.to_vec(), cast(scales), cast(biases)])
            }
            Self::Dequantize { from, via, spec } => {
                let [data, scales, biases] = of_groups(bytes, &range, spec, from);
                let to = floats::dequantized_dtype(spec, via);
                let w = if from == via {
                    floats::dequantized(spec, via, [data, scales, biases])
                } else {
                    let cast = |bytes: &[u8]| floats::to_bytes(via, &from.to_f32_vec(bytes));
                    floats::dequantized(spec, via, [data, &cast(scales), &cast(biases)])
                };
                Ok([floats::to_bytes(to, &w), Vec::new(), Vec::new()])
            }
        }
    }
}

fn scale_dtype(spec: QuantSpec, of_values: DType) -> DType {
    if spec.mode() == QuantMode::Affine { of_values } else { DType::U8 }
}

/// Quantises whole groups of f16 in the modes with e8m0 scales, as `mx.quantize` does. It divides the largest magnitude
/// by that of the largest code in the type of the weights. f16 rounds small quotients so much that the next power of
/// two can differ.
fn quantize_f16(spec: QuantSpec, w: &[f32]) -> Quantized {
    let (largest, to_code): (f32, fn(f32) -> u8) = match spec.mode() {
        QuantMode::Mxfp8 => (float::E4M3_MAX, float::f32_to_e4m3),
        _ => (float::E2M1_MAX, float::f32_to_e2m1),
    };
    let (mut codes, mut scales) = (Vec::with_capacity(w.len()), Vec::new());
    for group in w.chunks_exact(spec.group_size()) {
        let most = group.iter().fold(0f32, |most, w| most.max(w.abs()));
        let step = floats::round(DType::F16, most / largest);
        // A group of zeros has the scale 1.
        let exponent = if step > 0.0 { step.log2().ceil() } else { 0.0 };
        let scale = (exponent.clamp(-127.0, 127.0) + 127.0) as u8;
        codes.extend(group.iter().map(|w| to_code(w / float::e8m0_to_f32(scale))));
        scales.push(scale);
    }
    Quantized { data: pack(spec.bits(), &codes), scales, biases: Vec::new() }
}

/// The bytes of the elements `range`.
fn of_elements<'b>(bytes: &'b [u8], range: &Range<usize>, size: usize) -> &'b [u8] {
    bytes.get(range.start * size..range.end * size).unwrap_or_default()
}

/// The codes, scales and biases of the elements `range`.
fn of_groups<'b>(
    bytes: &'b WeightBytes,
    range: &Range<usize>,
    spec: QuantSpec,
    scales: DType,
) -> [&'b [u8]; 3] {
    let codes = spec.packed_bytes(range.start)..spec.packed_bytes(range.end);
    let groups = range.start / spec.group_size()..range.end / spec.group_size();
    [
        bytes.data.get(codes).unwrap_or_default(),
        of_elements(&bytes.scales, &groups, scales.size_bytes()),
        of_elements(&bytes.biases, &groups, scales.size_bytes()),
    ]
}

/// The blocks of `n_mats` matrices of `n` values each: the matrix and the range of values of each block.
pub(super) fn blocks(n_mats: usize, n: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    (0..n_mats).flat_map(move |mat| (0..n).step_by(BLOCK).map(move |at| (mat, at..(at + BLOCK).min(n))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_value_once() {
        let all = |n_mats, n| blocks(n_mats, n).collect::<Vec<_>>();
        assert_eq!(all(2, 5), [(0, 0..5), (1, 0..5)]);
        assert_eq!(all(1, BLOCK + 32), [(0, 0..BLOCK), (0, BLOCK..BLOCK + 32)]);
        assert_eq!(all(1, BLOCK), [(0, 0..BLOCK)]);
        assert!(QuantSpec::all().iter().all(|spec| BLOCK.is_multiple_of(spec.group_size())));
    }

    #[test]
    fn what_is_not_finite_is_not_quantised() {
        let spec = QuantSpec::new(QuantMode::Affine, 4, 32).unwrap();
        let mut values = [1.0f32; 64];
        values[40] = 1e6;
        let bytes = WeightBytes::from(floats::to_bytes(DType::F32, &values));
        let encode = |via| Encoding::Quantize { from: DType::F32, via, spec }.encode("w", &bytes, 32..64);
        assert!(encode(DType::BF16).is_ok());
        let error = encode(DType::F16).unwrap_err().to_string();
        assert!(error.contains("w: ") && error.contains("F16") && error.contains("inf at 40"), "{error}");
    }
}

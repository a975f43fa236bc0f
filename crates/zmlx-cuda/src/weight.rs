//! Weights on the device: as the file has them, but scale and bias of a group side by side.

use std::sync::Arc;

use half::bf16;
use zmlx_core::{DType, HostWeight, QuantMode, Result, WeightFormat};

use crate::device::Device;
use crate::matmul;
use crate::memory::Buffer;
use crate::tensor::ensure;

/// How the kernels see a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartFormat {
    /// Codes for integer dot products: the macros of `format.cuh`.
    Coded {
        bits: u32,
        code: u32,
        scales: u32,
        /// A group is 2^shift chunks of 32.
        group_shift: u32,
    },
    /// Floats, or e4m3 codes: ELEMENT of `element.cuh`.
    Element(u32),
}

/// ELEMENT of mxfp8.
pub(crate) const FP8: u32 = 3;

/// Matrices of one format.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) format: PartFormat,
    /// Of each matrix.
    pub(crate) n_rows: usize,
    pub(crate) data: Arc<Buffer>,
    pub(crate) scales: Option<Arc<Buffer>>,
    /// For each row of each matrix the power of two that brings its scales and biases below 2^-9; f32. For `matmul.cu`; `None`
    /// if it does not have the format.
    pub(crate) row_factors: Option<Arc<Buffer>>,
}

/// A vector in f32.
#[derive(Clone)]
pub(crate) struct Vector(pub(crate) Arc<Buffer>);

/// A matrix or a bank of matrices on the device, in one or more parts, whose rows follow each other.
#[derive(Clone)]
pub struct CudaWeight {
    pub(crate) parts: Vec<Part>,
    pub(crate) n_mats: usize,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    /// The values of matrices of one row.
    vector: Option<Vector>,
}

impl std::fmt::Debug for CudaWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × [{}, {}]", self.n_mats, self.n_out, self.n_in)
    }
}

impl CudaWeight {
    /// Copies a weight to the device.
    pub(crate) fn upload(device: &Arc<Device>, weight: &HostWeight) -> Result<Self> {
        let (n_mats, n_out, n_in) = (weight.n_mats(), weight.n_out(), weight.n_in());
        // A weight of nvfp4 whose rows are an odd number of its groups of 16, as bf16, which has all its values: codes and
        // scales have few bits. So are weights with a second scale, which bf16 rounds once.
        let is_odd = !n_in.is_multiple_of(32) && matches!(weight.format(), WeightFormat::Quantized { .. });
        if is_odd || weight.has_factors() {
            return Self::upload(device, &weight.to_bf16());
        }
        let data = Buffer::lasting(device, n_mats * weight.mat(0).data.len())?;
        for i in 0..n_mats {
            let bytes = &weight.mat(i).data;
            data.write(i * bytes.len(), bytes)?;
        }
        let (format, scales, row_factors) = match weight.format() {
            WeightFormat::Dense(dtype) => (PartFormat::Element(element(dtype)), None, None),
            WeightFormat::Quantized { spec, scale_dtype } => {
                let all: Vec<Vec<u8>> =
                    (0..n_mats).map(|i| scale_words(spec.mode(), scale_dtype, weight, i)).collect();
                let scales = Buffer::lasting(device, n_mats * all[0].len())?;
                for (i, words) in all.iter().enumerate() {
                    scales.write(i * words.len(), words)?;
                }
                let coded = |code, scales| PartFormat::Coded {
                    bits: spec.bits() as u32,
                    code,
                    scales,
                    group_shift: (spec.group_size() / 32).max(1).ilog2(),
                };
                let format = match spec.mode() {
                    QuantMode::Affine => coded(0, u32::from(scale_dtype != DType::BF16)),
                    QuantMode::Mxfp4 => coded(1, 2),
                    QuantMode::Nvfp4 => coded(1, 3),
                    QuantMode::Mxfp8 => PartFormat::Element(FP8),
                };
                let row_factors = if matmul::has_format(format) {
                    let are_f32 = spec.mode() == QuantMode::Affine && scale_dtype != DType::BF16;
                    let rows = all.iter().flat_map(|words| words.chunks_exact(words.len() / n_out));
                    let factors: Vec<u8> =
                        rows.flat_map(|words| row_factor(words, are_f32).to_le_bytes()).collect();
                    let row_factors = Buffer::lasting(device, factors.len())?;
                    row_factors.write(0, &factors)?;
                    Some(row_factors)
                } else {
                    None
                };
                (format, Some(scales), row_factors)
            }
        };
        let mut vector = None;
        if n_out == 1 && matches!(weight.format(), WeightFormat::Dense(_)) {
            let values: Vec<u8> = weight.to_f32_vec().iter().flat_map(|v| v.to_le_bytes()).collect();
            let buffer = Buffer::lasting(device, values.len())?;
            buffer.write(0, &values)?;
            vector = Some(Vector(buffer));
        }
        let part = Part { format, n_rows: n_out, data, scales, row_factors };
        Ok(Self { parts: vec![part], n_mats, n_out, n_in, vector })
    }

    /// The parts one after the other; nothing is copied.
    pub(crate) fn concat_rows(all: &[&Self]) -> Result<Self> {
        const OP: &str = "concat_rows";
        ensure(!all.is_empty(), OP, "parts", "at least one", 0)?;
        let (n_mats, n_in) = (all[0].n_mats, all[0].n_in);
        for w in all {
            let want = format_args!("all {n_mats} × [_, {n_in}]");
            ensure((w.n_mats, w.n_in) == (n_mats, n_in), OP, "parts", want, w)?;
        }
        Ok(Self {
            parts: all.iter().flat_map(|w| w.parts.iter().cloned()).collect(),
            n_mats,
            n_out: all.iter().map(|w| w.n_out).sum(),
            n_in,
            vector: None,
        })
    }

    /// The values of a weight that is a vector of that width.
    pub(crate) fn vector(&self, op: &'static str, width: usize) -> Result<Vector> {
        self.vectors(op, 1, width)
    }

    /// The values of `n_mats` vectors of that width, one behind the other.
    pub(crate) fn vectors(&self, op: &'static str, n_mats: usize, width: usize) -> Result<Vector> {
        let fits = self.n_mats == n_mats && self.n_out == 1 && self.n_in == width;
        ensure(fits, op, "weight", format_args!("{n_mats} × [1, {width}]"), self)?;
        match &self.vector {
            Some(vector) => Ok(vector.clone()),
            None => {
                let why = "a quantised vector".to_owned();
                Err(zmlx_core::Error::Unsupported { op, backend: crate::NAME, why })
            }
        }
    }
}

/// ELEMENT of floats.
fn element(dtype: DType) -> u32 {
    match dtype {
        DType::F16 => 1,
        DType::BF16 => 2,
        _ => 0,
    }
}

/// The scales of a matrix as the kernels read them: with biases as pairs, in bf16 where the file has that, else in f32;
/// scales without biases in bf16, which holds every e8m0 and e4m3 value exactly.
fn scale_words(mode: QuantMode, dtype: DType, weight: &HostWeight, mat: usize) -> Vec<u8> {
    let m = weight.mat(mat);
    match mode {
        QuantMode::Affine if dtype == DType::BF16 => {
            let mut out = Vec::with_capacity(2 * m.scales.len());
            for (scale, bias) in m.scales.chunks_exact(2).zip(m.biases.chunks_exact(2)) {
                out.extend_from_slice(&[scale[0], scale[1], bias[0], bias[1]]);
            }
            out
        }
        QuantMode::Affine => {
            let (scales, biases) = (dtype.to_f32_vec(&m.scales), dtype.to_f32_vec(&m.biases));
            let pairs = scales.iter().zip(&biases);
            pairs.flat_map(|(s, b)| [s.to_le_bytes(), b.to_le_bytes()].concat()).collect()
        }
        QuantMode::Nvfp4 => m.scales.iter().flat_map(|s| bf16::from_f32(e4m3(*s)).to_le_bytes()).collect(),
        QuantMode::Mxfp4 | QuantMode::Mxfp8 => {
            // The bits of an f32's exponent; 0 is 2^-127, below the smallest normal number, and 255 is NaN.
            let value = |s: u8| match s {
                0 => f32::from_bits(1 << 22),
                255 => f32::NAN,
                s => f32::from_bits(u32::from(s) << 23),
            };
            m.scales.iter().flat_map(|s| bf16::from_f32(value(*s)).to_le_bytes()).collect()
        }
    }
}

/// The power of two that brings the largest of a row's scales and biases, as [`scale_words`] has them, to between 2^-10 and 2^-9.
/// What is not finite does not count. Extremes are cut off, so that the factor and its reciprocal are normal numbers.
fn row_factor(words: &[u8], are_f32: bool) -> f32 {
    // Bits of positive floats are ordered as the floats are.
    let exponent = if are_f32 {
        let bits = words.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7fff_ffff);
        bits.filter(|b| *b < 0x7f80_0000).max().unwrap_or(0) >> 23
    } else {
        let bits = words.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7fff);
        u32::from(bits.filter(|b| *b < 0x7f80).max().unwrap_or(0) >> 7)
    };
    f32::from_bits((127 + 117 - exponent.clamp(27, 227)) << 23)
}

/// The value of an e4m3 code.
fn e4m3(code: u8) -> f32 {
    let magnitude = match code & 0x7f {
        0x7f => f32::NAN,
        bits => f32::from_bits(u32::from(bits) << 20) * f32::from_bits((127 + 120) << 23),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bf16_words(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
    }

    fn f32_words(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn the_largest_of_a_row_comes_between_2_pow_minus_10_and_minus_9() {
        for largest in [1e-20, 3e-5, 0.0117, 1.0, 1.99, 7.5, 3e4, 1e25] {
            let row = [0.001 * largest, -largest, 0.0, 0.5 * largest];
            for factor in [row_factor(&bf16_words(&row), false), row_factor(&f32_words(&row), true)] {
                let scaled = f64::from(largest) * f64::from(factor);
                // bf16 may round the largest up to the next power of two.
                assert!((0.99 / 1024.0..=1.0 / 512.0).contains(&scaled), "{largest}: {scaled}");
                assert_eq!(factor.to_bits() & 0x7f_ffff, 0, "a power of two");
            }
        }
    }

    #[test]
    fn extremes_give_normal_factors() {
        let rows = [&[][..], &[0.0, -0.0], &[f32::NAN, f32::INFINITY], &[f32::MIN_POSITIVE], &[f32::MAX]];
        for row in rows {
            for factor in [row_factor(&bf16_words(row), false), row_factor(&f32_words(row), true)] {
                assert!(factor.is_normal() && (1.0 / factor).is_normal(), "{row:?}: {factor}");
            }
        }
        // What is not finite leaves the others alone.
        let mixed = [f32::NAN, 1.0, f32::NEG_INFINITY];
        assert_eq!(row_factor(&f32_words(&mixed), true), row_factor(&f32_words(&[1.0]), true));
    }
}

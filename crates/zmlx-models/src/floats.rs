//! Floats of files: rounding them to a type, writing them as bytes, and dequantising codes as the reference does.

use half::{bf16, f16};
use zmlx_kernels::quant::dequantize;
use zmlx_kernels::{DType, QuantMode, QuantSpec};

/// Rounds a value to that type (nearest, ties to even). Types that are not floats leave it unchanged.
pub(crate) fn round(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F32 | DType::U8 | DType::U32 => value,
    }
}

/// The values in that type, little-endian; in f32 if it is not a float type.
pub(crate) fn to_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F32 | DType::U8 | DType::U32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// The type of the values that the reference gets by dequantising: that of the scales, or bf16, which represents every
/// product of a code and a scale of the float modes.
pub(crate) fn dequantized_dtype(spec: QuantSpec, scale_dtype: DType) -> DType {
    if spec.mode() == QuantMode::Affine { scale_dtype } else { DType::BF16 }
}

/// The weights of whole groups as the reference dequantises them: in the type of the scales. So affine weights are
/// rounded after the product and again after the sum.
pub(crate) fn dequantized(
    spec: QuantSpec,
    scale_dtype: DType,
    [data, scales, biases]: [&[u8]; 3],
) -> Vec<f32> {
    if spec.mode() != QuantMode::Affine || scale_dtype == DType::F32 {
        return dequantize(spec, scale_dtype, data, scales, biases);
    }
    let no_biases = vec![0; biases.len()];
    let mut w = dequantize(spec, scale_dtype, data, scales, &no_biases);
    for (group, bias) in w.chunks_exact_mut(spec.group_size()).zip(scale_dtype.to_f32_vec(biases)) {
        group.iter_mut().for_each(|w| *w = round(scale_dtype, round(scale_dtype, *w) + bias));
    }
    w
}

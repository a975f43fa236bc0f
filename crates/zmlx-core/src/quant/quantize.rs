//! The quantisers, bit for bit those of `mx.quantize`.

use super::float::{E2M1_MAX, E4M3_MAX, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3};
use super::pack::{pack, scale_to_f32};
use super::{QuantMode, QuantSpec, check_scale_dtype};
use crate::error::ensure;
use crate::{DType, Result};

/// The buffers of a quantised matrix, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Packed codes.
    pub data: Vec<u8>,
    /// One scale per group.
    pub scales: Vec<u8>,
    /// One bias per group; empty for modes without biases.
    pub biases: Vec<u8>,
}

/// Quantises rows of `n_in` weights.
///
/// **Formula** (affine, per group) `scale = max((max - min) / (2^bits - 1), 1e-7)`. The edge is `min` or `max`,
/// whichever has the larger magnitude; if it is `max`, `scale` is negated. `q0 = round(edge / scale)`; unless q0 is 0,
/// `scale = edge / q0` and `bias = edge`; `q = clip(round((w - bias) / scale))`. Codes come from the unrounded scale
/// and bias, which are rounded to `scale_dtype` only when stored.
/// The float modes: `scale` is the group's largest magnitude divided by that of the largest code, rounded up to a power
/// of two (mxfp4, mxfp8; 1 for a group of zeros) or to the nearest e4m3 (nvfp4). `q` is the code nearest to
/// `w / scale`; ties go towards zero in e2m1 and to the even code in e4m3.
///
/// **Source** `mx.quantize` of MLX 0.32.2 for weights in f32 or bf16. For weights in f16, MLX computes an e8m0 scale by
/// a division in f16, which rounds small quotients.
///
/// # Errors
/// If `scale_dtype` does not fit the mode or `w` is not whole rows of whole groups.
pub fn quantize(spec: QuantSpec, scale_dtype: DType, w: &[f32], n_in: usize) -> Result<Quantized> {
    check_scale_dtype(spec, scale_dtype)?;
    let group = spec.group_size();
    let whole = n_in > 0 && n_in.is_multiple_of(group) && w.len().is_multiple_of(n_in);
    ensure(
        whole,
        "quantize",
        "w",
        format!("rows of n_in weights, n_in a multiple of {group}"),
        (w.len(), n_in),
    )?;
    let mut codes = Vec::with_capacity(w.len());
    let mut out = Quantized { data: Vec::new(), scales: Vec::new(), biases: Vec::new() };
    for w in w.chunks_exact(group) {
        match spec.mode() {
            QuantMode::Affine => {
                let (scale, bias) = quantize_affine(spec.bits(), w, &mut codes);
                scale_dtype.push_f32(scale, &mut out.scales);
                scale_dtype.push_f32(bias, &mut out.biases);
            }
            mode => out.scales.push(quantize_float(mode, w, &mut codes)),
        }
    }
    out.data = pack(spec.bits(), &codes);
    Ok(out)
}

fn quantize_affine(bits: usize, w: &[f32], codes: &mut Vec<u8>) -> (f32, f32) {
    let n_bins = ((1u32 << bits) - 1) as f32;
    let min = w.iter().copied().fold(f32::INFINITY, f32::min);
    let max = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut scale = ((max - min) / n_bins).max(1e-7);
    let edge = if min.abs() > max.abs() {
        min
    } else {
        scale = -scale;
        max
    };
    let q0 = (edge / scale).round_ties_even();
    let mut bias = 0.0;
    if q0 != 0.0 {
        scale = edge / q0;
        bias = edge;
    }
    codes.extend(w.iter().map(|w| ((w - bias) / scale).round_ties_even().clamp(0.0, n_bins) as u8));
    (scale, bias)
}

fn quantize_float(mode: QuantMode, w: &[f32], codes: &mut Vec<u8>) -> u8 {
    let amax = w.iter().fold(0f32, |m, w| m.max(w.abs()));
    let (code_max, to_code): (f32, fn(f32) -> u8) = match mode {
        QuantMode::Mxfp8 => (E4M3_MAX, f32_to_e4m3),
        _ => (E2M1_MAX, f32_to_e2m1),
    };
    let exact = amax / code_max;
    let scale_code = match mode {
        QuantMode::Nvfp4 => f32_to_e4m3(exact),
        // A group of zeros has the scale 1.
        _ if exact == 0.0 => 127,
        _ => (exact.log2().ceil().clamp(-127.0, 127.0) + 127.0) as u8,
    };
    let scale = match mode {
        QuantMode::Nvfp4 => e4m3_to_f32(scale_code),
        _ => scale_to_f32(mode, scale_code),
    };
    codes.extend(w.iter().map(|w| to_code(if scale == 0.0 { 0.0 } else { w / scale })));
    scale_code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `mx.quantize` of MLX 0.32.2 gives.
    #[test]
    fn groups_of_zeros() {
        for (mode, bits, group, scale) in
            [(QuantMode::Mxfp4, 4, 32, 127), (QuantMode::Mxfp8, 8, 32, 127), (QuantMode::Nvfp4, 4, 16, 0)]
        {
            let spec = QuantSpec::new(mode, bits, group).unwrap();
            let q = quantize(spec, DType::U8, &vec![0.0; group], group).unwrap();
            assert_eq!((q.scales, q.data), (vec![scale], vec![0; group * bits / 8]), "{spec}");
        }
    }
}

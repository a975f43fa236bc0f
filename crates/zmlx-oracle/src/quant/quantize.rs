//! The reference quantiser.

use super::float::{E2M1_MAX, E4M3_MAX, e4m3_to_f32, e8m0_to_f32, f32_to_e2m1, f32_to_e4m3};
use super::{Format, Mode, QuantizedMatrix, Scales, StorageDtype, write_bits};
use crate::{Error, Result};

/// Quantises `w`, `[rows, cols]`, group by group along the rows.
///
/// **Affine**, all in `f32`; `round` is to nearest with ties to even; `n = 2^bits - 1`:
/// ```text
/// scale = max((max - min) / n, 1e-7);  edge = min if |min| > |max|, else max and scale is negated
/// q0 = round(edge / scale);  if q0 ≠ 0: scale = edge / q0, bias = edge;  else bias = 0
/// q = clip(round((w - bias) / scale), 0, n)
/// ```
/// The codes are computed with the unrounded scale and bias; only the stored values are rounded to `scale_dtype`.
///
/// **Floating-point modes**: `s = max|w| / M`, where M is the largest element (6 for E2M1, 448 for E4M3). It is stored
/// as the next power of two (E8M0, `2^ceil(log2 s)`, so nothing saturates), or as the nearest E4M3 (nvfp4, where the
/// largest element may saturate). Each element is then the code nearest to `w / scale`, with the stored scale. For E4M3
/// elements ties go to even, and zero keeps its sign. For E2M1 elements ties go towards zero, and zero is always +0. A
/// group whose stored scale is 0 gets elements of 0. `scale_dtype` is not used.
///
/// A group of zeros has the E8M0 scale 1.
///
/// **Source** the recorded operations, which this equals bit for bit; for groups of zeros the recorded conversions.
///
/// To quantise weights held in a 16-bit dtype, pass their values widened to `f32`.
///
/// # Errors
/// An unknown format; `w` not a whole number of rows; `cols` no multiple of the group.
pub fn quantize(
    w: &[f32],
    cols: usize,
    format: Format,
    scale_dtype: StorageDtype,
) -> Result<QuantizedMatrix> {
    format.check()?;
    if cols == 0 || !cols.is_multiple_of(format.group_size) || !w.len().is_multiple_of(cols) {
        return Err(Error::Quantized {
            name: format.name(),
            why: format!("{} values in rows of {cols}", w.len()),
        });
    }
    let mut packed = vec![0; w.len() * format.bits / 8];
    let (mut scales, mut biases, mut codes) = (Vec::new(), Vec::new(), Vec::new());
    for (group_idx, group) in w.chunks_exact(format.group_size).enumerate() {
        let quantized = if format.mode == Mode::Affine {
            let (scale, bias) = affine_scale_bias(group, format.bits);
            scales.push(scale_dtype.round(scale));
            biases.push(scale_dtype.round(bias));
            let top = ((1u32 << format.bits) - 1) as f32;
            group
                .iter()
                .map(|x| ((x - bias) / scale).round_ties_even().clamp(0.0, top) as u32)
                .collect::<Vec<_>>()
        } else {
            let (code, scale) = float_scale(group, format.mode);
            codes.push(code);
            group.iter().map(|&x| float_code(x, scale, format.mode)).collect()
        };
        for (i, code) in quantized.into_iter().enumerate() {
            write_bits(&mut packed, (group_idx * format.group_size + i) * format.bits, format.bits, code);
        }
    }
    let (scales, biases) = match format.mode {
        Mode::Affine => (Scales::Float(scales), Some(biases)),
        _ => (Scales::Codes(codes), None),
    };
    Ok(QuantizedMatrix { format, rows: w.len() / cols, cols, packed, scales, biases })
}

fn affine_scale_bias(group: &[f32], bits: usize) -> (f32, f32) {
    let least = group.iter().copied().fold(f32::INFINITY, f32::min);
    let most = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let span = ((most - least) / ((1u32 << bits) - 1) as f32).max(1e-7);
    let (scale, edge) = if least.abs() > most.abs() { (span, least) } else { (-span, most) };
    let q0 = (edge / scale).round_ties_even();
    if q0 == 0.0 { (scale, 0.0) } else { (edge / q0, edge) }
}

/// The stored scale of a group in a floating-point mode: its code, and the value of that code.
fn float_scale(group: &[f32], mode: Mode) -> (u8, f32) {
    let most = group.iter().fold(0f32, |most, x| most.max(x.abs()));
    if mode == Mode::Nvfp4 {
        let code = f32_to_e4m3(most / E2M1_MAX);
        return (code, e4m3_to_f32(code));
    }
    let step = most / if mode == Mode::Mxfp8 { E4M3_MAX } else { E2M1_MAX };
    let exponent = if step > 0.0 { step.log2().ceil() } else { 0.0 };
    // The float is clamped, so the cast cannot overflow.
    let code = (exponent.clamp(-127.0, 127.0) + 127.0) as u8;
    (code, e8m0_to_f32(code))
}

fn float_code(x: f32, scale: f32, mode: Mode) -> u32 {
    let element = if scale == 0.0 { 0.0 } else { x / scale };
    u32::from(if mode == Mode::Mxfp8 { f32_to_e4m3(element) } else { f32_to_e2m1(element) })
}

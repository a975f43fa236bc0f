//! Floats as integers with a common scale, for activations, keys and values.

/// Writes the values as integers up to `largest`. Returns their scale and the sum of the integers.
#[inline(always)]
pub(crate) fn to_integers(group: &[f32], largest: f32, out: &mut [i16]) -> (f32, i32) {
    // Adding this rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Magnitudes are ordered as their bits are, with infinity and NaN above all. With one of these the scale is not
    // finite, and neither is the result.
    let max = group.iter().fold(0, |max: u32, v| max.max(v.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(max);
    let inverse = if max > 0.0 { largest / max } else { 0.0 };
    // The inverse of the smallest numbers is infinite: they become 0.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    let mut total = 0;
    for (out, v) in out.iter_mut().zip(group) {
        let q = (v * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
        *out = q as i16;
        total += i32::from(*out);
    }
    (max / largest, total)
}

//! The small float formats: E2M1 elements, E4M3 elements and scales, E8M0 scales.
//!
//! Decoding follows the definitions field by field. Encoding searches all codes for the nearest value, so it depends
//! only on the decoder.

/// The largest E2M1 value.
pub const E2M1_MAX: f32 = 6.0;
/// The largest finite E4M3 value.
pub const E4M3_MAX: f32 = 448.0;

/// E2M1: sign, 2 exponent bits (bias 1), 1 mantissa bit; no infinities, no NaN.
/// The magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4, 6.
#[must_use]
pub fn e2m1_to_f32(code: u8) -> f32 {
    let sign = if code & 0b1000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = ((code >> 1) & 0b11, f32::from(code & 1));
    let magnitude = match exponent {
        0 => mantissa / 2.0,
        e => (1.0 + mantissa / 2.0) * 2f32.powi(i32::from(e) - 1),
    };
    sign * magnitude
}

/// E4M3: sign, 4 exponent bits (bias 7), 3 mantissa bits; no infinities; NaN if all seven low bits are set. Exponent 0
/// is subnormal: `mantissa/8 · 2^-6`.
#[must_use]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = ((code >> 3) & 0xf, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        (e, _) => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(e) - 7),
    };
    sign * magnitude
}

/// E8M0: `2^(code - 127)`, NaN for 255. Code 0, 2^-127, is subnormal in `f32`.
#[must_use]
pub fn e8m0_to_f32(code: u8) -> f32 {
    if code == 255 { f32::NAN } else { 2f64.powi(i32::from(code) - 127) as f32 }
}

/// The nearest E2M1 code, as MLX's quantiser chooses it: ties go towards zero, values beyond ±6 saturate, and values
/// that round to zero become +0 (code 8, which is -0, is never chosen). NaN becomes +0.
#[must_use]
pub fn f32_to_e2m1(x: f32) -> u8 {
    let magnitude = nearest(x.abs(), 0b111, e2m1_to_f32, Ties::TowardsZero);
    if magnitude != 0 && x < 0.0 { magnitude | 0b1000 } else { magnitude }
}

/// The nearest E4M3 code: ties go to the even mantissa, values beyond ±448 saturate, zero keeps its sign, and NaN stays
/// NaN.
#[must_use]
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | 0x7f;
    }
    sign | nearest(x.abs(), 0x7e, e4m3_to_f32, Ties::ToEven)
}

#[derive(PartialEq)]
enum Ties {
    ToEven,
    TowardsZero,
}

/// The code in `0..=last` whose value is nearest to `x`. The values must rise with the code. Differences are computed
/// in `f64`, where they are exact below the largest value.
fn nearest(x: f32, last: u8, decode: fn(u8) -> f32, ties: Ties) -> u8 {
    if x >= decode(last) {
        return last;
    }
    let distance = |code: u8| (f64::from(decode(code)) - f64::from(x)).abs();
    let mut best = 0;
    for code in 1..=last {
        let (d, least) = (distance(code), distance(best));
        if d < least || (d == least && ties == Ties::ToEven && code % 2 == 0) {
            best = code;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_decoding_and_encoding() {
        for code in (0..16).filter(|&code| code != 8) {
            assert_eq!(f32_to_e2m1(e2m1_to_f32(code)), code);
        }
        for code in 0..=255 {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(code)) & 0x7f, code & 0x7f);
        }
    }

    #[test]
    fn ties_and_large_values() {
        for (x, want) in
            [(0.25, 0.0), (0.75, 0.5), (1.25, 1.0), (1.75, 1.5), (2.5, 2.0), (3.5, 3.0), (5.0, 4.0)]
        {
            assert_eq!(e2m1_to_f32(f32_to_e2m1(x)), want, "{x}");
            assert_eq!(e2m1_to_f32(f32_to_e2m1(-x)), -want, "-{x}");
        }
        assert_eq!(f32_to_e2m1(-0.1), 0, "zero is never negative");
        assert_eq!(e2m1_to_f32(f32_to_e2m1(1e30)), 6.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(f32::NEG_INFINITY)), -448.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(17.0)), 16.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(19.0)), 20.0);
        assert_eq!(f32_to_e4m3(2f32.powi(-10)), 0, "half of the least subnormal is a tie with zero");
        assert!(e4m3_to_f32(f32_to_e4m3(f32::NAN)).is_nan());
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        assert_eq!(e8m0_to_f32(127), 1.0);
        assert_eq!(e8m0_to_f32(254), 2f32.powi(127));
        assert_eq!(e8m0_to_f32(0), f32::from_bits(1 << 22));
        assert!(e8m0_to_f32(255).is_nan());
    }
}

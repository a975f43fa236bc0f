//! The small float formats: e2m1 weights, e4m3 weights and scales, e8m0 scales.

/// Two times the value of each e2m1 code, which is a whole number. A code has a sign, two exponent bits and one
/// mantissa bit.
pub const E2M1_TIMES_2: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// The same values plus 12, so that none is negative.
pub const E2M1_TIMES_2_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Largest magnitude of e2m1.
pub const E2M1_MAX: f32 = 6.0;

/// Largest magnitude of e4m3.
pub const E4M3_MAX: f32 = 448.0;

/// The value of an e2m1 code (low four bits).
#[inline]
pub fn e2m1_to_f32(code: u8) -> f32 {
    0.5 * f32::from(E2M1_TIMES_2[usize::from(code & 15)])
}

/// The value of an e4m3 code: bias 7, subnormals, no infinities, 0x7f and 0xff are NaN.
#[inline]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = ((code >> 3) & 15, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The value of an e8m0 code: `2^(code - 127)`; 255 is NaN.
#[inline]
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22), // 2^-127 is subnormal
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The nearest e2m1 code, ties towards zero, saturating at ±6. What rounds to zero gives code 0, never -0.
pub fn f32_to_e2m1(value: f32) -> u8 {
    let magnitude = 2.0 * value.abs();
    let code = nearest(magnitude, 7, Ties::Down, |c| f32::from(E2M1_TIMES_2[usize::from(c)]));
    code | if value.is_sign_negative() && code > 0 { 8 } else { 0 }
}

/// The nearest e4m3 code, ties to the even code, saturating at ±448. A NaN gives the NaN code.
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    sign | nearest(value.abs().min(E4M3_MAX), 0x7e, Ties::Even, e4m3_to_f32)
}

/// Which of two equally near codes is taken.
#[derive(Clone, Copy, PartialEq)]
enum Ties {
    Even,
    Down,
}

/// The code in `0..=last`, whose values ascend, that is nearest to `magnitude`.
fn nearest(magnitude: f32, last: u8, ties: Ties, value: impl Fn(u8) -> f32) -> u8 {
    let (mut low, mut high) = (0, last);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if value(mid) <= magnitude { low = mid } else { high = mid - 1 }
    }
    if low == last {
        return last;
    }
    let (below, above) = (magnitude - value(low), value(low + 1) - magnitude);
    if below < above || (below == above && (ties == Ties::Down || low.is_multiple_of(2))) {
        low
    } else {
        low + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_round_trip() {
        for code in 0..=255u8 {
            let v = e4m3_to_f32(code);
            if !v.is_nan() {
                assert_eq!(f32_to_e4m3(v), code, "{v}");
            }
        }
        for code in 0..16u8 {
            assert_eq!(f32_to_e2m1(e2m1_to_f32(code)), if code == 8 { 0 } else { code });
        }
    }

    #[test]
    fn ties_and_saturation() {
        assert_eq!(f32_to_e2m1(0.25), 0);
        assert_eq!(f32_to_e2m1(0.75), 1);
        assert_eq!(f32_to_e2m1(2.5), 4);
        assert_eq!(f32_to_e2m1(5.0), 6);
        assert_eq!(f32_to_e2m1(100.0), 7);
        assert_eq!(f32_to_e4m3(1.0625), 0x38);
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
        assert_eq!(e8m0_to_f32(0), 2f32.powi(-127));
        assert_eq!(e8m0_to_f32(127), 1.0);
    }
}

//! Elementary functions, which give the same results on every level and platform.

use zmlx_core::Activation;

/// `e^x` to 2 units in the last place; 0 below -86.6, infinite above 88.7. NaN stays NaN.
///
/// Written without branches and library calls, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts; the first has trailing zeros, so that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding this rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LEAST: f32 = -86.6;
    // Just large enough that the result is infinite.
    const MOST: f32 = 89.0;
    let clamped = if x < LEAST { LEAST } else { x };
    let clamped = if clamped > MOST { MOST } else { clamped };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let e = (p * r) * r + r + 1.0;
    // 2^(n - 1), then twice that, because 2^128 is not a float. The lowest n is -125.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half_power = f32::from_bits((n.wrapping_add(126) << 23).cast_unsigned());
    let e = e * half_power * 2.0;
    if x < LEAST { 0.0 } else { e }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x · sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The sum, in eight partial sums: dependency chains are short, and the order is the same on every level.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    sum_by(values, |v| v)
}

/// The sum of `f` of each value, in the same order as [`sum`].
#[inline(always)]
pub(crate) fn sum_by(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut part = [0f32; 8];
    let chunks = values.chunks_exact(8);
    let rest = chunks.remainder();
    for v in chunks {
        for (p, v) in part.iter_mut().zip(v) {
            *p += f(*v);
        }
    }
    for (p, v) in part.iter_mut().zip(rest) {
        *p += f(*v);
    }
    ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]))
}

/// Softmax in place. An empty slice stays empty.
#[inline(always)]
pub(crate) fn softmax(values: &mut [f32]) {
    let mut part = [f32::NEG_INFINITY; 8];
    for v in values.chunks(8) {
        for (p, v) in part.iter_mut().zip(v) {
            *p = if *v > *p { *v } else { *p };
        }
    }
    let max = part.into_iter().fold(f32::NEG_INFINITY, f32::max);
    for v in values.iter_mut() {
        *v = exp(*v - max);
    }
    let inverse = 1.0 / sum(values);
    for v in values.iter_mut() {
        *v *= inverse;
    }
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`.
///
/// Computed as `x · sigmoid(2z)`, where z is the argument of the tanh, so that nothing cancels.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    // Twice √(2/π).
    const FACTOR: f32 = 1.595_769;
    x / (1.0 + exp(-FACTOR * (x + 0.044_715 * x * x * x)))
}

/// `tanh(x)`, with an error of some units in the last place of 1.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// The gate, at most `limit`, goes through a SiLU with steepness `alpha`. It is multiplied by `up`, limited to
/// `±limit`, plus one. NaN stays NaN.
#[inline(always)]
fn clamped_swiglu(gate: f32, up: f32, alpha: f32, limit: f32) -> f32 {
    let gate = if gate > limit { limit } else { gate };
    let up = if up > limit { limit } else { up };
    let up = if up < -limit { -limit } else { up };
    gate / (1.0 + exp(-alpha * gate)) * (up + 1.0)
}

/// `y = silu(gate) · up`.
#[inline(always)]
pub(crate) fn swiglu([gate, up]: [&[f32]; 2], out: &mut [f32]) {
    for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *y = silu(*gate) * up;
    }
}

/// `y = activation(gate, up)`. Biases, if there are any, are added to both first.
#[inline(always)]
pub(crate) fn gated(
    activation: Activation,
    [gate, up]: [&[f32]; 2],
    biases: Option<[&[f32]; 2]>,
    out: &mut [f32],
) {
    match activation {
        Activation::SwiGlu => join([gate, up], biases, out, |g, u| silu(g) * u),
        Activation::GeGlu => join([gate, up], biases, out, |g, u| gelu_tanh(g) * u),
        Activation::ClampedSwiGlu { alpha, limit } => {
            join([gate, up], biases, out, |g, u| clamped_swiglu(g, u, alpha, limit));
        }
    }
}

#[inline(always)]
fn join([gate, up]: [&[f32]; 2], biases: Option<[&[f32]; 2]>, out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match biases {
        None => {
            for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *y = f(*gate, *up);
            }
        }
        Some([of_gate, of_up]) => {
            for ((y, (gate, a)), (up, b)) in
                out.iter_mut().zip(gate.iter().zip(of_gate)).zip(up.iter().zip(of_up))
            {
                *y = f(gate + a, up + b);
            }
        }
    }
}

/// `y = x / sqrt(mean(x²) + eps) · weight`.
#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let mean = sum_by(x, |v| v * v) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0f64;
        for i in -866_000..887_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::EPSILON) * want.max(f64::from(f32::MIN_POSITIVE));
            worst = worst.max(((f64::from(exp(x)) - want) / ulp).abs());
        }
        assert!(worst <= 2.0, "{worst} units in the last place");
    }

    #[test]
    fn extremes() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e9), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(1e9), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(silu(-1e9), 0.0);
        assert_eq!(silu(1e9), 1e9);
        assert_eq!((gelu_tanh(-1e9), gelu_tanh(1e9), gelu_tanh(0.0)), (0.0, 1e9, 0.0));
        assert_eq!((tanh(-1e9), tanh(1e9), tanh(0.0)), (-1.0, 1.0, 0.0));
        let clamped = |gate, up| clamped_swiglu(gate, up, 1.702, 7.0);
        assert_eq!((clamped(1e9, 1e9), clamped(7.0, 7.0)), (clamped(7.0, 7.0), clamped(8.0, 9.0)));
        assert_eq!((clamped(1.0, -1e9), clamped(-1e9, 1.0)), (clamped(1.0, -7.0), 0.0));
        assert!(
            clamped(f32::NAN, 1.0).is_nan()
                && clamped(1.0, f32::NAN).is_nan()
                && gelu_tanh(f32::NAN).is_nan()
        );
        assert_eq!(sigmoid(-1e9), 0.0);
    }

    #[test]
    fn softmax_sums_to_one() {
        for n in [1, 2, 7, 8, 9, 1000] {
            let mut v: Vec<f32> = (0..n).map(|i| (i % 13) as f32 * 9.0 - 40.0).collect();
            softmax(&mut v);
            assert!((sum(&v) - 1.0).abs() < 1e-6, "{n}");
        }
    }
}

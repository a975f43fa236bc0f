//! The running softmax of some rows, to the base 2.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::cells::LARGEST;
use super::kernel::{BLOCK, JOB_ROWS, Seen};
use crate::simd::Simd;

/// For each row, the factor of the sums so far, and the scale of products with its integer weights.
pub(super) struct Factors {
    pub(super) kept: [f32; JOB_ROWS],
    pub(super) scales: [f32; JOB_ROWS],
}

/// Turns the rows' scores into weights times the values' scales, as integers, and updates the rows' largest scores and
/// sums. Rows of scores are [`BLOCK`] floats apart. A row sees the positions that `visible` says. There are as many
/// scores and weights as `value_scales`, in whole vectors. The scale of a row's weights is not finite if one of them is
/// not.
///
/// Each step runs over all rows before the next one begins, so that no row waits for another row's sum across lanes.
#[inline(always)]
pub(super) fn weigh<S: Simd>(
    s: S,
    scores: &mut [f32],
    visible: &[Seen],
    value_scales: &[f32],
    (maxima, sums): (&mut [f32], &mut [f32]),
    weights: &mut [i16],
) -> Factors {
    let (n, n_rows) = (value_scales.len(), visible.len());
    let mut most = [f32::NEG_INFINITY; JOB_ROWS];
    for r in 0..n_rows {
        let scores = &mut scores[r * BLOCK..][..n];
        scores[..visible[r].from].fill(f32::NEG_INFINITY);
        scores[visible[r].to..].fill(f32::NEG_INFINITY);
        most[r] = largest(s, scores);
    }
    let (mut kept, mut bases) = ([f32::NEG_INFINITY; JOB_ROWS], [0.0; JOB_ROWS]);
    kept[..n_rows].copy_from_slice(maxima);
    running(s, &mut most, &mut kept, &mut bases);
    maxima.copy_from_slice(&most[..n_rows]);
    for r in 0..n_rows {
        let scores = &mut scores[r * BLOCK..][..n];
        sums[r] = sums[r] * kept[r] + exponentials(s, scores, bases[r], value_scales);
        // A position that is not seen has no weight, not even if its scale is NaN.
        scores[..visible[r].from].fill(0.0);
        scores[visible[r].to..].fill(0.0);
        most[r] = largest_or_nan(s, scores);
    }
    let mut factors = Factors { kept, scales: [0.0; JOB_ROWS] };
    for r in 0..n_rows {
        factors.scales[r] = most[r] / f32::from(LARGEST);
        let inverse = f32::from(LARGEST) / most[r];
        // The inverse of the smallest numbers is infinite, and that of NaN is NaN. Both become 0.
        let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
        to_integers(s, &scores[r * BLOCK..][..n], inverse, &mut weights[r * BLOCK..][..n]);
    }
    factors
}

/// `2^x` for numbers up to 0, to 5 units in the last place. Below -126 it is `2^-126`; NaN stays NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding and subtracting this rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = s.max(s.splat(-126.0), x);
    let whole = s.add(s.add(x, s.splat(ROUND)), s.splat(-ROUND));
    let rest = s.fma(whole, s.splat(-1.0), x);
    let mut power = s.splat(1.112_551e-3);
    for c in [9.666_283e-3, 5.557_400_4e-2, 2.402_235_1e-1, 6.931_428_3e-1, 1.0] {
        power = s.fma(power, rest, s.splat(c));
    }
    s.times_power(power, whole)
}

/// Updates the largest scores. Inputs are the maxima `most` of a block and `kept` from before. Results are the larger
/// of both in `most`, the factors of the sums so far in `kept`, and what must be added to the block's scores, which is
/// negative, in `bases`.
#[inline(always)]
fn running<S: Simd>(
    s: S,
    most: &mut [f32; JOB_ROWS],
    kept: &mut [f32; JOB_ROWS],
    bases: &mut [f32; JOB_ROWS],
) {
    for i in (0..JOB_ROWS).step_by(S::LANES) {
        // SAFETY: whole vectors of the arrays.
        unsafe {
            let before = s.load(kept.as_ptr().add(i));
            let now = s.max(s.load(most.as_ptr().add(i)), before);
            // For a row that has seen nothing this is not -∞, because the difference of -∞ with itself is NaN.
            let base = s.mul(s.max(now, s.splat(f32::MIN)), s.splat(-1.0));
            s.store(most.as_mut_ptr().add(i), now);
            s.store(kept.as_mut_ptr().add(i), exp2(s, s.add(before, base)));
            s.store(bases.as_mut_ptr().add(i), base);
        }
    }
}

/// The largest value; NaN is ignored.
#[inline(always)]
fn largest<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut most = s.splat(f32::NEG_INFINITY);
    for i in (0..values.len()).step_by(S::LANES) {
        // SAFETY: whole vectors of the slice.
        most = s.max(unsafe { s.load(values.as_ptr().add(i)) }, most);
    }
    s.largest(most)
}

/// The largest value, or NaN if one value is not finite.
#[inline(always)]
fn largest_or_nan<S: Simd>(s: S, values: &[f32]) -> f32 {
    let (mut most, mut zero) = (s.splat(0.0), s.splat(0.0));
    for i in (0..values.len()).step_by(S::LANES) {
        // SAFETY: whole vectors of the slice.
        let values = unsafe { s.load(values.as_ptr().add(i)) };
        most = s.max(values, most);
        zero = s.fma(values, s.splat(0.0), zero);
    }
    s.largest(most) + s.sum(zero)
}

/// Turns scores into weights times the values' scales. Returns the sum of the weights.
#[inline(always)]
fn exponentials<S: Simd>(s: S, scores: &mut [f32], base: f32, value_scales: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for i in (0..scores.len()).step_by(S::LANES) {
        // SAFETY: whole vectors of slices of one length.
        unsafe {
            let at = scores.as_mut_ptr().add(i);
            let weights = exp2(s, s.add(s.load(at), s.splat(base)));
            sum = s.add(sum, weights);
            s.store(at, s.mul(weights, s.load(value_scales.as_ptr().add(i))));
        }
    }
    s.sum(sum)
}

/// Writes the integers nearest to the values times `factor`.
#[inline(always)]
fn to_integers<S: Simd>(s: S, values: &[f32], factor: f32, out: &mut [i16]) {
    for i in (0..values.len()).step_by(S::LANES) {
        // SAFETY: whole vectors of slices of one length.
        unsafe {
            let scaled = s.mul(s.load(values.as_ptr().add(i)), s.splat(factor));
            s.store_i16(out.as_mut_ptr().add(i), scaled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::scalar::Scalar;

    #[test]
    fn exp2_is_within_five_ulp() {
        let exp2 = |x: f32| exp2(Scalar, [x; 8])[0];
        let mut worst = 0f64;
        for i in 0..1_260_000 {
            let x = i as f32 * -1e-4;
            let want = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2(x)) - want).abs() / (f64::from(f32::EPSILON) * want));
        }
        assert!(worst <= 5.0, "{worst} units in the last place");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), f32::MIN_POSITIVE);
        assert!(exp2(f32::NAN).is_nan());
    }
}

//! The running softmax of some rows, to the base 2.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use super::cells::LARGEST;
use super::kernel::{BLOCK, JOB_ROWS, Seen};
use crate::simd::Simd;

/// Of each row, what the sums so far must be multiplied by, and what products with its weights.
pub(super) struct Factors {
    pub(super) kept: [f32; JOB_ROWS],
    pub(super) scales: [f32; JOB_ROWS],
}

/// Turns the rows' scores, [`BLOCK`] from one row to the next, into weights, times the values' scales, as integers, and
/// brings the rows' largest scores and sums up to date. A row sees the positions that `visible` says; there are as many
/// scores and weights as `value_scales`, whole vectors. The scale of a row's weights is not finite if one of them is not.
///
/// What is done for each row comes in steps of their own, so that no row waits for the sums across lanes of another.
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
        // What is not seen has no part in it, not even if its scale is NaN.
        scores[..visible[r].from].fill(0.0);
        scores[visible[r].to..].fill(0.0);
        most[r] = largest_or_nan(s, scores);
    }
    let mut factors = Factors { kept, scales: [0.0; JOB_ROWS] };
    for r in 0..n_rows {
        factors.scales[r] = most[r] / f32::from(LARGEST);
        let inverse = f32::from(LARGEST) / most[r];
        // Of the smallest numbers the inverse is infinite, and of NaN there is none: they vanish.
        let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
        to_integers(s, &scores[r * BLOCK..][..n], inverse, &mut weights[r * BLOCK..][..n]);
    }
    factors
}

/// `2^x` of numbers up to 0, to 5 units in the last place; below -126 that of -126, and NaN stays NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(s: S, x: S::F) -> S::F {
    // Adding this rounds to a whole number.
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

/// The largest scores, `most` in a block and `kept` before, become the largest of both, what the sums so far must be
/// multiplied by, and what the block's scores must be lessened by, negative.
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
            // Of a row that has seen nothing not -∞, whose difference with itself is NaN.
            let base = s.mul(s.max(now, s.splat(f32::MIN)), s.splat(-1.0));
            s.store(most.as_mut_ptr().add(i), now);
            s.store(kept.as_mut_ptr().add(i), exp2(s, s.add(before, base)));
            s.store(bases.as_mut_ptr().add(i), base);
        }
    }
}

/// The largest value, NaN being none.
#[inline(always)]
fn largest<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut most = s.splat(f32::NEG_INFINITY);
    for i in (0..values.len()).step_by(S::LANES) {
        // SAFETY: whole vectors of the slice.
        most = s.max(unsafe { s.load(values.as_ptr().add(i)) }, most);
    }
    s.largest(most)
}

/// The largest value, or NaN if one is not finite.
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

/// Turns scores into weights times the values' scales; returns the sum of the weights.
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

/// The integers nearest to the values times `factor`.
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

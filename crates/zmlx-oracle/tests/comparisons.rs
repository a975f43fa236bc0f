//! NaN fails every comparison, and so do different lengths.

use zmlx_oracle::compare::{
    Mismatch, Tolerance, argmax, assert_close, differing_expert_sets, log_softmax, logits_difference, margin,
    max_abs, max_or_nan, rel_rms,
};

const LOOSE: Tolerance = Tolerance { abs: 1e30, rel: 1e30 };

#[test]
fn nan_fails_wherever_it_stands() {
    for at in 0..3 {
        let want = [1.0f32, 2.0, 3.0];
        let mut bad = want;
        bad[at] = f32::NAN;
        for (got, want) in [(bad, want), (want, bad), (bad, bad)] {
            assert!(max_abs(&got, &want).is_nan());
            assert!(rel_rms(&got, &want).is_nan());
            assert!(assert_close(&got, &want, LOOSE).is_err());
            let difference = logits_difference(&got, &want);
            assert!(difference.max.is_nan() && difference.mean.is_nan() && difference.kl.is_nan());
            assert!(!difference.argmax_equal);
        }
        assert!(argmax(&bad).is_none() && margin(&bad).is_nan());
    }
    for (a, b) in [(f64::NAN, 1.0), (1.0, f64::NAN), (f64::NAN, f64::INFINITY), (f64::NAN, f64::NAN)] {
        assert!(max_or_nan(a, b).is_nan(), "{a} {b}");
    }
}

#[test]
fn a_tolerance_of_nan_or_a_wrong_length_fails() {
    let nan = Tolerance { abs: f64::NAN, rel: 0.0 };
    assert!(assert_close(&[1.0f64], &[1.0f64], nan).is_err());
    assert!(max_abs(&[1.0f32], &[1.0f32, 2.0]).is_nan());
    assert!(rel_rms::<f32, f32>(&[], &[1.0]).is_nan());
    let got = assert_close(&[1.0f32], &[1.0f32, 2.0], LOOSE);
    assert_eq!(got, Err(Mismatch::Length { got: 1, want: 2 }));
    assert!(logits_difference(&[1.0f32], &[1.0f32, 2.0]).max.is_nan());
}

#[test]
fn measures_are_what_they_say() {
    let (got, want) = ([1.0f32, 2.5, -3.0], [1.0f64, 2.0, -4.0]);
    assert_eq!(max_abs(&got, &want), 1.0);
    assert_eq!((max_or_nan(1.0, 2.0), max_or_nan(2.0, 1.0)), (2.0, 2.0));
    assert_eq!(rel_rms(&got, &want), (1.25f64 / 21.0).sqrt());
    assert_eq!(rel_rms::<f32, f32>(&[], &[]), 0.0);
    assert_eq!(rel_rms(&[0.0f32], &[0.0f32]), 0.0);
    assert_eq!(rel_rms(&[1.0f32], &[0.0f32]), f64::INFINITY, "any difference from zero is infinite");
    assert_eq!(argmax(&[1.0f32, 3.0, 3.0]), Some(1), "the lowest of equals");
    assert_eq!(margin(&[1.0f32, 3.0, 2.5]), 0.5);
    let log_p = log_softmax(&[1000.0f32, 1000.0]);
    assert!((log_p[0] + 2f64.ln()).abs() < 1e-12);
}

#[test]
fn the_worst_element_is_named() {
    let tolerance = Tolerance { abs: 0.1, rel: 0.01 };
    assert_eq!(assert_close(&[f32::INFINITY, 100.0], &[f32::INFINITY, 101.0], tolerance), Ok(()));
    match assert_close(&[1.0f64, 2.5, 9.0, 4.0], &[1.0f64, 2.0, 3.0, 4.0], tolerance) {
        Err(Mismatch::Element { index: 2, n_bad: 2, got, want, .. }) => assert_eq!((got, want), (9.0, 3.0)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn expert_sets_ignore_order_and_nothing_else() {
    assert!(differing_expert_sets(&[1, 2, 3, 4], &[2, 1, 3, 4], 2).is_empty());
    assert_eq!(differing_expert_sets(&[1, 2, 3, 5], &[2, 1, 3, 4], 2), [1]);
    assert_eq!(differing_expert_sets(&[1, 1], &[1, 1], 2), [0], "an expert chosen twice is no set");
    assert_eq!(differing_expert_sets(&[1, 2], &[1, 2, 3, 4], 2), [0, 1]);
    assert_eq!(differing_expert_sets(&[], &[1], 0), [0]);
    assert!(differing_expert_sets(&[], &[], 2).is_empty());
}

#[test]
fn divergence_of_logits() {
    let same = logits_difference(&[1.0f32, 2.0, 3.0], &[2.0f32, 3.0, 4.0]);
    assert!(same.kl.abs() < 1e-12, "adding a constant changes no probability");
    assert_eq!((same.max, same.mean, same.margin, same.argmax_equal), (1.0, 1.0, 1.0, true));
    let other = logits_difference(&[3.0f32, 2.0], &[2.0f32, 3.0]);
    // p = (1/(1+e), e/(1+e)); KL = (p1 - p0)·1 = (e-1)/(e+1).
    let e = std::f64::consts::E;
    assert!((other.kl - (e - 1.0) / (e + 1.0)).abs() < 1e-12 && !other.argmax_equal);
}

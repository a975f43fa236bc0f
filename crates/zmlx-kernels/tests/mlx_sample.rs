//! Tokens that the device chooses: the same filters as the host's, chance that follows the distribution, no bad argument.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, MlxIndices, Numerics};
use zmlx_kernels::{Backend, Error, Repetition, SampleSettings};

type Settings<'a> = SampleSettings<'a, MlxIndices>;

fn backend() -> MlxBackend {
    MlxBackend::new(Numerics::Exact).unwrap()
}

fn greedy<'a>() -> Settings<'a> {
    SampleSettings { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition: None, seed: 0 }
}

fn hot<'a>() -> Settings<'a> {
    SampleSettings { temperature: 1.0, ..greedy() }
}

fn sample(b: &MlxBackend, rows: &[&[f32]], row: usize, settings: &Settings<'_>) -> u32 {
    let logits = b.tensor(&rows.concat(), &[rows.len(), rows[0].len()]).unwrap();
    let chosen = b.sample(&logits, row, settings).unwrap().unwrap();
    let mut id = Vec::new();
    b.read_indices(&chosen, &mut id).unwrap();
    assert_eq!(id.len(), 1);
    id[0]
}

fn ln(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let b = backend();
    let rows: [&[f32]; 3] = [&[1.0, 3.0, 3.0, -2.0], &[0.0, 0.0, 0.0, 9.0], &[-1.0, -2.0, -3.0, -4.0]];
    for (row, want) in [1, 3, 0].into_iter().enumerate() {
        assert_eq!(sample(&b, &rows, row, &greedy()), want);
    }
    // The most probable one has no rival at all.
    assert_eq!(
        sample(&b, &[&[0.0, 80.0, -80.0]], 0, &Settings { temperature: f32::MIN_POSITIVE, ..hot() }),
        1
    );
}

#[test]
fn recent_tokens_become_less_likely() {
    let b = backend();
    // Halved and doubled: 2, 3, -2, 2.5; token 0 is listed twice.
    let logits: &[f32] = &[4.0, 3.0, -1.0, 2.5];
    let repetition = Repetition { penalty: 2.0, recent: &[0, 2, 0], last: None };
    assert_eq!(sample(&b, &[logits], 0, &Settings { repetition: Some(repetition), ..greedy() }), 1);
    // One more that is on the device: 2, 1.5, -2, 2.5.
    let last = b.indices(&[1], &[1]).unwrap();
    for recent in [&[0, 2][..], &[0, 1, 2]] {
        let repetition = Repetition { penalty: 2.0, recent, last: Some(&last) };
        assert_eq!(sample(&b, &[logits], 0, &Settings { repetition: Some(repetition), ..greedy() }), 3);
    }
    let only_last = Repetition { penalty: 2.0, recent: &[], last: Some(&last) };
    assert_eq!(sample(&b, &[&[0.0, 3.0, 2.0]], 0, &Settings { repetition: Some(only_last), ..greedy() }), 2);
    let nothing = Repetition { penalty: 2.0, recent: &[], last: None };
    assert_eq!(sample(&b, &[&[0.0, 3.0, 2.0]], 0, &Settings { repetition: Some(nothing), ..greedy() }), 1);
}

/// The sets that the host's sampler keeps of the same probabilities.
#[rstest]
#[case::none(hot(), &[0, 1, 2, 3, 4])]
#[case::top_k_1(Settings { top_k: Some(1), ..hot() }, &[1])]
#[case::top_k_3(Settings { top_k: Some(3), ..hot() }, &[1, 2, 4])]
#[case::top_k_all(Settings { top_k: Some(9), ..hot() }, &[0, 1, 2, 3, 4])]
#[case::top_p_39(Settings { top_p: Some(0.39), ..hot() }, &[1])]
#[case::top_p_60(Settings { top_p: Some(0.6), ..hot() }, &[1, 4])]
#[case::top_p_70(Settings { top_p: Some(0.7), ..hot() }, &[1, 2, 4])]
#[case::top_p_1(Settings { top_p: Some(1.0), ..hot() }, &[0, 1, 2, 3, 4])]
#[case::min_p_0(Settings { min_p: Some(0.0), ..hot() }, &[0, 1, 2, 3, 4])]
#[case::min_p_49(Settings { min_p: Some(0.49), ..hot() }, &[1, 2, 4])]
#[case::both(Settings { top_k: Some(2), top_p: Some(0.64), ..hot() }, &[1, 4])]
#[case::all_three(Settings { top_k: Some(4), top_p: Some(0.9), min_p: Some(0.49), ..hot() }, &[1, 2, 4])]
fn filters_keep(#[case] settings: Settings<'static>, #[case] want: &[u32]) {
    let b = backend();
    let logits = ln(&[0.1, 0.4, 0.2, 0.05, 0.25]);
    // All kept ones are about equally likely: one of five is missed by 200 draws once in 2·10¹⁹ seeds.
    let draw = |seed| sample(&b, &[&logits], 0, &Settings { temperature: 1e6, seed, ..settings });
    let mut seen: Vec<u32> = (0..200).map(draw).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, want);
}

/// Each count lies within 5 standard deviations of its expectation; the seeds are fixed.
#[rstest]
fn draws_follow_the_distribution(
    #[values(1.0, 0.5, 2.0)] temperature: f32,
    #[values(None, Some(4))] top_k: Option<usize>,
) {
    const N: u64 = 2000;
    let b = backend();
    let p = [0.1f32, 0.4, 0.2, 0.05, 0.25];
    let mut counts = [0u32; 5];
    for seed in 0..N {
        let settings =
            Settings { temperature, top_k, seed: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..hot() };
        counts[sample(&b, &[&ln(&p)], 0, &settings) as usize] += 1;
    }
    let is_kept = |i: usize| top_k.is_none() || i != 3;
    let tempered =
        |i: usize| if is_kept(i) { f64::from(p[i]).powf(1.0 / f64::from(temperature)) } else { 0.0 };
    let sum: f64 = (0..5).map(tempered).sum();
    for (i, n) in counts.iter().enumerate() {
        let q = tempered(i) / sum;
        let (mean, deviation) = (N as f64 * q, (N as f64 * q * (1.0 - q)).sqrt());
        assert!((f64::from(*n) - mean).abs() <= 5.0 * deviation, "{counts:?}: {n} for {mean}");
    }
}

#[test]
fn the_seed_decides() {
    let b = backend();
    let logits = [0.0f32; 64];
    let run =
        |from: u64| (from..from + 16).map(|seed| sample(&b, &[&logits], 0, &Settings { seed, ..hot() }));
    let first: Vec<u32> = run(5).collect();
    assert_eq!(first, run(5).collect::<Vec<_>>());
    assert_ne!(first, run(99).collect::<Vec<_>>());
}

#[test]
fn bad_arguments_are_errors() {
    let b = backend();
    let logits = b.tensor(&[0.0; 6], &[2, 3]).unwrap();
    let row = b.sample(&logits, 2, &greedy());
    assert!(matches!(row, Err(Error::IndexOutOfRange { op: "sample", index: 2, len: 2, .. })));
    let refused = |repetition| b.sample(&logits, 0, &Settings { repetition: Some(repetition), ..greedy() });
    let known = refused(Repetition { penalty: 1.1, recent: &[3], last: None });
    assert!(matches!(known, Err(Error::IndexOutOfRange { op: "sample", index: 3, len: 3, .. })));
    let last = b.indices(&[3], &[1]).unwrap();
    let unread = refused(Repetition { penalty: 1.1, recent: &[], last: Some(&last) });
    assert!(matches!(unread, Err(Error::IndexOutOfRange { op: "sample", .. })));
    let two = b.indices(&[1, 2], &[2]).unwrap();
    assert!(refused(Repetition { penalty: 1.1, recent: &[], last: Some(&two) }).is_err());
    let vector = b.tensor(&[0.0; 6], &[6]).unwrap();
    assert!(b.sample(&vector, 0, &greedy()).is_err());
}

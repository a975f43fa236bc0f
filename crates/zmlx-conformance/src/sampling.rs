//! `sample`: the filters of the host's sampler, chance that follows the distribution, no bad argument. A backend that leaves the
//! choice to the host has nothing to show. `join_indices`, which makes a step of what was chosen.

use zmlx_core::{Backend, DType, Error, Repetition, SampleSettings, WeightFormat};

use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

type Settings<'a, B> = SampleSettings<'a, <B as Backend>::Indices>;

fn greedy<'a, B: Backend>() -> Settings<'a, B> {
    SampleSettings { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition: None, seed: 0 }
}

fn hot<'a, B: Backend>() -> Settings<'a, B> {
    SampleSettings { temperature: 1.0, ..greedy::<B>() }
}

/// The instances whose backend chooses by chance.
fn with_chance<B: Backend>(instances: &[Instance<B>]) -> impl Iterator<Item = &B> {
    instances.iter().map(|i| &i.backend).filter(|b| {
        let logits = b.put(&[0.0, 1.0], &[1, 2]);
        b.sample(&logits, &[(0, hot::<B>())]).unwrap()[0].is_some()
    })
}

/// What the device chooses from one row.
fn choose<B: Backend>(
    b: &B,
    logits: &B::Tensor,
    row: usize,
    settings: Settings<'_, B>,
) -> zmlx_core::Result<B::Indices> {
    Ok(b.sample(logits, &[(row, settings)])?.remove(0).unwrap())
}

fn sample<B: Backend>(b: &B, rows: &[&[f32]], row: usize, settings: &Settings<'_, B>) -> u32 {
    let logits = b.put(&rows.concat(), &[rows.len(), rows[0].len()]);
    let id = b.get_indices(&choose(b, &logits, row, *settings).unwrap());
    assert_eq!(id.len(), 1);
    id[0]
}

fn ln(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

/// Of equal logits the first; rows and widths of every size.
pub fn greedy_takes_the_first_of_the_largest<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        let rows: [&[f32]; 3] = [&[1.0, 3.0, 3.0, -2.0], &[0.0, 0.0, 0.0, 9.0], &[-1.0, -2.0, -3.0, -4.0]];
        for (row, want) in [1, 3, 0].into_iter().enumerate() {
            assert_eq!(sample(b, &rows, row, &greedy::<B>()), want);
        }
        // The most probable one has no rival at all.
        let cold = SampleSettings { temperature: f32::MIN_POSITIVE, ..hot::<B>() };
        assert_eq!(sample(b, &[&[0.0, 80.0, -80.0]], 0, &cold), 1);
        for (width, at) in [(1, 0), (1025, 1024), (8191, 17), (8193, 8192), (151_936, 100_001)] {
            let mut logits = vec![-1.0f32; width];
            logits[at] = 2.0;
            if at + 3 < width {
                logits[at + 3] = 2.0;
            }
            for settings in [greedy::<B>(), cold, SampleSettings { top_k: Some(1), ..hot::<B>() }] {
                assert_eq!(sample(b, &[&logits], 0, &settings), at as u32, "of {width}");
            }
        }
    }
}

/// The penalty counts once for each token, whether the host knows it or not.
pub fn recent_tokens_become_less_likely<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        let greedy = |logits: &[f32], repetition| {
            sample(b, &[logits], 0, &Settings::<B> { repetition: Some(repetition), ..greedy::<B>() })
        };
        // Halved and doubled: 2, 3, -2, 2.5; token 0 is listed twice.
        let logits: &[f32] = &[4.0, 3.0, -1.0, 2.5];
        assert_eq!(greedy(logits, Repetition { penalty: 2.0, recent: &[0, 2, 0], last: None }), 1);
        // One more that is on the device: 2, 1.5, -2, 2.5.
        let last = b.put_indices(&[1], &[1]);
        for recent in [&[0, 2][..], &[0, 1, 2]] {
            assert_eq!(greedy(logits, Repetition { penalty: 2.0, recent, last: Some(&last) }), 3);
        }
        let only_last = Repetition { penalty: 2.0, recent: &[], last: Some(&last) };
        assert_eq!(greedy(&[0.0, 3.0, 2.0], only_last), 2);
        let nothing = Repetition { penalty: 2.0, recent: &[], last: None };
        assert_eq!(greedy(&[0.0, 3.0, 2.0], nothing), 1);
    }
}

/// Top-k, top-p, min-p, and the tokens that they keep.
type Case<'a> = (Option<usize>, Option<f32>, Option<f32>, &'a [u32]);

/// The sets that the host's sampler keeps of the same probabilities.
pub fn filters_keep<B: Backend>(instances: &[Instance<B>]) {
    let cases: [Case<'_>; 12] = [
        (None, None, None, &[0, 1, 2, 3, 4]),
        (Some(1), None, None, &[1]),
        (Some(3), None, None, &[1, 2, 4]),
        (Some(9), None, None, &[0, 1, 2, 3, 4]),
        (None, Some(0.39), None, &[1]),
        (None, Some(0.6), None, &[1, 4]),
        (None, Some(0.7), None, &[1, 2, 4]),
        (None, Some(1.0), None, &[0, 1, 2, 3, 4]),
        (None, None, Some(0.0), &[0, 1, 2, 3, 4]),
        (None, None, Some(0.49), &[1, 2, 4]),
        (Some(2), Some(0.64), None, &[1, 4]),
        (Some(4), Some(0.9), Some(0.49), &[1, 2, 4]),
    ];
    let p = [0.1, 0.4, 0.2, 0.05, 0.25];
    for b in with_chance(instances) {
        for (top_k, top_p, min_p, want) in cases {
            // All kept ones are about equally likely: one of five is missed by 200 draws once in 2·10¹⁹ seeds.
            let settings = SampleSettings { temperature: 1e6, top_k, top_p, min_p, ..hot::<B>() };
            for at in [0, 70_000] {
                // The same among many tokens that are next to impossible.
                let mut logits = vec![-1e4f32; at];
                logits.extend(ln(&p));
                if at > 0
                    && top_k.is_none_or(|k| k > 5)
                    && top_p.is_none_or(|p| p == 1.0)
                    && min_p != Some(0.49)
                {
                    continue; // hot as it is, these are as likely
                }
                let draw = |seed: u64| {
                    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    sample(b, &[&logits], 0, &SampleSettings { seed, ..settings }) - at as u32
                };
                let mut seen: Vec<u32> = (1..201).map(draw).collect();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen, want, "{top_k:?} {top_p:?} {min_p:?} behind {at}");
            }
        }
    }
}

/// Of equal logits those with the lower index rank first.
pub fn ties_at_the_end_of_a_filter<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        let logits = [0.0, 1.0, 1.0, 1.0, 1.0, -3.0];
        for seed in 0..64u64 {
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let settings = SampleSettings { top_k: Some(2), seed, ..hot::<B>() };
            assert!([1, 2].contains(&sample(b, &[&logits], 0, &settings)), "{seed}");
        }
    }
}

/// Each count lies within 5 standard deviations of its expectation; the seeds are fixed.
pub fn draws_follow_the_distribution<B: Backend>(instances: &[Instance<B>]) {
    const N: u64 = 2000;
    let p = [0.1f32, 0.4, 0.2, 0.05, 0.25];
    for b in with_chance(instances) {
        for (temperature, top_k) in [(1.0, None), (0.5, None), (2.0, Some(4)), (1.0, Some(4))] {
            let mut counts = [0u32; 5];
            for seed in 0..N {
                let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let settings = SampleSettings { temperature, top_k, seed, ..hot::<B>() };
                counts[sample(b, &[&ln(&p)], 0, &settings) as usize] += 1;
            }
            let is_kept = |i: usize| top_k.is_none() || i != 3;
            let tempered = |i: usize| {
                if is_kept(i) { f64::from(p[i]).powf(1.0 / f64::from(temperature)) } else { 0.0 }
            };
            let sum: f64 = (0..5).map(tempered).sum();
            for (i, n) in counts.iter().enumerate() {
                let q = tempered(i) / sum;
                let (mean, deviation) = (N as f64 * q, (N as f64 * q * (1.0 - q)).sqrt());
                assert!((f64::from(*n) - mean).abs() <= 5.0 * deviation, "{counts:?}: {n} for {mean}");
            }
        }
    }
}

/// Equal seeds give equal tokens.
pub fn the_seed_decides<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        let run = |from: u64| -> Vec<u32> {
            let seeds = (from..from + 16).map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            seeds.map(|seed| sample(b, &[&[0.0; 64]], 0, &SampleSettings { seed, ..hot::<B>() })).collect()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(99));
    }
}

/// What a device says of its choice is what the host finds.
pub fn choices_are_assessed<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        for (width, temperature) in [(2, 0.0), (5, 1.0), (9000, 0.0), (9000, 1.0), (151_936, 0.7)] {
            let mut logits: Vec<f32> = zmlx_oracle::testing::random_f32(width, 4.0, width as u64);
            logits[width / 2] = 9.0;
            let recent = [(width / 2) as u32];
            for repetition in [None, Some(Repetition { penalty: 1.5, recent: &recent, last: None })] {
                let settings =
                    SampleSettings { temperature, repetition, seed: 0x7123_4567_89ab_cdef, ..greedy::<B>() };
                let chosen = choose(b, &b.put(&logits, &[1, width]), 0, settings).unwrap();
                let Some(choice) = b.read_choice(&chosen).unwrap() else { continue };
                assert_eq!([choice.token], b.get_indices(&chosen)[..], "{width}");
                let mut sorted: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let margin = sorted[0] - sorted[1];
                assert!(
                    (f64::from(choice.margin) - margin).abs() <= 1e-6 * sorted[0].abs(),
                    "{width}: {choice:?}"
                );
                let penalised = |i: usize| {
                    let logit = f64::from(logits[i]);
                    if repetition.is_some() && i == width / 2 { logit / 1.5 } else { logit }
                };
                let sum: f64 = (0..width).map(|i| (penalised(i) - 9.0).exp()).sum();
                let want = penalised(choice.token as usize) - 9.0 - sum.ln();
                // Sums of up to 10^5 exponentials, each to 2^-22.
                assert!((f64::from(choice.logprob) - want).abs() <= 1e-5, "{width}: {choice:?}, want {want}");
            }
        }
        let broken = b.put(&[0.0, f32::NAN, 1.0], &[1, 3]);
        let chosen = choose(b, &broken, 0, greedy::<B>()).unwrap();
        if let Some(choice) = b.read_choice(&chosen).unwrap() {
            assert!(choice.margin.is_nan(), "{choice:?}");
        }
    }
}

/// Rows and tokens that are not there.
pub fn bad_arguments_are_errors<B: Backend>(instances: &[Instance<B>]) {
    for b in with_chance(instances) {
        let logits = b.put(&[0.0; 6], &[2, 3]);
        let row = choose(b, &logits, 2, greedy::<B>());
        assert!(matches!(row, Err(Error::IndexOutOfRange { op: "sample", index: 2, len: 2, .. })));
        let refused = |repetition| {
            choose(b, &logits, 0, Settings::<B> { repetition: Some(repetition), ..greedy::<B>() })
        };
        let known = refused(Repetition { penalty: 1.1, recent: &[3], last: None });
        assert!(matches!(known, Err(Error::IndexOutOfRange { op: "sample", index: 3, len: 3, .. })));
        let last = b.put_indices(&[3], &[1]);
        let unread = refused(Repetition { penalty: 1.1, recent: &[], last: Some(&last) });
        assert!(matches!(unread, Err(Error::IndexOutOfRange { op: "sample", .. })));
        let two = b.put_indices(&[1, 2], &[2]);
        assert!(refused(Repetition { penalty: 1.1, recent: &[], last: Some(&two) }).is_err());
        let vector = b.put(&[0.0; 6], &[6]);
        assert!(choose(b, &vector, 0, greedy::<B>()).is_err());
    }
}

/// Several rows at once: each has the token that it has alone, whatever the settings of the others.
pub fn rows_do_not_depend_on_each_other<B: Backend>(instances: &[Instance<B>]) {
    const WIDTH: usize = 5000;
    for b in with_chance(instances) {
        let logits = b.put(&zmlx_oracle::testing::random_f32(20 * WIDTH, 4.0, 1), &[20, WIDTH]);
        let recent: Vec<u32> = (0..40).map(|i| i * 7).collect();
        let of = |i: usize| Settings::<B> {
            temperature: [0.0, 0.7, 1.3][i % 3],
            top_k: i.is_multiple_of(2).then_some(9 + i),
            top_p: (i % 4 < 2).then_some(0.9),
            min_p: i.is_multiple_of(5).then_some(0.01),
            repetition: (!i.is_multiple_of(3)).then(|| Repetition {
                penalty: 1.3,
                recent: &recent[i..],
                last: None,
            }),
            seed: 0x0123_4567_89ab_cdef * (i as u64 + 1),
        };
        for n in [2, 16, 20] {
            // The rows are chosen out of order.
            let rows: Vec<_> = (0..n).map(|i| (n - 1 - i, of(i))).collect();
            let together = b.sample(&logits, &rows).unwrap();
            assert_eq!(together.len(), n);
            for ((row, settings), id) in rows.into_iter().zip(together) {
                let id = id.unwrap();
                let alone = choose(b, &logits, row, settings).unwrap();
                assert_eq!(b.get_indices(&id), b.get_indices(&alone), "{n} rows, row {row}");
                assert_eq!(
                    b.read_choice(&id).unwrap(),
                    b.read_choice(&alone).unwrap(),
                    "{n} rows, row {row}"
                );
            }
        }
    }
}

/// The tokens that were chosen from some rows are the ids of a step, in any order, with others among them.
pub fn chosen_tokens_are_joined<B: Backend>(instances: &[Instance<B>]) {
    const WIDTH: usize = 700;
    let table = TestWeight::random(WeightFormat::Dense(DType::F32), [1, WIDTH, 8], 3);
    for b in with_chance(instances) {
        let logits = b.put(&zmlx_oracle::testing::random_f32(20 * WIDTH, 4.0, 1), &[20, WIDTH]);
        let table = b.load(&table);
        let settings = |i: usize| Settings::<B> {
            temperature: [0.0, 0.7][i % 2],
            seed: 0x0123_4567_89ab_cdef * (i as u64 + 1),
            ..greedy::<B>()
        };
        let rows: Vec<_> = (0..20).map(|i| (i, settings(i))).collect();
        let chosen: Vec<B::Indices> =
            b.sample(&logits, &rows).unwrap().into_iter().map(Option::unwrap).collect();
        let known = b.put_indices(&[699, 0, 17], &[3]);
        let some = |rows: &[usize]| rows.iter().map(|row| &chosen[*row]).collect::<Vec<_>>();
        let lists = [
            chosen.iter().collect(),
            some(&[7]),
            some(&[4, 5, 6]),
            some(&[0, 1, 3, 4, 19]),
            some(&[9, 8]),
            some(&[2, 2]),
            vec![&chosen[5], &known, &chosen[6]],
            vec![&known, &chosen[19]],
        ];
        for (i, lists) in lists.iter().enumerate() {
            let joined = b.join_indices(lists).unwrap();
            // The host reads after the step, as an engine does.
            let rows = b.get(&b.embed(&table, &joined).unwrap());
            let want: Vec<u32> = lists.iter().flat_map(|list| b.get_indices(list)).collect();
            assert_eq!(b.get_indices(&joined), want, "{i}");
            let by_host = b.embed(&table, &b.put_indices(&want, &[want.len()])).unwrap();
            assert_eq!(rows, b.get(&by_host), "{i}");
        }
    }
}

/// Lists that the host knows, of any length. A step refuses an id that is too large wherever it stands.
pub fn lists_are_joined<B: Backend>(instances: &[Instance<B>]) {
    let table = TestWeight::random(WeightFormat::Dense(DType::F32), [1, 9, 8], 3);
    for Instance { name, backend: b, .. } in instances {
        let list = |values: &[u32]| b.put_indices(values, &[values.len()]);
        let (one, two, last) = (list(&[4]), list(&[8, 0]), list(&[2, 2, 7]));
        for (lists, want) in [
            (&[&two][..], &[8, 0][..]),
            (&[&one, &two], &[4, 8, 0]),
            (&[&last, &one, &last], &[2, 2, 7, 4, 2, 2, 7]),
        ] {
            assert_eq!(b.get_indices(&b.join_indices(lists).unwrap()), want, "{name}");
        }
        let table = b.load(&table);
        let too_large = list(&[9]);
        for lists in [[&too_large, &one], [&one, &too_large]] {
            let ids = b.join_indices(&lists).unwrap();
            let refused = b.embed(&table, &ids).map(|_| ());
            assert!(
                matches!(refused, Err(Error::IndexOutOfRange { op: "embed", .. })),
                "{name}: {refused:?}"
            );
        }
        let refused = |lists: &[&B::Indices]| {
            let refused = b.join_indices(lists).map(|_| ());
            assert!(
                matches!(refused, Err(Error::Precondition { op: "join_indices", .. })),
                "{name}: {refused:?}"
            );
        };
        refused(&[]);
        refused(&[&one, &b.put_indices(&[1, 2], &[1, 2])]);
    }
}

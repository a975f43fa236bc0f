//! Choosing experts: plain ops, fused routers, ties.

use zmlx_core::{Backend, NoauxTc, Renormalize, SoftmaxTopK, stock};
use zmlx_oracle::ops;
use zmlx_oracle::testing::random_f32;

use crate::bounds::{Bounded, U, check_bits};
use crate::suite::{Host, Instance};

/// Numbers of experts and of experts per token: around the sizes of vectors, all experts, and those of released models.
const SIZES: [(usize, usize); 9] =
    [(1, 1), (2, 1), (7, 3), (8, 8), (9, 2), (17, 5), (64, 4), (64, 6), (128, 8)];
const BOTH: [Renormalize; 2] = [Renormalize::No, Renormalize::Yes];

/// Scores and weights are f32. Two scores that are closer than this may change places. Roundings: exponential, sum and
/// quotient.
const SCORES: f64 = 16.0 * U;

/// Checks a choice in any order: the experts are distinct; they are the wanted ones, or others whose true scores are
/// the same within rounding; and their weights are right.
fn check_choice(
    (got, weights): (&[u32], &[f32]),
    want: &ops::Routing,
    score: impl Fn(usize, u32) -> f64,
    top_k: usize,
    what: &str,
) {
    assert_eq!(got.len(), want.indices.len(), "{what}: number of experts");
    let choices: Vec<(u32, f32)> = got.iter().copied().zip(weights.iter().copied()).collect();
    let mut ranked = Vec::new();
    for (token, (row, want)) in choices.chunks(top_k).zip(want.indices.chunks(top_k)).enumerate() {
        let (mut others, wanted): (Vec<(u32, f32)>, Vec<_>) =
            row.iter().partition(|(e, _)| !want.contains(e));
        others.sort_by(|a, b| score(token, a.0).total_cmp(&score(token, b.0)));
        ranked.extend(
            want.iter().filter_map(|w| wanted.iter().find(|(e, _)| e == w).copied().or_else(|| others.pop())),
        );
    }
    let (got, weights): (Vec<u32>, Vec<f32>) = ranked.into_iter().unzip();
    assert_eq!(got.len(), want.indices.len(), "{what}: an expert twice");
    for (i, (g, w)) in got.iter().zip(&want.indices).enumerate() {
        let (token, from) = (i / top_k, i / top_k * top_k);
        let (got_score, want_score) = (score(token, *g), score(token, *w));
        let same = (got_score - want_score).abs() <= SCORES * want_score.abs();
        assert!(same, "{what}: token {token}: {got_score} chosen, {want_score} wanted");
        assert!(!got[from..i].contains(g), "{what}: token {token}: expert {g} twice");
    }
    // Twice the error of the scores, because renormalised weights are divided by sums of scores.
    Bounded::relative(want.weights.clone(), 0.0, 2.0 * SCORES).check(&weights, what);
}

/// Each row's choice in ascending order.
fn ascending(mut choices: Vec<u32>, top_k: usize) -> Vec<u32> {
    choices.chunks_exact_mut(top_k).for_each(<[u32]>::sort_unstable);
    choices
}

/// Exactly the oracle's choice, because nothing is computed.
pub fn top_k<B: Backend>(instances: &[Instance<B>]) {
    for (width, k) in SIZES {
        let x = random_f32(5 * width, 1.0, width as u64);
        let want: Vec<u32> = x.chunks_exact(width).flat_map(|row| ops::top_k(row, k)).collect();
        for Instance { name, backend: b, .. } in instances {
            let got = b.top_k(&b.put(&x, &[5, width]), k).unwrap();
            assert_eq!(
                ascending(b.get_indices(&got), k),
                ascending(want.clone(), k),
                "{name}: {k} of {width}"
            );
            let taken = b.take_last(&b.put(&x, &[5, width]), &got).unwrap();
            assert_eq!(b.shape(&taken), [5, k], "{name}: the shape of indices");
        }
    }
}

/// `route_softmax_top_k`: the experts that the oracle chooses, and their weights.
pub fn softmax_top_k<B: Backend>(instances: &[Instance<B>]) {
    for (n_experts, top_k) in SIZES {
        for renormalize in BOTH {
            let norm_topk_prob = renormalize == Renormalize::Yes;
            for n in [1, 5] {
                let logits = random_f32(n * n_experts, 2.0, (n_experts + n) as u64);
                let p: Vec<Vec<f64>> = logits.chunks_exact(n_experts).map(ops::softmax).collect();
                let sizes = ops::SoftmaxTopK { n_experts, top_k, norm_topk_prob };
                let want = ops::softmax_top_k(&logits, sizes);
                for Instance { name, backend: b, .. } in instances {
                    let settings = SoftmaxTopK { top_k, renormalize };
                    let (experts, weights) =
                        b.route_softmax_top_k(&b.put(&logits, &[n, n_experts]), &settings).unwrap();
                    assert_eq!(b.shape(&weights), [n, top_k]);
                    let got = (&b.get_indices(&experts)[..], &b.get(&weights)[..]);
                    check_choice(got, &want, |t, e| p[t][e as usize], top_k, name);
                }
            }
        }
    }
}

fn noaux(top_k: usize, n_group: usize, topk_group: usize, renormalize: Renormalize) -> NoauxTc {
    NoauxTc { top_k, n_group, topk_group, renormalize, eps: 1e-20, routed_scaling_factor: 1.8 }
}

/// Numbers of experts, and settings: without groups, with groups of two and more, with all groups and with one.
fn noaux_settings() -> Vec<(usize, NoauxTc)> {
    let mut all = Vec::new();
    for renormalize in BOTH {
        for (n_experts, top_k) in SIZES {
            all.push((n_experts, noaux(top_k, 1, 1, renormalize)));
        }
        for (n_experts, top_k, n_group, topk_group) in
            [(4, 2, 2, 1), (8, 3, 4, 2), (64, 6, 8, 3), (64, 4, 8, 8), (18, 5, 6, 1), (30, 1, 3, 2)]
        {
            all.push((n_experts, noaux(top_k, n_group, topk_group, renormalize)));
        }
    }
    all
}

/// `route_noaux_tc`: the experts that the oracle chooses, and their weights.
pub fn noaux_tc<B: Backend>(instances: &[Instance<B>]) {
    for (n_experts, settings) in noaux_settings() {
        for n in [1, 4] {
            let logits = random_f32(n * n_experts, 2.0, (n_experts * 10 + n) as u64);
            let bias = random_f32(n_experts, 0.1, 3);
            let NoauxTc { top_k, n_group, topk_group, .. } = settings;
            let sizes = ops::NoauxTc {
                n_experts,
                top_k,
                n_group,
                topk_group,
                norm_topk_prob: settings.renormalize == Renormalize::Yes,
                eps: f64::from(settings.eps),
                routed_scaling_factor: f64::from(settings.routed_scaling_factor),
            };
            let want = ops::noaux_tc(&logits, &bias, sizes);
            let score = |t: usize, e: u32| {
                ops::sigmoid(f64::from(logits[t * n_experts + e as usize])) + f64::from(bias[e as usize])
            };
            for Instance { name, backend: b, .. } in instances {
                let (experts, weights) = b
                    .route_noaux_tc(&b.put(&logits, &[n, n_experts]), &b.load_vector(&bias), &settings)
                    .unwrap();
                assert_eq!(b.shape(&weights), [n, top_k]);
                let what = format!("{name}: {n_experts} experts, {settings:?}");
                // Outside of the kept groups every score is 0, and the lower index wins.
                let got = b.get_indices(&experts);
                if topk_group * (n_experts / n_group) < top_k {
                    let want = ascending(want.indices.clone(), top_k);
                    assert_eq!(ascending(got.clone(), top_k), want, "{what}");
                }
                let got = (&got[..], &b.get(&weights)[..]);
                check_choice(got, &want, score, top_k, &what);
            }
        }
    }
}

/// Both the weights and the choice, bit for bit.
pub fn fused_routers_equal_compositions<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in instances {
        for (n_experts, top_k) in SIZES {
            let logits = b.put(&random_f32(7 * n_experts, 2.0, 1), &[7, n_experts]);
            for renormalize in BOTH {
                let settings = SoftmaxTopK { top_k, renormalize };
                let (experts, weights) = b.route_softmax_top_k(&logits, &settings).unwrap();
                let (stock_experts, stock_weights) =
                    stock::route_softmax_top_k(b, &logits, &settings).unwrap();
                assert_eq!(b.get_indices(&experts), b.get_indices(&stock_experts), "{name}");
                check_bits(&b.get(&weights), &b.get(&stock_weights), name);
            }
        }
        for (n_experts, settings) in noaux_settings() {
            let logits = b.put(&random_f32(7 * n_experts, 2.0, 2), &[7, n_experts]);
            let bias = b.load_vector(&random_f32(n_experts, 0.1, 3));
            let (experts, weights) = b.route_noaux_tc(&logits, &bias, &settings).unwrap();
            let (stock_experts, stock_weights) = stock::route_noaux_tc(b, &logits, &bias, &settings).unwrap();
            assert_eq!(b.get_indices(&experts), b.get_indices(&stock_experts), "{name}: {settings:?}");
            check_bits(&b.get(&weights), &b.get(&stock_weights), format_args!("{name}: {settings:?}"));
        }
    }
}

/// Equal scores, NaN, infinities and signed zeros.
pub fn ties_go_to_the_lower_index<B: Backend>(instances: &[Instance<B>]) {
    const INF: f32 = f32::INFINITY;
    for Instance { name, backend: b, .. } in instances {
        let top =
            |row: &[f32], k| ascending(b.get_indices(&b.top_k(&b.put(row, &[1, row.len()]), k).unwrap()), k);
        assert_eq!(top(&[2.0, 5.0, 5.0, 1.0, 5.0], 3), [1, 2, 4], "{name}");
        assert_eq!(top(&[3.0; 20], 7), [0, 1, 2, 3, 4, 5, 6], "{name}");
        assert_eq!(top(&[f32::NAN, 1.0, f32::NAN, 2.0], 2), [1, 3], "{name}: NaN counts as smallest");
        assert_eq!(top(&[f32::NAN, 1.0, f32::NAN, 2.0], 3), [0, 1, 3], "{name}");
        assert_eq!(top(&[-INF, f32::NAN, 0.0, INF, -INF], 3), [0, 2, 3], "{name}");
        assert_eq!(top(&[-INF, f32::NAN, 0.0, INF, -INF], 4), [0, 2, 3, 4], "{name}");
        assert_eq!(top(&[-0.0, 0.0, -1.0], 1), [0], "{name}: the zeros are equal");

        // Eight levels of logits, each several times. Equal logits have equal probabilities.
        let logits: Vec<f32> = (0..64u32).map(|i| (i * 37 % 8) as f32 * 0.5).collect();
        let want = ascending(ops::top_k(&logits, 20), 20);
        let t = b.put(&logits, &[1, 64]);
        let settings = SoftmaxTopK { top_k: 20, renormalize: Renormalize::Yes };
        let (experts, _) = b.route_softmax_top_k(&t, &settings).unwrap();
        assert_eq!(ascending(b.get_indices(&experts), 20), want, "{name}");
        let bias = b.load_vector(&[0.25; 64]);
        let (experts, _) = b.route_noaux_tc(&t, &bias, &noaux(20, 1, 1, Renormalize::Yes)).unwrap();
        assert_eq!(ascending(b.get_indices(&experts), 20), want, "{name}");
        // All groups are equal, so the first ones stay.
        let (experts, _) =
            b.route_noaux_tc(&b.put(&[1.0; 64], &[1, 64]), &bias, &noaux(16, 8, 2, Renormalize::No)).unwrap();
        let got = ascending(b.get_indices(&experts), 16);
        assert_eq!(got, (0..16).collect::<Vec<u32>>(), "{name}");
    }
}

/// `keep_top_groups`, calculated by hand and on random scores of either sign.
pub fn groups<B: Backend>(instances: &[Instance<B>]) {
    for Instance { name, backend: b, .. } in instances {
        let keep = |x: &[f32], n_group, topk_group| {
            b.get(&b.keep_top_groups(&b.put(x, &[1, x.len()]), n_group, topk_group).unwrap())
        };
        // The sums of the two best are 9, 10, 9 and 2. Of the nines the first stays.
        let x = [9.0, 0.0, 5.0, 5.0, 6.0, 3.0, 1.0, 1.0];
        check_bits(&keep(&x, 4, 2), &[9.0, 0.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0], name);
        check_bits(&keep(&x, 4, 4), &x, name);
        check_bits(&keep(&x, 1, 1), &x, name);
        // The third score of a group does not count. Negative scores outside become 0, which is larger than those that
        // stay.
        check_bits(
            &keep(&[-1.0, -2.0, -2.0, -1.5, -1.4, -9.0], 2, 1),
            &[0.0, 0.0, 0.0, -1.5, -1.4, -9.0],
            name,
        );

        let x = random_f32(5 * 48, 1.0, 8);
        for (n_group, topk_group) in [(2, 1), (6, 4), (24, 5), (8, 7)] {
            let size = 48 / n_group;
            let row = |row: &[f32]| {
                // The sums are in f32, because they decide the choice.
                let sums: Vec<f32> = row
                    .chunks_exact(size)
                    .map(|g| ops::top_k(g, 2).iter().map(|i| g[*i as usize]).sum())
                    .collect();
                let kept = ops::top_k(&sums, topk_group);
                let keep = |i: usize| kept.contains(&((i / size) as u32));
                row.iter().enumerate().map(|(i, v)| if keep(i) { *v } else { 0.0 }).collect::<Vec<_>>()
            };
            let want: Vec<f32> = x.chunks_exact(48).flat_map(row).collect();
            let got = b.keep_top_groups(&b.put(&x, &[5, 48]), n_group, topk_group).unwrap();
            check_bits(&b.get(&got), &want, format_args!("{name}: {topk_group} of {n_group}"));
        }
    }
}

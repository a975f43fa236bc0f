//! `gather_linear`: chosen experts, for each token and for each slot.

use zmlx_core::{Backend, GateUp};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds;
use crate::cases::{self, EXPERTS, Experts};
use crate::inputs::{Place, Raw, TestWeight};
use crate::suite::{Host, Instance};

/// Compares both shapes of x with the oracle.
fn check<B: Backend>(i: &Instance<B>, w: &TestWeight, experts: &[u32], top_k: usize, seed: u64) {
    let b = &i.backend;
    let n = experts.len() / top_k;
    let (weight, chosen) = (b.load(w), b.put_indices(experts, &[n, top_k]));
    for x_shape in [vec![n, w.n_in], vec![n, top_k, w.n_in]] {
        let x = random_f32(x_shape.iter().product(), 1.0, seed);
        let y = b.gather_linear(&b.put(&x, &x_shape), &weight, &chosen).unwrap();
        assert_eq!(b.shape(&y), [n, top_k, w.n_out]);
        let what =
            format_args!("{}: x {x_shape:?}, {} rows, {}", i.name, w.n_out, cases::name(w.host.format()));
        bounds::gather(&x, w, experts, top_k).on(i).check(&b.get(&y), what);
    }
}

/// Every format with two of the cases, in turn.
pub fn per_token_and_per_slot<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        for (f, format) in cases::formats_of(i.grid).into_iter().enumerate() {
            for case in [EXPERTS[f % 8], EXPERTS[(f * 3 + 5) % 8]] {
                let Experts { n_tokens, top_k, n_experts, n_out, n_groups } = case;
                let n_in = n_groups * cases::group_size(format);
                let w = TestWeight::random(format, [n_experts, n_out, n_in], f as u64);
                let experts = random_experts(n_tokens, top_k, n_experts, 90 + f as u64);
                check(i, &w, &experts, top_k, 30 + f as u64);
            }
        }
    }
}

/// Routers never choose an expert twice for a token, but the op must still give the right results for that.
pub fn same_expert_twice<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate().step_by(5) {
        let n_in = 2 * cases::group_size(format);
        let w = TestWeight::random(format, [3, 13, n_in], f as u64);
        for i in instances {
            check(i, &w, &[1, 1], 2, 1);
            check(i, &w, &[2, 0, 2, 0, 0, 0, 1, 2, 1], 3, 2);
            check(i, &w, &[2; 12], 4, 3); // 12 rows of one expert from three tokens
        }
    }
}

/// Experts that no token chose hold NaN, so reading them shows in the results.
pub fn unchosen_experts_are_not_read<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let n_in = 2 * cases::group_size(format);
        let bank = |seed| {
            let mut raw = Raw::random(format, [6, 5, n_in], seed);
            [0, 2, 3, 5].into_iter().for_each(|mat| raw.spoil(mat));
            raw.at(Place::Odd)
        };
        let (gate, up) = (bank(f as u64), bank(100 + f as u64));
        for n in [1, 3, 9] {
            let experts: Vec<u32> = (0..n).flat_map(|t| if t % 2 == 0 { [1, 4] } else { [4, 1] }).collect();
            let x = random_f32(n * n_in, 1.0, 200 + f as u64);
            let want = bounds::swiglu(
                &bounds::gather(&x, &gate, &experts, 2),
                &bounds::gather(&x, &up, &experts, 2),
            );
            for i in instances.iter().filter(|i| i.is_full() || f % 3 == 0) {
                check(i, &gate, &experts, 2, 7);
                let b = &i.backend;
                let (gate_weight, up_weight) = (b.load(&gate), b.load(&up));
                let weights = GateUp::swiglu(&gate_weight, &up_weight);
                let chosen = b.put_indices(&experts, &[n, 2]);
                let y = b.gather_qmm_swiglu(&b.put(&x, &[n, n_in]), weights, &chosen).unwrap();
                want.on(i).check(&b.get(&y), format_args!("{}: swiglu, {}", i.name, cases::name(format)));
            }
        }
    }
}

/// All tokens at one expert: the first, the middle and the last of the bank; just below and above the limit between two
/// paths.
pub fn one_expert_takes_all_tokens<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate().step_by(4) {
        let w = TestWeight::random(format, [5, 12, cases::group_size(format)], f as u64);
        for n in [1, 7, 8, 9, 20] {
            for i in instances.iter().filter(|i| i.is_full() || n == 9) {
                check(i, &w, &vec![[0, 2, 4][f % 3]; n], 1, n as u64);
            }
        }
    }
}

/// A part of the experts: their indices among themselves, and nothing of the others.
pub fn held_experts<B: Backend>(instances: &[Instance<B>]) {
    for i in instances {
        let b = &i.backend;
        let (experts, weights) = ([0, 5, 2, 3, 7, 4], [0.5, 0.25, 1.0, 2.0, 3.0, 4.0]);
        let (chosen, given) = (b.put_indices(&experts, &[3, 2]), b.put(&weights, &[3, 2]));
        for (held, want, want_weights) in [
            (2..5, [0, 0, 0, 1, 0, 2], [0.0, 0.0, 1.0, 2.0, 0.0, 4.0]),
            (0..8, experts, weights),
            (7..8, [0; 6], [0.0, 0.0, 0.0, 0.0, 3.0, 0.0]),
        ] {
            let (got, got_weights) = b.held_experts(&chosen, &given, held.clone()).unwrap();
            assert_eq!(b.get_indices(&got), want, "{} {held:?}", i.name);
            assert_eq!(b.get(&got_weights), want_weights, "{} {held:?}", i.name);
            assert_eq!(b.shape(&got_weights), [3, 2], "{} {held:?}", i.name);
        }
        assert!(b.held_experts(&chosen, &given, 3..3).is_err(), "{}", i.name);
        assert!(b.held_experts(&chosen, &b.put(&weights, &[6]), 0..8).is_err(), "{}", i.name);
    }
}

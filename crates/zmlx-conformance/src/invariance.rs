//! The other rows of a batch do not change a row: its bits are the same if one kernel path computes both, and otherwise
//! it is the same within rounding.

use zmlx_core::{Backend, Down, GateUp};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds::{self, Bounded, check_bits};
use crate::cases;
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance, running};

/// Compares the results of a batch with the rows computed alone.
fn compare<B>(i: &Instance<B>, n_rows: usize, together: &[f32], alone: &[f32], within: &Bounded) {
    let what = format_args!("{}: {n_rows} rows together", i.name);
    if n_rows < i.same_path_below {
        check_bits(together, alone, what);
    } else {
        within.around(alone).on(i).check(together, what);
    }
}

/// Rows of a dense product, in batches of every size.
pub fn linear<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let w = TestWeight::random(format, [1, 13, 256], f as u64);
        let x = random_f32(64 * 256, 1.0, 1);
        let want = bounds::linear(&x, &w);
        for i in instances.iter().filter(|i| i.is_full() || f % 4 == 0) {
            let b = &i.backend;
            let weight = b.load(&w);
            let run = |x: &[f32]| b.get(&b.linear(&b.put(x, &[x.len() / 256, 256]), &weight).unwrap());
            let alone: Vec<f32> = x.chunks_exact(256).flat_map(run).collect();
            for n in cases::N_TOKENS {
                compare(i, n, &run(&x[..n * 256]), &alone[..n * 13], &want.first(n * 13));
            }
        }
    }
}

/// Tokens through both parts of a block of experts.
pub fn experts<B: Backend>(instances: &[Instance<B>]) {
    let (hidden, inner, n_experts, top_k) = (128, 128, 6, 3);
    for (f, format) in cases::formats().into_iter().enumerate().step_by(3) {
        let instances = running(instances, f % 4 == 0);
        if instances.is_empty() {
            continue;
        }
        let bank = |seed| TestWeight::random(format, [n_experts, inner, hidden], seed + f as u64);
        let (gate, up, down) = (bank(1), bank(2), bank(3));
        let x = random_f32(40 * hidden, 1.0, 4);
        let acts = random_f32(40 * top_k * inner, 1.0, 7);
        let chosen = random_experts(40, top_k, n_experts, 5);
        let weights = random_f32(40 * top_k, 0.5, 6);
        let of = |w: &TestWeight| bounds::gather(&x, w, &chosen, top_k);
        let want_acts = bounds::swiglu(&of(&gate), &of(&up));
        let want_sums = bounds::combine(&bounds::gather(&acts, &down, &chosen, top_k), &weights, top_k);
        for i in instances {
            let b = &i.backend;
            let (gate, up, down) = (b.load(&gate), b.load(&up), b.load(&down));
            let run = |from: usize, n: usize| {
                let slots = from * top_k..(from + n) * top_k;
                let experts = b.put_indices(&chosen[slots.clone()], &[n, top_k]);
                let x = b.put(&x[from * hidden..][..n * hidden], &[n, hidden]);
                let y = b.gather_qmm_swiglu(&x, GateUp::swiglu(&gate, &up), &experts).unwrap();
                let acts = b.put(&acts[slots.start * inner..slots.end * inner], &[n, top_k, inner]);
                let weights = b.put(&weights[slots], &[n, top_k]);
                (
                    b.get(&y),
                    b.get(&b.gather_qmm_combine(&acts, Down::plain(&down), &experts, &weights).unwrap()),
                )
            };
            let alone: Vec<_> = (0..40).map(|t| run(t, 1)).collect();
            for n in [2, 5, 7, 40] {
                let (acts, sums) = run(0, n);
                let rows = |part: usize| {
                    alone[..n].iter().flat_map(|a| [&a.0, &a.1][part]).copied().collect::<Vec<f32>>()
                };
                compare(i, n, &acts, &rows(0), &want_acts.first(acts.len()));
                compare(i, n, &sums, &rows(1), &want_sums.first(sums.len()));
            }
        }
    }
}

/// A token's result does not depend on how many other tokens its expert gets, across the limit between two paths.
pub fn rows_of_one_expert<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate().step_by(5) {
        let w = TestWeight::random(format, [3, 5, 128], f as u64);
        let x = random_f32(12 * 128, 1.0, 1);
        for i in instances {
            let b = &i.backend;
            let weight = b.load(&w);
            let run = |x: &[f32]| {
                let n = x.len() / 128;
                let experts = b.put_indices(&vec![1; n], &[n, 1]);
                b.get(&b.gather_linear(&b.put(x, &[n, 128]), &weight, &experts).unwrap())
            };
            let alone: Vec<f32> = x.chunks_exact(128).flat_map(run).collect();
            let within = bounds::gather(&x, &w, &[1; 12], 1);
            for n in [6, 7, 8, 9, 12] {
                compare(i, n, &run(&x[..n * 128]), &alone[..n * 5], &within.first(n * 5));
            }
        }
    }
}

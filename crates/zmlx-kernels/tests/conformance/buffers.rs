//! Where buffers end: nothing is read behind a weight, and nothing that an op returns was left unwritten.

use zmlx_kernels::{Backend, GateUp};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds::{self, Bounded};
use crate::cases;
use crate::inputs::{Place, Raw, at_odd_address, at_page_end};
use crate::suite::{Host, Instance};

/// Words, scales and biases each end where reading on is a fault: single products, tiles, and embedding.
pub fn ends_at_a_page_end<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        for (n_groups, n_out) in [(1, 1), (2, 4), (3, 5), (5, 13)] {
            let shape = [1, n_out, n_groups * cases::group_size(format)];
            let w = Raw::random(format, shape, f as u64).at(Place::PageEnd);
            let x = random_f32(9 * w.n_in, 1.0, 1);
            let want = bounds::linear(&x, &w);
            for i @ Instance { name, backend: b, .. } in instances {
                let weight = b.load(&w);
                for n in [1, 2, 4, 9] {
                    let y = b.linear(&b.put(&x[..n * w.n_in], &[n, w.n_in]), &weight).unwrap();
                    let what = format_args!("{name}: {}", cases::name(format));
                    want.first(n * n_out).on(i).check(&b.get(&y), what);
                }
                let last = b.put_indices(&[n_out as u32 - 1], &[1]);
                let row = b.get(&b.embed(&weight, &last).unwrap());
                assert!(row.iter().all(|v| v.is_finite()), "{name}");
            }
        }
    }
}

/// The last expert of a bank ends there, in the fused ops.
pub fn experts_end_at_a_page_end<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let n_in = (1 + f % 3) * cases::group_size(format);
        let bank = |seed| Raw::random(format, [3, 5, n_in], seed).at(Place::PageEnd);
        let (gate, up) = (bank(f as u64), bank(100 + f as u64));
        for n in [1, 13] {
            let x = random_f32(n * n_in, 1.0, 1);
            let experts = random_experts(n, 3, 3, 2);
            let of = |w| bounds::gather(&x, w, &experts, 3);
            let want = bounds::swiglu(&of(&gate), &of(&up));
            for i @ Instance { name, backend: b, .. } in instances {
                let weights = GateUp { gate: &b.load(&gate), up: &b.load(&up) };
                let experts = b.put_indices(&experts, &[n, 3]);
                let y = b.gather_qmm_swiglu(&b.put(&x, &[n, n_in]), weights, &experts).unwrap();
                want.on(i).check(&b.get(&y), format_args!("{name}: {}", cases::name(format)));
            }
        }
    }
}

#[test]
fn the_places_are_what_they_say() {
    for n in [1, 2, 63, 4096, 70_000] {
        let bytes: Vec<u8> = (0..n).map(|i| i as u8).collect();
        let odd = at_odd_address(&bytes);
        assert!(!odd.as_ptr().addr().is_multiple_of(2) && odd == bytes);
        let end = at_page_end(&bytes);
        assert!((end.as_ptr().addr() + n).is_multiple_of(4096) && end == bytes);
    }
}

/// Without debug assertions the pool does not fill buffers with NaN, and the suite would not see every value that an
/// op forgot to write. The profiles that tests run in have them, unless someone asks for another.
#[test]
fn buffers_are_filled_with_nan_before_an_op_writes_them() {
    if !cfg!(debug_assertions) {
        eprintln!("note: no debug assertions in this build: outputs are not filled with NaN beforehand");
    }
    // What the filling relies on: no comparison lets NaN pass, whatever the bound.
    for bound in [0.0, 1e30, f64::INFINITY] {
        let passes = |got: f32| {
            let check = || Bounded::uniform(vec![1.0], bound).check(&[got], "on purpose");
            std::panic::catch_unwind(check).is_ok()
        };
        assert!(passes(1.0) && !passes(f32::NAN));
    }
}

//! The ends of buffers: nothing is read after the end of a weight, and every value that an op returns was written.

use zmlx_core::{Backend, GateUp};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds;
use crate::cases;
use crate::inputs::{Place, Raw};
use crate::suite::{Host, Instance};

/// Words, scales and biases each end where reading further is a fault: single products, tiles, and embedding.
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
                let (gate_weight, up_weight) = (b.load(&gate), b.load(&up));
                let weights = GateUp::swiglu(&gate_weight, &up_weight);
                let experts = b.put_indices(&experts, &[n, 3]);
                let y = b.gather_qmm_swiglu(&b.put(&x, &[n, n_in]), weights, &experts).unwrap();
                want.on(i).check(&b.get(&y), format_args!("{name}: {}", cases::name(format)));
            }
        }
    }
}

//! `embed` and `concat_rows`.

use zmlx_core::{Backend, Down, GateUp, WeightFormat};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds::{self, Bounded, U, check_bits};
use crate::cases;
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

/// Twice the rounding error of a value of 0.5. `|scale·q|` and `|w|` of the random weights are below 0.5.
const DEQUANTISED: f64 = U;

fn rows(w: &TestWeight, ids: &[u32]) -> Bounded {
    let row = |id: &u32| w.values[*id as usize * w.n_in..][..w.n_in].to_vec();
    Bounded::uniform(ids.iter().flat_map(row).collect(), DEQUANTISED)
}

/// Rows of a table in every format: the first, the last, and repeated ones.
pub fn embed<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let n_in = if matches!(format, WeightFormat::Dense(_)) { 33 } else { 3 * cases::group_size(format) };
        let table = TestWeight::random(format, [1, 7, n_in], f as u64);
        for ids in [vec![0], vec![6], vec![3, 0, 6, 3, 3]] {
            for Instance { name, backend: b, .. } in instances {
                let y = b.embed(&b.load(&table), &b.put_indices(&ids, &[ids.len()])).unwrap();
                assert_eq!(b.shape(&y), [ids.len(), n_in]);
                rows(&table, &ids).check(&b.get(&y), format_args!("{name}: {}", cases::name(format)));
            }
        }
    }
}

/// Joins the parts' outputs, row by row of x.
fn side_by_side(parts: &[Bounded], n_rows: usize) -> Bounded {
    let take = |of: fn(&Bounded) -> &Vec<f64>| {
        let row = |r: usize| {
            parts.iter().flat_map(move |p| {
                let width = of(p).len() / n_rows;
                of(p)[r * width..(r + 1) * width].iter().copied()
            })
        };
        (0..n_rows).flat_map(row).collect()
    };
    let formats = parts.iter().flat_map(|p| p.formats.clone()).collect();
    let per_token = parts.iter().map(|p| p.per_token).sum();
    Bounded { want: take(|p| &p.want), allowed: take(|p| &p.allowed), formats, per_token }
}

fn check_concat<B: Backend>(instances: &[Instance<B>], parts: &[TestWeight]) {
    let (n_in, n_out) = (parts[0].n_in, parts.iter().map(|p| p.n_out).sum::<usize>());
    for n in [1, 4, 9] {
        let x = random_f32(n * n_in, 1.0, n_out as u64);
        let want = side_by_side(&parts.iter().map(|p| bounds::linear(&x, p)).collect::<Vec<_>>(), n);
        for i @ Instance { name, backend: b, .. } in instances {
            let loaded: Vec<_> = parts.iter().map(|p| b.load(p)).collect();
            let whole = b.concat_rows(&loaded.iter().collect::<Vec<_>>()).unwrap();
            let y = b.linear(&b.put(&x, &[n, n_in]), &whole).unwrap();
            assert_eq!(b.shape(&y), [n, n_out]);
            let formats: Vec<_> = parts.iter().map(|p| cases::name(p.host.format())).collect();
            want.on(i).check(&b.get(&y), format_args!("{name}: {n} × {n_in} to {n_out}, {formats:?}"));
            // Joined, the whole and each part give what they gave before.
            let one_by_one = |parts: &[B::Weight]| -> Vec<_> {
                parts.iter().map(|w| b.get(&b.linear(&b.put(&x, &[n, n_in]), w).unwrap())).collect()
            };
            let before = one_by_one(&loaded);
            let (joined, loaded) = b.join_rows(loaded).unwrap();
            let of_joined = b.linear(&b.put(&x, &[n, n_in]), &joined).unwrap();
            want.on(i).check(&b.get(&of_joined), format_args!("{name}: {n} × {n_in} joined, {formats:?}"));
            for (got, want) in one_by_one(&loaded).iter().zip(&before) {
                check_bits(got, want, name);
            }
            // In two parts, wherever the cut is.
            for first in [parts[0].n_out, 1].into_iter().filter(|first| *first < n_out) {
                let widths = [first, n_out - first];
                let cut = b.linear_parts(&b.put(&x, &[n, n_in]), &joined, widths).unwrap();
                assert_eq!(cut.each_ref().map(|y| b.shape(y)), widths.map(|width| vec![n, width]));
                let cut = cut.map(|y| b.get(&y));
                let rows = (0..n).flat_map(|r| {
                    [0, 1].into_iter().flat_map(move |p| (0..widths[p]).map(move |c| (p, r * widths[p] + c)))
                });
                let all: Vec<f32> = rows.map(|(p, at)| cut[p][at]).collect();
                want.on(i).check(&all, format_args!("{name}: {n} × {n_in} to {widths:?}, {formats:?}"));
            }
        }
    }
}

/// One, two and three parts of one format, with row counts that are not multiples of a vector.
pub fn concat_rows_of_one_format<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let n_outs: &[usize] = [&[5][..], &[4, 12], &[1, 13, 3]][f % 3];
        let part = |(i, n_out): (usize, &usize)| {
            TestWeight::random(format, [1, *n_out, 2 * cases::group_size(format)], (10 * f + i) as u64)
        };
        check_concat(instances, &n_outs.iter().enumerate().map(part).collect::<Vec<_>>());
    }
}

/// Parts with different formats, so the activations have to be prepared again for each.
pub fn concat_rows_of_different_formats<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    for f in 0..formats.len() {
        let at = |i: usize| formats[(f + i) % formats.len()];
        let parts = [(at(0), 3), (at(17), 1), (at(0), 12), (at(31), 5)];
        let part = |(i, (format, n_out))| TestWeight::random(format, [1, n_out, 256], (f * 10 + i) as u64);
        check_concat(instances, &parts.into_iter().enumerate().map(part).collect::<Vec<_>>());
    }
}

/// Banks, and a concatenation of concatenations.
pub fn concat_rows_of_banks<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    for f in (0..formats.len()).step_by(3) {
        let part = |i: usize, n_out| {
            TestWeight::random(formats[(f + 11 * i) % formats.len()], [3, n_out, 128], (f + i) as u64)
        };
        let parts = [part(0, 5), part(1, 4), part(2, 1)];
        for n in [1, 12] {
            let x = random_f32(n * 128, 1.0, f as u64);
            let experts = random_experts(n, 2, 3, f as u64);
            let want: Vec<_> = parts.iter().map(|p| bounds::gather(&x, p, &experts, 2)).collect();
            let want = side_by_side(&want, 2 * n);
            for i @ Instance { name, backend: b, .. } in instances {
                let [p, q, r] = [0, 1, 2].map(|i| b.load(&parts[i]));
                let whole = b.concat_rows(&[&b.concat_rows(&[&p, &q]).unwrap(), &r]).unwrap();
                let (x, experts) = (b.put(&x, &[n, 128]), b.put_indices(&experts, &[n, 2]));
                let y = b.gather_linear(&x, &whole, &experts).unwrap();
                assert_eq!(b.shape(&y), [n, 2, 10]);
                want.on(i).check(&b.get(&y), name);
            }
        }
    }
}

/// Fused ops over concatenations: split alike in gate and up, split differently, and as the down projection.
pub fn concat_rows_in_fused_ops<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::formats();
    let part = |f: usize, n_out: usize, seed: u64| {
        TestWeight::random(formats[f % formats.len()], [3, n_out, 128], seed)
    };
    for f in (0..formats.len()).step_by(5) {
        let (gate, alike) = ([part(f, 5, 1), part(f + 9, 8, 2)], [part(f, 5, 3), part(f + 9, 8, 4)]);
        let otherwise = [part(f + 2, 6, 5), part(f, 7, 6)];
        for n in [1, 14] {
            let x = random_f32(n * 128, 1.0, f as u64);
            let experts = random_experts(n, 2, 3, f as u64);
            let weights = random_f32(2 * n, 0.5, 9);
            let of = |parts: &[TestWeight; 2]| {
                side_by_side(&parts.each_ref().map(|p| bounds::gather(&x, p, &experts, 2)), 2 * n)
            };
            for i @ Instance { name, backend: b, .. } in instances {
                let whole = |parts: &[TestWeight; 2]| {
                    b.concat_rows(&[&b.load(&parts[0]), &b.load(&parts[1])]).unwrap()
                };
                let (x_t, chosen) = (b.put(&x, &[n, 128]), b.put_indices(&experts, &[n, 2]));
                for up in [&alike, &otherwise] {
                    let (gate_weight, up_weight) = (whole(&gate), whole(up));
                    let weights = GateUp::swiglu(&gate_weight, &up_weight);
                    let y = b.gather_qmm_swiglu(&x_t, weights, &chosen).unwrap();
                    bounds::swiglu(&of(&gate), &of(up)).on(i).check(&b.get(&y), name);
                }
                let twice: Vec<f32> = x.chunks_exact(128).flat_map(|r| [r, r].concat()).collect();
                let twice = b.put(&twice, &[n, 2, 128]);
                let y = b
                    .gather_qmm_combine(
                        &twice,
                        Down::plain(&whole(&gate)),
                        &chosen,
                        &b.put(&weights, &[n, 2]),
                    )
                    .unwrap();
                bounds::combine(&of(&gate), &weights, 2).on(i).check(&b.get(&y), name);
            }
        }
    }
}

/// A table in two parts, with rows from both parts near the border.
pub fn embed_from_a_concatenation<B: Backend>(instances: &[Instance<B>]) {
    let formats = cases::quantised();
    let (a, z) =
        (TestWeight::random(formats[0], [1, 3, 128], 1), TestWeight::random(formats[56], [1, 2, 128], 2));
    for Instance { name, backend: b, .. } in instances {
        let table = b.concat_rows(&[&b.load(&a), &b.load(&z)]).unwrap();
        let y = b.get(&b.embed(&table, &b.put_indices(&[2, 3, 4, 0], &[4])).unwrap());
        let of = |w: &TestWeight, ids: &[u32]| {
            b.get(&b.embed(&b.load(w), &b.put_indices(ids, &[ids.len()])).unwrap())
        };
        check_bits(&y, &[of(&a, &[2]), of(&z, &[0, 1]), of(&a, &[0])].concat(), name);
    }
}

//! `linear` and `head_linear` in every format and around every size limit.

use zmlx_core::Backend;
use zmlx_oracle::testing::random_f32;

use crate::bounds;
use crate::cases::{self, N_GROUPS, N_OUT, N_TOKENS, ODD_WIDTHS, REAL_WIDTHS};
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance};

/// One weight with each of the batches, which are the first rows of the same x.
fn check<B: Backend>(instances: &[&Instance<B>], w: &TestWeight, n_tokens: &[usize], seed: u64) {
    let most = n_tokens.iter().copied().max().unwrap_or(0);
    let x = random_f32(most * w.n_in, 1.0, seed);
    let want = bounds::linear(&x, w);
    for i in instances {
        let weight = i.backend.load(w);
        for &n in n_tokens {
            let x = i.backend.put(&x[..n * w.n_in], &[n, w.n_in]);
            let y = i.backend.linear(&x, &weight).unwrap();
            assert_eq!(i.backend.shape(&y), [n, w.n_out]);
            let what = format_args!(
                "{}: {n} × {} to {} in {}",
                i.name,
                w.n_in,
                w.n_out,
                cases::name(w.host.format())
            );
            want.first(n * w.n_out).on(i).check(&i.backend.get(&y), what);
        }
    }
}

/// Every format × every number of rows × every number of groups × every batch.
pub fn all_formats<B: Backend>(instances: &[Instance<B>]) {
    let full: Vec<_> = instances.iter().filter(|i| i.is_full()).collect();
    let all: Vec<_> = instances.iter().collect();
    for (f, format) in cases::quantised().into_iter().enumerate() {
        for (g, n_groups) in N_GROUPS.into_iter().enumerate() {
            for (o, n_out) in N_OUT.into_iter().enumerate() {
                let seed = (f * 1000 + g * 100 + o) as u64;
                let w = TestWeight::random(format, [1, n_out, n_groups * cases::group_size(format)], seed);
                check(&full, &w, &N_TOKENS, seed + 1);
                if (f + g + o) % 4 == 0 {
                    check(&all, &w, &[1, 3, 9], seed + 2);
                }
            }
        }
    }
}

/// One below, at and above every number at which a backend changes its path: rows of activations that dots compute and
/// that tiles take at once, and rows of a weight whose results are kept together. The width is that of a released
/// model, with whole tiles.
pub fn around_limits<B: Backend>(instances: &[Instance<B>]) {
    const AROUND: [usize; 13] = [4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 127, 128, 129];
    let full: Vec<_> = instances.iter().filter(|i| i.is_full()).collect();
    let all: Vec<_> = instances.iter().collect();
    for (f, format) in cases::formats().into_iter().enumerate().step_by(5) {
        let n_in = 8 * cases::group_size(format);
        for n_out in [255, 256, 257] {
            check(&full, &TestWeight::random(format, [1, n_out, n_in], f as u64), &AROUND, 60 + f as u64);
        }
        let w = TestWeight::random(format, [1, 33, REAL_WIDTHS[f % 3]], 5 + f as u64);
        check(&all, &w, &[12, 13, 128, 129], 70 + f as u64);
    }
}

/// Rows long enough for every unrolled loop and cache block.
pub fn real_widths<B: Backend>(instances: &[Instance<B>]) {
    let all: Vec<_> = instances.iter().collect();
    for (f, format) in cases::formats().into_iter().enumerate() {
        let n_in = REAL_WIDTHS[f % 3];
        check(&all, &TestWeight::random(format, [1, 13, n_in], f as u64), &[1, 4, 9], 7 + f as u64);
    }
}

/// Dense rows of odd widths.
pub fn dense_of_odd_widths<B: Backend>(instances: &[Instance<B>]) {
    let all: Vec<_> = instances.iter().collect();
    for format in cases::dense() {
        for n_in in ODD_WIDTHS {
            for n_out in N_OUT {
                let seed = (n_in * 100 + n_out) as u64;
                check(&all, &TestWeight::random(format, [1, n_out, n_in], seed), &N_TOKENS, seed + 1);
            }
        }
    }
}

/// One, three and four dimensions. All but the last are rows.
pub fn leading_dimensions<B: Backend>(instances: &[Instance<B>]) {
    let w = TestWeight::random(cases::quantised()[4], [1, 5, 64], 1);
    let x = random_f32(6 * 64, 1.0, 2);
    let want = bounds::linear(&x, &w);
    for i @ Instance { name, backend: b, .. } in instances {
        for shape in [vec![2, 3, 64], vec![1, 3, 2, 64], vec![64]] {
            let n_rows: usize = shape[..shape.len() - 1].iter().product();
            let y = b.linear(&b.put(&x[..n_rows * 64], &shape), &b.load(&w)).unwrap();
            let got_shape = b.shape(&y);
            assert_eq!(got_shape[..shape.len() - 1], shape[..shape.len() - 1], "{name}");
            assert_eq!(got_shape.last(), Some(&5), "{name}");
            want.first(n_rows * 5).on(i).check(&b.get(&y), name);
        }
    }
}

/// `head_linear`: each row is multiplied by the matrix of its head.
pub fn one_matrix_per_head<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let (n_heads, n_out) = ([1, 3, 4][f % 3], N_OUT[f % N_OUT.len()]);
        let n_in = (1 + f % 2) * cases::group_size(format);
        let w = TestWeight::random(format, [n_heads, n_out, n_in], f as u64);
        for n in [1, 2, 9] {
            let x = random_f32(n * n_heads * n_in, 1.0, 50 + f as u64);
            let want = bounds::head_linear(&x, &w);
            for i @ Instance { name, backend: b, .. } in instances {
                let y = b.head_linear(&b.put(&x, &[n, n_heads, n_in]), &b.load(&w)).unwrap();
                assert_eq!(b.shape(&y), [n, n_heads, n_out]);
                want.on(i)
                    .check(&b.get(&y), format_args!("{name}: {n_heads} heads in {}", cases::name(format)));
            }
        }
    }
}

//! Products of many tokens with matrices that fill whole tiles, and matrices with very many rows. Backends may compute
//! these with other kernels.

use zmlx_core::{Backend, Down, GateUp};
use zmlx_oracle::testing::{random_experts, random_f32};

use crate::bounds;
use crate::cases;
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance, running};

/// Around 32 and 64 columns of a tile, and around the limit between two paths.
const N_TOKENS: [usize; 6] = [15, 16, 31, 33, 64, 70];

/// One matrix, and the rows of two matrices as one, in every format.
pub fn many_tokens<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let instances = running(instances, f % 4 == 0);
        if instances.is_empty() {
            continue;
        }
        let (n_out, n_in) = ([16, 48, 144][f % 3], 128 * (1 + f % 4));
        let parts = [n_out, 32].map(|n| TestWeight::random(format, [1, n, n_in], (f + n) as u64));
        let x = random_f32(70 * n_in, 1.0, f as u64);
        let residual = random_f32(70 * n_out, 1.0, 7);
        let wants = [bounds::linear(&x, &parts[0]), bounds::linear(&x, &parts[1])];
        for i in instances {
            let (b, what) = (&i.backend, format_args!("{}: {}", i.name, cases::name(format)));
            let weights = [b.load(&parts[0]), b.load(&parts[1])];
            let both = b.concat_rows(&[&weights[0], &weights[1]]).unwrap();
            for n in N_TOKENS {
                let x = b.put(&x[..n * n_in], &[n, n_in]);
                let y = b.get(&b.linear(&x, &weights[0]).unwrap());
                wants[0].first(n * n_out).on(i).check(&y, what);
                // The sum of a product and a residual.
                let residual = &residual[..n * n_out];
                let sum = b.add(&b.linear(&x, &weights[0]).unwrap(), &b.put(residual, &[n, n_out])).unwrap();
                let added: Vec<f32> = y.iter().zip(residual).map(|(y, r)| y + r).collect();
                bounds::check_bits(&b.get(&sum), &added, what);
                let rows = b.get(&b.linear(&x, &both).unwrap());
                for (part, want) in wants.iter().enumerate() {
                    let (at, width) = ([0, n_out][part], [n_out, 32][part]);
                    let part: Vec<f32> =
                        rows.chunks_exact(n_out + 32).flat_map(|r| &r[at..at + width]).copied().collect();
                    want.first(n * width).on(i).check(&part, what);
                }
            }
        }
    }
}

/// Experts with many tokens. Some have none, some more than a tile of them.
pub fn experts_of_many_tokens<B: Backend>(instances: &[Instance<B>]) {
    const TOP_K: usize = 3;
    for (f, format) in cases::formats().into_iter().enumerate() {
        let instances = running(instances, f % 4 == 0);
        if instances.is_empty() {
            continue;
        }
        let n_experts = [7, 19][f % 2]; // so few jobs of each that tiles are small, or more
        let (n_out, n_in, inter) = ([32, 16, 80][f % 3], 128 * (1 + f % 3), 128);
        let [gate, up] = [1, 2].map(|s| TestWeight::random(format, [n_experts, inter, n_in], (f + s) as u64));
        let down = TestWeight::random(format, [n_experts, n_out, inter], f as u64);
        // Each format has one number of tokens: all pairs of numbers and experts occur.
        let n = [16, 50][f / 2 % 2];
        let experts = random_experts(n, TOP_K, n_experts, f as u64);
        let (x, acts) = (random_f32(n * n_in, 1.0, 3), random_f32(n * TOP_K * inter, 1.0, 4));
        let weights = random_f32(n * TOP_K, 1.0, 5);
        let of_acts = bounds::gather(&acts, &down, &experts, TOP_K);
        let want = bounds::swiglu(
            &bounds::gather(&x, &gate, &experts, TOP_K),
            &bounds::gather(&x, &up, &experts, TOP_K),
        );
        for i in &instances {
            let (b, what) = (&i.backend, format_args!("{}: {n} tokens, {}", i.name, cases::name(format)));
            let (gate, up, down) = (b.load(&gate), b.load(&up), b.load(&down));
            let chosen = b.put_indices(&experts, &[n, TOP_K]);
            let x = b.put(&x, &[n, n_in]);
            let y = b.gather_qmm_swiglu(&x, GateUp::swiglu(&gate, &up), &chosen).unwrap();
            want.on(i).check(&b.get(&y), what);
            let acts = b.put(&acts, &[n, TOP_K, inter]);
            of_acts.on(i).check(&b.get(&b.gather_linear(&acts, &down, &chosen).unwrap()), what);
            let factors = b.put(&weights, &[n, TOP_K]);
            let y = b.gather_qmm_combine(&acts, Down::plain(&down), &chosen, &factors).unwrap();
            bounds::combine(&of_acts, &weights, TOP_K).on(i).check(&b.get(&y), what);
        }
    }
}

/// One matrix per head, with many tokens.
pub fn heads_of_many_tokens<B: Backend>(instances: &[Instance<B>]) {
    for (f, format) in cases::formats().into_iter().enumerate() {
        let (n_heads, n_out, n_in) = (3, [16, 48][f % 2], 128 * (1 + f % 2));
        let w = TestWeight::random(format, [n_heads, n_out, n_in], f as u64);
        for n in [16, 37] {
            let x = random_f32(n * n_heads * n_in, 1.0, f as u64);
            let want = bounds::head_linear(&x, &w);
            for i @ Instance { name, backend: b, .. } in instances {
                let y = b.head_linear(&b.put(&x, &[n, n_heads, n_in]), &b.load(&w)).unwrap();
                want.on(i).check(&b.get(&y), format_args!("{name}: {n} tokens in {}", cases::name(format)));
            }
        }
    }
}

/// A head as large as a vocabulary, with one and two tokens.
pub fn very_many_rows<B: Backend>(instances: &[Instance<B>]) {
    let w = TestWeight::random(cases::quantised()[4], [1, 100_003, 64], 1);
    let x = random_f32(2 * 64, 1.0, 2);
    let want = bounds::linear(&x, &w);
    for i @ Instance { name, backend: b, .. } in instances.iter().filter(|i| i.is_full()) {
        let weight = b.load(&w);
        for n in [1, 2] {
            let y = b.linear(&b.put(&x[..n * 64], &[n, 64]), &weight).unwrap();
            want.first(n * w.n_out).on(i).check(&b.get(&y), name);
        }
    }
}

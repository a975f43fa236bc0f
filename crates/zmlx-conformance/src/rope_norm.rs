//! `rms_norm` and `rope`.

use std::sync::Arc;

use zmlx_core::{Backend, Rope, RopeFrequencies, RopePairing, Span};
use zmlx_oracle::ops::{self, RopeLayout};
use zmlx_oracle::testing::random_f32;

use crate::bounds::{Bounded, U, check_bits};
use crate::suite::{Host, Instance, span};

/// Widths around the sizes of vectors, several ranks of x, and weights in every dense type.
pub fn rms_norm<B: Backend>(instances: &[Instance<B>]) {
    use zmlx_core::WeightFormat::Dense;
    for width in [1, 2, 7, 8, 9, 15, 16, 17, 64, 257, 2048] {
        for format in crate::cases::dense() {
            let Dense(dtype) = format else { unreachable!("dense formats") };
            let weight = crate::inputs::TestWeight::random(format, [1, 1, width], 3);
            for (shape, eps) in [(vec![width], 1e-6), (vec![3, width], 1e-5), (vec![2, 3, width], 0.5f32)] {
                let x = random_f32(shape.iter().product(), 2.0, width as u64);
                // A mean of squares in f32 (all positive, so nothing cancels), root, quotient, two products.
                let want = ops::rms_norm(&x, &weight.values, f64::from(eps));
                let want = Bounded::relative(want, 0.0, 16.0 * U);
                for Instance { name, backend: b, .. } in instances {
                    let y = b.rms_norm(&b.put(&x, &shape), &b.load(&weight), eps).unwrap();
                    assert_eq!(b.shape(&y), shape);
                    want.check(&b.get(&y), format_args!("{name}: {shape:?}, {dtype:?}"));
                }
            }
        }
    }
}

struct Case {
    rope: Rope,
    n_heads: usize,
    head_dim: usize,
    spans: Vec<Span>,
}

impl Case {
    fn check<B: Backend>(&self, instances: &[Instance<B>]) {
        let Self { rope, n_heads, head_dim, .. } = self;
        let (n_heads, head_dim) = (*n_heads, *head_dim);
        let positions: Vec<u32> =
            self.spans.iter().flat_map(|s| s.start as u32..(s.start + s.n_tokens) as u32).collect();
        let n = positions.len();
        let x = random_f32(n * n_heads * head_dim, 1.0, 5);
        let layout = match rope.pairing {
            RopePairing::Interleaved => RopeLayout::Interleaved,
            RopePairing::HalfSplit => RopeLayout::HalfSplit,
        };
        let frequencies = match &rope.frequencies {
            RopeFrequencies::Powers { theta, position_scale } => {
                let powers = ops::rope_frequencies(rope.dims, f64::from(*theta));
                powers.iter().map(|f| f * f64::from(*position_scale)).collect()
            }
            RopeFrequencies::Given(given) => given.to_vec(),
        };
        let scale = f64::from(rope.scale);
        let sizes = ops::Rope { n_tokens: n, n_heads, head_dim, frequencies: &frequencies, scale, layout };
        let want = ops::rope(&x, &positions, sizes);
        let most = x.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
        for Instance { name, backend: b, angle_error, .. } in instances {
            let y = b.rope(&b.put(&x, &[n, n_heads, head_dim]), &b.spans(&self.spans), rope).unwrap();
            assert_eq!(b.shape(&y), [n, n_heads, head_dim]);
            let y = b.get(&y);
            let what = format_args!("{name}: {rope:?}, {n_heads} × {head_dim}, {:?}", self.spans);
            for (t, position) in positions.iter().enumerate() {
                let at = t * n_heads * head_dim..(t + 1) * n_heads * head_dim;
                // Both factors, both products and their sum are rounded. Two values of the largest size take part.
                let allowed = 2.0 * most * scale * (3.0 * U + angle_error * f64::from(*position));
                Bounded::uniform(want[at.clone()].to_vec(), allowed).check(&y[at], what);
            }
            for (y, x) in y.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)) {
                check_bits(&y[rope.dims..], &x[rope.dims..], what); // what is not rotated passes through
            }
        }
    }
}

const PAIRINGS: [RopePairing; 2] = [RopePairing::Interleaved, RopePairing::HalfSplit];

/// Both pairings, with all and with some dimensions.
pub fn rope<B: Backend>(instances: &[Instance<B>]) {
    for pairing in PAIRINGS {
        for (head_dim, dims) in [(2, 2), (3, 2), (8, 8), (8, 6), (64, 64), (64, 2), (80, 34), (128, 128)] {
            for (n_heads, theta) in [(1, 1e4), (3, 1e6)] {
                let rope = Rope::plain(dims, theta, pairing);
                Case { rope, n_heads, head_dim, spans: vec![span(0, 0, 5)] }.check(instances);
            }
        }
    }
}

/// Frequencies that are not powers (one pair does not turn at all), and scaled positions and results.
pub fn rope_of_other_frequencies<B: Backend>(instances: &[Instance<B>]) {
    let given: Arc<[f64]> = [1.0, 0.25, 0.3, 0.0].into();
    let kinds = [
        (RopeFrequencies::Given(given), 1.25),
        (RopeFrequencies::Powers { theta: 1e4, position_scale: 0.125 }, 1.0),
    ];
    for pairing in PAIRINGS {
        for (frequencies, scale) in kinds.clone() {
            let rope = Rope { dims: 8, frequencies, scale, pairing };
            Case { rope, n_heads: 3, head_dim: 12, spans: vec![span(0, 0, 3), span(1, 40, 2)] }
                .check(instances);
        }
    }
}

/// Up to position 100,000.
pub fn rope_far_out<B: Backend>(instances: &[Instance<B>]) {
    for pairing in PAIRINGS {
        for start in [1000, 40_959, 99_997] {
            let rope = Rope::plain(64, 1e6, pairing);
            Case { rope, n_heads: 2, head_dim: 64, spans: vec![span(0, start, 4)] }.check(instances);
        }
    }
}

/// Each span counts from its own start, whatever its slot. A span may be empty.
pub fn rope_of_several_spans<B: Backend>(instances: &[Instance<B>]) {
    let rope = Rope::plain(16, 1e4, RopePairing::HalfSplit);
    let spans = vec![span(2, 7, 1), span(0, 0, 3), span(5, 30, 0), span(1, 123, 2)];
    Case { rope, n_heads: 2, head_dim: 24, spans }.check(instances);
}

/// `norm_rope` against its parts' formulas: both pairings, all and some dimensions, single and several sequences, heads that a
/// vector does not divide. The norms' error is at most that of a relative 16 roundings, which a rotation passes on.
pub fn norm_rope<B: Backend>(instances: &[Instance<B>]) {
    let given: Arc<[f64]> = [1.0, 0.25, 0.3, 0.0].into();
    let ropes = |pairing| {
        let given = Rope { dims: 8, frequencies: RopeFrequencies::Given(given.clone()), scale: 1.0, pairing };
        [
            (8, Rope::plain(8, 1e4, pairing)),
            (36, Rope::plain(6, 1e6, pairing)),
            (128, Rope::plain(128, 1e6, pairing)),
            (12, given),
        ]
    };
    for (head_dim, rope) in PAIRINGS.into_iter().flat_map(ropes) {
        for spans in [vec![span(0, 0, 1)], vec![span(0, 0, 3), span(1, 40, 2)]] {
            let positions: Vec<u32> =
                spans.iter().flat_map(|s| s.start as u32..(s.start + s.n_tokens) as u32).collect();
            let n = positions.len();
            let norm = |seed| {
                crate::inputs::TestWeight::random(
                    zmlx_core::WeightFormat::Dense(zmlx_core::DType::F32),
                    [1, 1, head_dim],
                    seed,
                )
            };
            let norms = [norm(7), norm(8)];
            let x = [3, 2].map(|n_heads| random_f32(n * n_heads * head_dim, 1.5, n_heads as u64));
            let frequencies = rope.frequencies();
            let layout = match rope.pairing {
                RopePairing::Interleaved => RopeLayout::Interleaved,
                RopePairing::HalfSplit => RopeLayout::HalfSplit,
            };
            let want = [0, 1].map(|i| {
                let normed: Vec<f32> =
                    ops::rms_norm(&x[i], &norms[i].values, 1e-6).into_iter().map(|v| v as f32).collect();
                let n_heads = 3 - i;
                let sizes = ops::Rope {
                    n_tokens: n,
                    n_heads,
                    head_dim,
                    frequencies: &frequencies,
                    scale: 1.0,
                    layout,
                };
                let most = normed.iter().fold(0.0, |m: f64, v| m.max(f64::from(v.abs())));
                (ops::rope(&normed, &positions, sizes), most)
            });
            for Instance { name, backend: b, angle_error, .. } in instances {
                let [q, k] = [0, 1].map(|i| b.put(&x[i], &[n, 3 - i, head_dim]));
                let [q_norm, k_norm] = norms.each_ref().map(|w| b.load(w));
                let inputs =
                    zmlx_core::NormRope { q: &q, k: &k, q_norm: &q_norm, k_norm: &k_norm, eps: 1e-6 };
                let (q, k) = b.norm_rope(inputs, &b.spans(&spans), &rope).unwrap();
                for (i, y) in [q, k].iter().enumerate() {
                    assert_eq!(b.shape(y), [n, 3 - i, head_dim]);
                    let (want, most) = &want[i];
                    let last = f64::from(positions.iter().copied().max().unwrap_or(0));
                    let allowed = 2.0 * most * (20.0 * U + angle_error * last);
                    let what = format_args!("{name}: {rope:?}, {head_dim} wide, {spans:?}");
                    Bounded::uniform(want.clone(), allowed).check(&b.get(y), what);
                }
            }
        }
    }
}

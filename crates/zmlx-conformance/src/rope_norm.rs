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

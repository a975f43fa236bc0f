//! `latent_norm_rope`, `latent_attention_parts` and `latent_attention_sum`.

use zmlx_kernels::metal::{self, KernelSpec, LatentShape};
use zmlx_kernels::{DType, Rope, RopeFrequencies, RopePairing};

use crate::inputs::{Buffer, activations, half_ulp};
use crate::{sim, stock};

const EPS: f32 = 1e-5;

/// What comes before attention, for two tokens far apart: a latent that no thread's four divide, frequencies that are no powers, the
/// real model's widths.
fn before(dtype: DType) -> Vec<(Rope, LatentShape, KernelSpec, Vec<Buffer>)> {
    let given = RopeFrequencies::Given([1.0, 0.25, 0.3].into());
    let mut all = Vec::new();
    for pairing in [RopePairing::Interleaved, RopePairing::HalfSplit] {
        for ([n_heads, nope_dim, rank, rope_dim], rope) in [
            ([2, 5, 37, 6], Rope { dims: 6, frequencies: given.clone(), scale: 1.0, pairing }),
            ([3, 16, 130, 8], Rope::plain(8, 1e4, pairing)),
            ([2, 192, 512, 64], Rope::plain(64, 1e6, pairing)),
        ] {
            let shape = LatentShape { n_tokens: 2, n_heads, nope_dim, rank, rope_dim };
            let spec = metal::latent_norm_rope(dtype, &shape, EPS, &rope).unwrap();
            let periods: Vec<f32> = match &rope.frequencies {
                RopeFrequencies::Given(given) => given.iter().map(|f| f.recip() as f32).collect(),
                RopeFrequencies::Powers { .. } => vec![1.0],
            };
            let inputs = vec![
                activations(dtype, &[2, n_heads, nope_dim + rope_dim], 1),
                activations(dtype, &[2, rank + rope_dim], 2),
                activations(dtype, &[rank], 3),
                Buffer::of_u32(&[7, 4001], &[2]),
                Buffer::of_floats(DType::F32, &periods, &[periods.len()]),
            ];
            all.push((rope, shape, spec, inputs));
        }
    }
    all
}

#[test]
fn what_comes_before_attention_equals_the_stock_ops() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (rope, shape, spec, inputs) in before(dtype) {
            let LatentShape { n_tokens, n_heads, nope_dim, rank, rope_dim } = shape;
            let got: Vec<Vec<f32>> = sim::run_all_ways(&spec, &inputs.iter().collect::<Vec<_>>())
                .iter()
                .map(Buffer::floats)
                .collect();
            let (q, kv_a, norm, positions) =
                (inputs[0].floats(), inputs[1].floats(), inputs[2].floats(), inputs[3].words());
            let check = |got: &[f32], want: &[f32], what: &str| {
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(got) == bits(want), "{dtype:?}, {shape:?}, {rope:?}: {what}");
            };
            for (t, &position) in positions.iter().enumerate() {
                let row = &kv_a[t * (rank + rope_dim)..][..rank + rope_dim];
                let latent = stock::rms_norm(dtype, &row[..rank], &norm, EPS);
                let (got_latent, got_key) = got[2][t * (rank + rope_dim)..][..rank + rope_dim].split_at(rank);
                check(got_latent, &latent, "latent");
                let key = stock::rope(dtype, &row[rank..], &rope, position);
                check(got_key, &key, "key");
                for h in 0..n_heads {
                    let head = &q[(t * n_heads + h) * (nope_dim + rope_dim)..][..nope_dim + rope_dim];
                    let to = h * n_tokens + t;
                    check(&got[0][to * nope_dim..][..nope_dim], &head[..nope_dim], "query");
                    let turned = stock::rope(dtype, &head[nope_dim..], &rope, position);
                    check(&got[1][to * rope_dim..][..rope_dim], &turned, "turned query");
                }
            }
        }
    }
}

/// Attention of the new tokens of some sequences.
#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    n_heads: usize,
    rank: usize,
    rope_dim: usize,
    /// Tokens before and new tokens of each sequence.
    sequences: Vec<[usize; 2]>,
    /// The size of queries.
    size: f32,
    seed: u64,
}

impl Case {
    fn new(dtype: DType, [n_heads, rank, rope_dim]: [usize; 3], sequences: &[[usize; 2]]) -> Self {
        Self { dtype, n_heads, rank, rope_dim, sequences: sequences.to_vec(), size: 1.0, seed: 1 }
    }

    fn shape(&self) -> LatentShape {
        let n_tokens = self.sequences.iter().map(|[_, new]| new).sum();
        let Self { n_heads, rank, rope_dim, .. } = *self;
        LatentShape { n_tokens, n_heads, nope_dim: 1, rank, rope_dim }
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.rank + self.rope_dim) as f32).sqrt()
    }

    fn spec(&self) -> KernelSpec {
        let n_seen = self.sequences.iter().map(|[had, new]| had + new).max().unwrap();
        let sizes = [self.sequences.len(), n_seen];
        metal::latent_attention_parts(self.dtype, &self.shape(), sizes, self.scale()).unwrap()
    }

    /// Positions past a sequence's end hold no numbers: nothing may read them.
    fn cache(&self, sequence: usize) -> Buffer {
        let ([had, new], width) = (self.sequences[sequence], self.rank + self.rope_dim);
        let seed = self.seed + 20 + sequence as u64;
        let mut values = activations(self.dtype, &[had + new, width], seed).floats();
        values.resize(values.len() + 3 * width, f32::NAN);
        Buffer::of_floats(self.dtype, &values, &[had + new + 3, width])
    }

    /// The sequence and position of each token.
    fn tokens(&self) -> Vec<(usize, usize)> {
        let of = |(i, [had, new]): (usize, &[usize; 2])| {
            (*had..had + new).map(move |p| (i, p)).collect::<Vec<_>>()
        };
        self.sequences.iter().enumerate().flat_map(of).collect()
    }

    fn queries(&self, width: usize, seed: u64) -> Buffer {
        let shape = [self.n_heads, self.shape().n_tokens, width];
        let scaled: Vec<f32> = activations(self.dtype, &shape, self.seed + seed)
            .floats()
            .iter()
            .map(|v| v * self.size)
            .collect();
        Buffer::of_floats(self.dtype, &scaled, &shape)
    }

    fn inputs(&self) -> Vec<Buffer> {
        let n_sequences = self.sequences.len();
        let n_caches = if n_sequences == 1 { 1 } else { metal::MAX_SEQUENCES };
        let caches = (0..n_caches).map(|i| self.cache(if i < n_sequences { i } else { 0 }));
        let (of_tokens, positions): (Vec<u32>, Vec<u32>) =
            self.tokens().iter().map(|(s, p)| (*s as u32, *p as u32)).unzip();
        let mut inputs = vec![self.queries(self.rank, 10), self.queries(self.rope_dim, 11)];
        inputs.extend(caches);
        inputs.push(Buffer::of_u32(&of_tokens, &[of_tokens.len()]));
        inputs.push(Buffer::of_u32(&positions, &[positions.len()]));
        inputs
    }

    /// The second kernel's launch, on the results of the first.
    fn sum(&self) -> KernelSpec {
        metal::latent_attention_sum(self.dtype, &self.shape()).unwrap()
    }

    fn run(&self, spec: &KernelSpec) -> Vec<f32> {
        let inputs = self.inputs();
        let parts = sim::run(spec, &inputs.iter().collect::<Vec<_>>());
        sim::run(&self.sum(), &parts.iter().collect::<Vec<_>>())[0].floats()
    }

    /// Against softmax and average in f64. A score is off by at most half an ulp of f32 of its summands' sizes for each step of the chain
    /// (a lane's values, the lanes, factor and products), and its exponential by as much of itself; so are the largest score and, by a
    /// few steps for each key, the sums. The average is rounded once.
    fn check(&self, got: &[f32]) {
        const HALF: f64 = 1.0 / (1 << 24) as f64;
        let Self { n_heads, rank, rope_dim, .. } = *self;
        let (q, q_pe) = (self.queries(rank, 10).floats(), self.queries(rope_dim, 11).floats());
        let tokens = self.tokens();
        let caches: Vec<Vec<f32>> = (0..self.sequences.len()).map(|i| self.cache(i).floats()).collect();
        let chain = ((rank + rope_dim).div_ceil(32) + 4 + 5 + 3) as f64 * HALF;
        for (t, (sequence, position)) in tokens.iter().enumerate() {
            let rows: Vec<&[f32]> = caches[*sequence].chunks_exact(rank + rope_dim).collect();
            for h in 0..n_heads {
                let at = h * tokens.len() + t;
                let (q, q_pe) = (&q[at * rank..][..rank], &q_pe[at * rope_dim..][..rope_dim]);
                let (mut scores, mut score_error) = (Vec::new(), 0.0f64);
                for row in &rows[..=*position] {
                    let summands = q.iter().chain(q_pe).zip(*row);
                    let products =
                        summands.map(|(a, b)| f64::from(*a) * f64::from(*b) * f64::from(self.scale()));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    scores.push(sum);
                    score_error = score_error.max(chain * size);
                }
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let range = scores.iter().map(|s| most - s).fold(0.0, f64::max);
                let exps: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let total: f64 = exps.iter().sum();
                let relative = 4.0 * score_error + 4.0 * HALF * range + (6 * scores.len() + 80) as f64 * HALF;
                for c in 0..rank {
                    let values = exps.iter().enumerate().map(|(k, e)| e / total * f64::from(rows[k][c]));
                    let (want, size) = values.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                    let allowed = 1.01 * half_ulp(self.dtype) * want.abs() + 2.0 * relative * size + 1e-7;
                    let got = f64::from(got[at * rank + c]);
                    let close = (got - want).abs() <= allowed;
                    assert!(close, "{self:?}: token {t}, head {h}, {c}: {got} for {want} ± {allowed}");
                }
            }
        }
    }
}

/// Launches of all kernels, with rests in every dimension: heads, latents, keys, and sequences of which one has fewer keys than there
/// are parts.
pub(crate) fn launches() -> Vec<(KernelSpec, Vec<Buffer>)> {
    let mut all: Vec<_> =
        before(DType::BF16).into_iter().map(|(_, _, spec, inputs)| (spec, inputs)).collect();
    for sequences in [&[[70, 2]][..], &[[200, 1], [0, 2], [5, 1]]] {
        let case = Case::new(DType::BF16, [3, 37, 10], sequences);
        let (spec, inputs) = (case.spec(), case.inputs());
        let parts = sim_parts(&spec);
        all.push((case.sum(), parts));
        all.push((spec, inputs));
    }
    all
}

/// Arrays as the first kernel's results.
fn sim_parts(spec: &KernelSpec) -> Vec<Buffer> {
    spec.outputs.iter().map(|o| activations(DType::F32, &o.shape, 5)).collect()
}

#[test]
fn attention_is_near_the_formula() {
    if !msl_sim::available() {
        return;
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for sequences in [
            // One key; fewer than a part has; several parts; several new tokens, which do not see each other's successors.
            &[[0, 1]][..],
            &[[62, 1]],
            &[[130, 1]],
            &[[62, 5]],
            // Several sequences, one of which has fewer keys than there are parts; and as many as a launch takes.
            &[[200, 1], [0, 1], [63, 2]],
            &[[3, 1], [7, 1], [1, 8], [0, 1], [64, 1], [9, 1], [2, 1], [5, 3]],
        ] {
            let case = Case::new(dtype, [3, 40, 8], sequences);
            case.check(&case.run(&case.spec()));
        }
    }
}

/// GLM-4.7-Flash: 20 heads, latents of 512 values and keys of 64.
#[test]
fn attention_at_the_widths_of_the_real_model() {
    if !msl_sim::available() {
        return;
    }
    for sequences in [&[[129, 1]][..], &[[65, 3], [10, 1]]] {
        let case = Case::new(DType::BF16, [20, 512, 64], sequences);
        case.check(&case.run(&case.spec()));
    }
}

/// Scores up to some hundreds: one key takes all, wherever it is.
#[test]
fn large_scores_do_not_overflow() {
    if !msl_sim::available() {
        return;
    }
    for seed in [1, 2, 3] {
        let case = Case { size: 100.0, seed, ..Case::new(DType::F32, [2, 64, 32], &[[150, 2]]) };
        case.check(&case.run(&case.spec()));
    }
}

/// More parts than keys, other heads for each simdgroup, other simdgroups: within the bound, however the work is cut.
#[test]
fn every_way_to_cut_the_work_is_near_the_formula() {
    if !msl_sim::available() {
        return;
    }
    let case = Case::new(DType::F32, [5, 40, 8], &[[20, 1], [3, 2]]);
    for (splits, heads, simdgroups) in [(1, 1, 5), (7, 2, 3), (64, 3, 2), (2, 4, 1)] {
        let mut spec = case.spec();
        for output in &mut spec.outputs {
            output.shape[2] = splits;
        }
        for (name, value) in &mut spec.template {
            if *name == "HEADS" {
                *value = metal::Template::Int(heads);
            }
        }
        let blocks = 5usize.div_ceil(heads as usize).next_multiple_of(simdgroups);
        (spec.grid[0], spec.grid[1], spec.threadgroup[1]) = (32 * splits, blocks, simdgroups);
        case.check(&case.run(&spec));
    }
}

#[test]
fn what_the_kernels_do_not_know_is_not_fused() {
    let shape = LatentShape { n_tokens: 1, n_heads: 2, nope_dim: 16, rank: 64, rope_dim: 16 };
    let rope = Rope::plain(16, 1e6, RopePairing::Interleaved);
    let before = |shape: &LatentShape, rope: &Rope| metal::latent_norm_rope(DType::BF16, shape, EPS, rope);
    assert!(before(&shape, &rope).is_ok());
    assert!(before(&shape, &Rope::plain(8, 1e6, RopePairing::Interleaved)).is_err(), "a part of the key");
    assert!(before(&shape, &Rope { scale: 1.5, ..rope.clone() }).is_err(), "a scale");
    let parts = |shape: &LatentShape, n| metal::latent_attention_parts(DType::BF16, shape, [n, 9], 0.1);
    assert!(parts(&shape, 1).is_ok() && parts(&shape, 8).is_ok());
    assert!(parts(&shape, 9).is_err() && parts(&shape, 0).is_err(), "sequences");
    for wrong in [
        LatentShape { n_tokens: 0, ..shape },
        LatentShape { rank: 513, ..shape },
        LatentShape { rank: 4, rope_dim: 2, ..shape },
        LatentShape { rope_dim: 130, ..shape },
    ] {
        assert!(parts(&wrong, 1).is_err(), "{wrong:?}");
    }
    assert!(metal::latent_attention_sum(DType::U32, &shape).is_err());
}

//! Feeds sequences to an attention op piece by piece, and compares each piece with the oracle's result for the whole
//! sequence.

use zmlx_core::{
    AttentionInputs, AttentionSettings, Backend, CacheKind, CacheSpec, KvFormat, MlaInputs, MlaWeights,
    NormRopeMla, Result, Rope, RopePairing, Span, WeightFormat,
};
use zmlx_oracle::ops;
use zmlx_oracle::testing::random_f32;

use crate::bounds::Bounded;
use crate::inputs::TestWeight;
use crate::suite::{Host, Instance, span};

/// The bound of results that are averages of values of about 1, at most 6. A score is a sum of up to 640 products,
/// scaled to about 1. Its error is some 1e-6, and it shifts the average by as much of the largest value.
pub const TOLERANCE: f64 = 1e-5;

/// An attention op with its sizes.
pub trait Attend<B: Backend> {
    /// What the op's cache keeps of each token.
    fn kind(&self) -> CacheKind;
    /// The dimensions of each input after that of the tokens.
    fn inputs(&self) -> Vec<Vec<usize>>;
    /// Writes the tokens `x` after those in the cache, and attends.
    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor>;
    /// The results of a whole sequence.
    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64>;
    /// The formats of the weights that are used.
    fn formats(&self) -> Vec<WeightFormat> {
        Vec::new()
    }
}

/// `attention` with a window, and with a sink for each head if there are sinks.
#[derive(Clone, Debug)]
pub struct Windowed {
    /// The heads.
    pub heads: Heads,
    /// Number of tokens that a token sees; `None` for all.
    pub window: Option<usize>,
    /// One for each head, or empty.
    pub sinks: Vec<f32>,
}

impl<B: Backend> Attend<B> for Windowed {
    fn kind(&self) -> CacheKind {
        let Heads { n_kv_heads, head_dim, .. } = self.heads;
        match self.window {
            Some(window) => CacheKind::Window { n_kv_heads, head_dim, window },
            None => CacheKind::Full { n_kv_heads, head_dim },
        }
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        Attend::<B>::inputs(&self.heads)
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let sinks = (!self.sinks.is_empty()).then(|| b.load_vector(&self.sinks));
        let inputs = AttentionInputs { q: &x[0], k: &x[1], v: &x[2], sinks: sinks.as_ref() };
        let settings = AttentionSettings { scale: self.heads.scale(), window: self.window };
        b.attention(inputs, cache, step, &settings)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let sight = ops::Sight { window: self.window, sinks: &self.sinks };
        ops::attention_with(&x[0], &x[1], &x[2], self.heads.sizes(n_tokens), sight)
    }
}

/// `attention`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads.
    pub n_kv_heads: usize,
    /// Number of elements in a head.
    pub head_dim: usize,
}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The sizes for a whole sequence.
    fn sizes(&self, n_tokens: usize) -> ops::Attention {
        let Self { n_heads, n_kv_heads, head_dim } = *self;
        let scale = f64::from(self.scale());
        ops::Attention {
            n_tokens,
            n_kv: n_tokens,
            n_heads,
            n_kv_heads,
            head_dim,
            v_head_dim: head_dim,
            scale,
        }
    }
}

impl<B: Backend> Attend<B> for Heads {
    fn kind(&self) -> CacheKind {
        CacheKind::Full { n_kv_heads: self.n_kv_heads, head_dim: self.head_dim }
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        [self.n_heads, self.n_kv_heads, self.n_kv_heads].map(|h| vec![h, self.head_dim]).to_vec()
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let inputs = AttentionInputs { q: &x[0], k: &x[1], v: &x[2], sinks: None };
        b.attention(inputs, cache, step, &AttentionSettings { scale: self.scale(), window: None })
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        ops::attention(&x[0], &x[1], &x[2], self.sizes(n_tokens))
    }
}

/// `latent_attention`, or with weights `mla_attention`.
pub struct Latent {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of elements in a latent.
    pub rank: usize,
    /// Number of elements in a rotated key.
    pub rope_dim: usize,
    /// `embed_q` and `unembed_out`.
    pub weights: Option<[TestWeight; 2]>,
}

impl Latent {
    /// Width of a query head without position.
    fn nope(&self) -> usize {
        self.weights.as_ref().map_or(self.rank, |w| w[0].n_in)
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.nope() + self.rope_dim) as f32).sqrt()
    }
}

impl<B: Backend> Attend<B> for Latent {
    fn kind(&self) -> CacheKind {
        CacheKind::Latent { rank: self.rank, rope_dim: self.rope_dim }
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        let Self { n_heads, rank, rope_dim, .. } = *self;
        vec![vec![n_heads, self.nope()], vec![n_heads, rope_dim], vec![rank], vec![rope_dim]]
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let inputs = MlaInputs { q_nope: &x[0], q_pe: &x[1], kv: &x[2], k_pe: &x[3] };
        match &self.weights {
            None => b.latent_attention(inputs, cache, step, self.scale()),
            Some([embed_q, unembed_out]) => {
                let weights = MlaWeights { embed_q: &b.load(embed_q), unembed_out: &b.load(unembed_out) };
                b.mla_attention(inputs, weights, cache, step, self.scale())
            }
        }
    }

    fn formats(&self) -> Vec<WeightFormat> {
        self.weights.iter().flatten().map(|w| w.host.format()).collect()
    }

    /// With weights this is the expanded form, whose keys and values the op never computes.
    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let Self { n_heads, rank, rope_dim, .. } = *self;
        let scale = f64::from(self.scale());
        if let Some([embed_q, unembed_out]) = &self.weights {
            let sizes = ops::MlaAttention {
                n_tokens,
                n_kv: n_tokens,
                n_heads,
                qk_nope_head_dim: embed_q.n_in,
                qk_rope_head_dim: rope_dim,
                kv_lora_rank: rank,
                v_head_dim: unembed_out.n_out,
                scale,
            };
            let weights = (&embed_q.values[..], &unembed_out.values[..]);
            return ops::mla_attention((&x[0], &x[1]), (&x[2], &x[3]), weights, sizes);
        }
        let beside = |a: &[f32], a_dim: usize, b: &[f32]| -> Vec<f32> {
            a.chunks_exact(a_dim).zip(b.chunks_exact(rope_dim)).flat_map(|(a, b)| [a, b].concat()).collect()
        };
        let (q, k) = (beside(&x[0], rank, &x[1]), beside(&x[2], rank, &x[3]));
        let sizes = ops::Attention {
            n_tokens,
            n_kv: n_tokens,
            n_heads,
            n_kv_heads: 1,
            head_dim: rank + rope_dim,
            v_head_dim: rank,
            scale,
        };
        ops::attention(&q, &k, &x[2], sizes)
    }
}

/// `norm_rope_mla`: [`Latent`] with weights, from the projections on.
pub struct Projected {
    /// Attention itself.
    pub latent: Latent,
    /// The norm of latents.
    pub norm: TestWeight,
    /// How keys and queries turn.
    pub rope: Rope,
}

/// Added to the mean of squares.
const EPS: f32 = 1e-5;

impl Projected {
    /// The parts of rows that consist of two, of which the second has the rotated key's width.
    fn parts(&self, x: &[f32], width: usize) -> [Vec<f32>; 2] {
        let rows = x.chunks_exact(width + self.latent.rope_dim).map(|row| row.split_at(width));
        let (first, second): (Vec<_>, Vec<_>) = rows.unzip();
        [first.concat(), second.concat()]
    }

    /// The rotated parts, from position 0 on.
    fn turned(&self, x: &[f32], n_tokens: usize) -> Vec<f32> {
        let head_dim = self.latent.rope_dim;
        let layout = match self.rope.pairing {
            RopePairing::Interleaved => ops::RopeLayout::Interleaved,
            RopePairing::HalfSplit => ops::RopeLayout::HalfSplit,
        };
        let (frequencies, n_heads) = (self.rope.frequencies(), x.len() / (n_tokens * head_dim));
        let positions: Vec<u32> = (0..n_tokens as u32).collect();
        let sizes = ops::Rope { n_tokens, n_heads, head_dim, frequencies: &frequencies, scale: 1.0, layout };
        ops::rope(x, &positions, sizes).into_iter().map(|v| v as f32).collect()
    }
}

impl<B: Backend> Attend<B> for Projected {
    fn kind(&self) -> CacheKind {
        Attend::<B>::kind(&self.latent)
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        let Latent { n_heads, rank, rope_dim, .. } = self.latent;
        vec![vec![n_heads, self.latent.nope() + rope_dim], vec![rank + rope_dim]]
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        let [embed_q, unembed_out] = self.latent.weights.as_ref().unwrap().each_ref().map(|w| b.load(w));
        let weights = MlaWeights { embed_q: &embed_q, unembed_out: &unembed_out };
        let inputs = NormRopeMla {
            q: &x[0],
            kv_a: &x[1],
            kv_norm: &b.load(&self.norm),
            eps: EPS,
            rope_dim: self.latent.rope_dim,
            scale: self.latent.scale(),
        };
        b.norm_rope_mla(inputs, weights, cache, step, &self.rope)
    }

    fn formats(&self) -> Vec<WeightFormat> {
        Attend::<B>::formats(&self.latent)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        let [q_nope, q_pe] = self.parts(&x[0], self.latent.nope());
        let [kv, k_pe] = self.parts(&x[1], self.latent.rank);
        let kv =
            ops::rms_norm(&kv, &self.norm.values, f64::from(EPS)).into_iter().map(|v| v as f32).collect();
        let [q_pe, k_pe] = [q_pe, k_pe].map(|x| self.turned(&x, n_tokens));
        Attend::<B>::want(&self.latent, &[q_nope, q_pe, kv, k_pe], n_tokens)
    }
}

/// `attention_shared` after the `attention` of another layer. The first input is that layer's queries, the last one its
/// own.
#[derive(Clone, Debug)]
pub struct Shared(pub Windowed);

impl<B: Backend> Attend<B> for Shared {
    fn kind(&self) -> CacheKind {
        Attend::<B>::kind(&self.0)
    }

    fn inputs(&self) -> Vec<Vec<usize>> {
        let mut inputs = Attend::<B>::inputs(&self.0);
        inputs.push(inputs[0].clone());
        inputs
    }

    fn call(&self, b: &B, x: &[B::Tensor], cache: &mut B::Cache, step: &B::Step) -> Result<B::Tensor> {
        self.0.call(b, &x[..3], cache, step)?;
        let settings = AttentionSettings { scale: self.0.heads.scale(), window: self.0.window };
        b.attention_shared(&x[3], cache, step, &settings)
    }

    fn want(&self, x: &[Vec<f32>], n_tokens: usize) -> Vec<f64> {
        Attend::<B>::want(&self.0, &[x[3].clone(), x[1].clone(), x[2].clone()], n_tokens)
    }
}

/// A cache, with the sequences of its slots.
pub struct Session<'a, B: Backend, A> {
    /// The backend and its bounds.
    pub instance: &'a Instance<B>,
    /// The op.
    pub op: &'a A,
    /// The cache, on the backend.
    pub cache: B::Cache,
    slots: Vec<Slot>,
}

struct Slot {
    /// Each input for all tokens, including later ones.
    inputs: Vec<Vec<f32>>,
    want: Vec<f64>,
    n_total: usize,
    n_fed: usize,
}

impl<'a, B: Backend, A: Attend<B>> Session<'a, B, A> {
    /// Creates slots whose sequences end with these lengths. Equal seeds give equal sequences.
    pub fn new(instance: &'a Instance<B>, op: &'a A, n_totals: &[usize], seed: u64) -> Self {
        Self::in_format(instance, op, KvFormat::Native, n_totals, seed)
    }

    /// As [`Session::new`], with keys and values in this format.
    pub fn in_format(
        instance: &'a Instance<B>,
        op: &'a A,
        format: KvFormat,
        n_totals: &[usize],
        seed: u64,
    ) -> Self {
        let slot = |(i, n): (usize, &usize)| Self::slot(op, *n, seed + 100 * i as u64);
        Self {
            instance,
            op,
            cache: instance.backend.cache(&CacheSpec { kind: op.kind(), format }).unwrap(),
            slots: n_totals.iter().enumerate().map(slot).collect(),
        }
    }

    fn slot(op: &A, n_total: usize, seed: u64) -> Slot {
        let input = |(i, dims): (usize, Vec<usize>)| {
            random_f32(n_total * dims.iter().product::<usize>(), 1.0, seed + i as u64)
        };
        let inputs: Vec<_> = op.inputs().into_iter().enumerate().map(input).collect();
        Slot { want: op.want(&inputs, n_total), inputs, n_total, n_fed: 0 }
    }

    /// Number of tokens that a slot has been fed.
    pub fn n_fed(&self, slot: usize) -> usize {
        self.slots[slot].n_fed
    }

    /// The next tokens of slots, each given as `(slot, n_tokens)`, as tensors and spans.
    pub fn next(&self, pieces: &[(usize, usize)]) -> (Vec<B::Tensor>, Vec<Span>) {
        let spans: Vec<Span> = pieces.iter().map(|(s, n)| span(*s, self.slots[*s].n_fed, *n)).collect();
        let n_tokens = spans.iter().map(|s| s.n_tokens).sum();
        let put = |(i, dims): (usize, Vec<usize>)| {
            let width: usize = dims.iter().product();
            let of =
                |s: &Span| self.slots[s.slot].inputs[i][s.start * width..][..s.n_tokens * width].to_vec();
            let values: Vec<f32> = spans.iter().flat_map(of).collect();
            self.instance.backend.put(&values, &[vec![n_tokens], dims].concat())
        };
        (self.op.inputs().into_iter().enumerate().map(put).collect(), spans)
    }

    /// Feeds the next tokens of slots in one batch, checks the results and returns them.
    #[track_caller]
    pub fn feed(&mut self, pieces: &[(usize, usize)]) -> Vec<f32> {
        let spans = self.next(pieces).1;
        let (y, want) = self.results(pieces);
        let want = Bounded {
            formats: self.op.formats(),
            ..Bounded::uniform(want, TOLERANCE * self.instance.attention_error)
        };
        want.on(self.instance).check(&y, format_args!("{}: {spans:?}", self.instance.name));
        y
    }

    /// Feeds the next tokens of slots in one batch. Returns the results and the wanted values.
    pub fn results(&mut self, pieces: &[(usize, usize)]) -> (Vec<f32>, Vec<f64>) {
        let (x, spans) = self.next(pieces);
        let b = &self.instance.backend;
        let step = b.spans(&spans);
        let y = b.get(&self.op.call(b, &x, &mut self.cache, &step).unwrap());
        b.commit(&mut self.cache, &step);
        let mut want = Vec::new();
        for s in &spans {
            let slot = &mut self.slots[s.slot];
            let width = slot.want.len() / slot.n_total;
            want.extend_from_slice(&slot.want[s.start * width..][..s.n_tokens * width]);
            slot.n_fed += s.n_tokens;
        }
        (y, want)
    }

    /// Shortens a slot. Its next tokens differ from the earlier ones.
    pub fn truncate(&mut self, slot: usize, n_tokens: usize, seed: u64) {
        self.instance.backend.truncate(&mut self.cache, slot, n_tokens).unwrap();
        self.continue_from(slot, slot, n_tokens, seed);
    }

    /// Makes slot `to` a fork of `from`. The next tokens in `to` differ from those of `from`.
    pub fn fork(&mut self, from: usize, to: usize, n_tokens: usize, seed: u64) {
        self.instance.backend.fork(&mut self.cache, from, to, n_tokens).unwrap();
        self.continue_from(from, to, n_tokens, seed);
    }

    /// Empties a slot. Its next tokens differ from the earlier ones.
    pub fn release(&mut self, slot: usize, seed: u64) {
        self.instance.backend.release(&mut self.cache, slot);
        self.continue_from(slot, slot, 0, seed);
    }

    fn continue_from(&mut self, from: usize, to: usize, n_tokens: usize, seed: u64) {
        let old = &self.slots[from];
        let mut new = Self::slot(self.op, old.n_total, seed);
        for ((new, old), dims) in new.inputs.iter_mut().zip(&old.inputs).zip(self.op.inputs()) {
            let kept = n_tokens * dims.iter().product::<usize>();
            new[..kept].copy_from_slice(&old[..kept]);
        }
        new.want = self.op.want(&new.inputs, new.n_total);
        new.n_fed = n_tokens;
        self.slots[to] = new;
    }
}

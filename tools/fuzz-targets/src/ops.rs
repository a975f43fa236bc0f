//! Calls every op of the CPU backend with random shapes, weights, sequences and steps. Each call must return an error
//! or a result of the documented shape. It must never panic, and never write outside a buffer.
#![allow(clippy::unwrap_used, reason = "what cannot fail here is a bug, which a panic shows")]

use std::sync::LazyLock;

use bytes::Bytes;
use zmlx_kernels::cpu::{CpuBackend, CpuCache, CpuIndices, CpuStep, CpuTensor, CpuWeight, Level};
use zmlx_kernels::{
    Activation, AttentionInputs, AttentionSettings, Backend, CacheKind, CacheSpec, DType, Down, GateUp,
    HostWeight, KvFormat, Logits, MlaInputs, MlaWeights, NoauxTc, QuantSpec, Renormalize, Result, Rope,
    RopePairing, SoftmaxTopK, Span, WeightBytes, WeightFormat,
};

/// One backend of each kind for all calls, so that buffers are reused between calls.
static BACKENDS: LazyLock<[CpuBackend; 2]> = LazyLock::new(|| {
    [Level::Scalar, Level::fastest()].map(|level| CpuBackend::with_level(level, Some(2)).unwrap())
});

/// Makes one call. The first byte selects the instruction level, the others everything else.
pub fn ops(data: &[u8]) {
    op_outcome(data);
}

/// Like [`ops`]. Returns whether the call succeeded; `None` if its inputs could not be made.
pub fn op_outcome(data: &[u8]) -> Option<bool> {
    let (level, bytes) = data.split_first()?;
    let [scalar, fastest] = &*BACKENDS;
    call(&mut Random { bytes, state: 0 }, if level.is_multiple_of(4) { scalar } else { fastest })
}

/// The next number of SplitMix64.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The source of all choices: the bytes of the input, and after their end numbers that are derived from them.
struct Random<'a> {
    bytes: &'a [u8],
    state: u64,
}

impl Random<'_> {
    fn next(&mut self) -> u64 {
        if let Some((first, rest)) = self.bytes.split_first_chunk::<2>() {
            self.bytes = rest;
            let number = u64::from(u16::from_le_bytes(*first));
            self.state ^= number;
            number
        } else {
            split_mix(&mut self.state)
        }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn dim(&mut self) -> usize {
        if self.one_in(40) {
            self.pick(&[0, 1 << 20, 1 << 62, usize::MAX])
        } else {
            self.pick(&[0, 1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 32, 33, 64, 65, 96, 128, 130])
        }
    }

    /// `usual`, but sometimes another number.
    fn odd(&mut self, usual: usize) -> usize {
        if self.one_in(15) { self.dim() } else { usual }
    }

    fn value(&mut self) -> f32 {
        match self.below(60) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::MAX,
            3 => 1e-45,
            _ => (self.below(2001) as f32 - 1000.0) / 500.0,
        }
    }

    fn len(shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n <= 1 << 16)
    }

    fn tensor(&mut self, b: &CpuBackend, shape: &[usize]) -> Option<CpuTensor> {
        let values: Vec<f32> = (0..Self::len(shape)?).map(|_| self.value()).collect();
        b.tensor(&values, shape).ok()
    }

    fn indices(&mut self, b: &CpuBackend, shape: &[usize], n: usize) -> Option<CpuIndices> {
        let values: Vec<u32> = (0..Self::len(shape)?)
            .map(|_| if self.one_in(300) { self.next() as u32 } else { self.below(n) as u32 })
            .collect();
        b.indices(&values, shape).ok()
    }

    fn weight(&mut self, b: &CpuBackend, [n_mats, n_out, n_in]: [usize; 3]) -> Option<CpuWeight> {
        let n = Self::len(&[n_mats, n_out, n_in]).filter(|n| *n > 0)?;
        let mut bytes = |n: usize| {
            let lead = self.below(9); // to start at any address
            let bytes: Vec<u8> = (0..n + lead).map(|_| self.next() as u8).collect();
            Bytes::from(bytes).slice(lead..)
        };
        let spec = QuantSpec::all()[usize::from(bytes(1)[0]) % QuantSpec::all().len()];
        let is_dense = bytes(1)[0].is_multiple_of(5);
        let floats = [DType::F32, DType::F16, DType::BF16][usize::from(bytes(1)[0]) % 3];
        let n_in = if is_dense { n_in } else { n_in.next_multiple_of(spec.group_size()) };
        let rows = n_mats * n_out;
        let (format, parts) = if is_dense {
            let data = bytes(n * floats.size_bytes());
            (WeightFormat::Dense(floats), WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() })
        } else {
            let scale_dtype = if spec.has_biases() { floats } else { DType::U8 };
            let n_scales = rows * (n_in / spec.group_size()) * scale_dtype.size_bytes();
            let biases = if spec.has_biases() { bytes(n_scales) } else { Bytes::new() };
            let parts =
                WeightBytes { data: bytes(rows * spec.packed_bytes(n_in)), scales: bytes(n_scales), biases };
            (WeightFormat::Quantized { spec, scale_dtype }, parts)
        };
        b.upload(HostWeight::new(format, [n_mats, n_out, n_in], parts).ok()?).ok()
    }

    fn vector(&mut self, b: &CpuBackend, n: usize) -> Option<CpuWeight> {
        let values: Vec<f32> = (0..Self::len(&[n]).filter(|n| *n > 0)?).map(|_| self.value()).collect();
        b.upload(HostWeight::from_f32(&values, 1, n).ok()?).ok()
    }

    /// Spans of `n` tokens after sequences of these lengths, or sometimes invalid ones.
    fn spans(&mut self, n: usize, lens: &[usize]) -> Vec<Span> {
        if self.one_in(12) {
            let span =
                |r: &mut Self| Span { slot: r.dim(), start: r.dim(), n_tokens: r.dim(), logits: Logits::All };
            return (0..self.below(4)).map(|_| span(self)).collect();
        }
        let mut left = n;
        let mut spans = Vec::new();
        for (slot, &start) in lens.iter().enumerate() {
            let n_tokens = if slot + 1 == lens.len() { left } else { self.below(left + 1) };
            spans.push(Span {
                slot,
                start,
                n_tokens,
                logits: self.pick(&[Logits::All, Logits::Last, Logits::None]),
            });
            left -= n_tokens;
        }
        spans
    }
}

/// Checks the result of an op that returns a tensor.
fn seen(b: &CpuBackend, y: Result<CpuTensor>) -> Option<bool> {
    let Ok(y) = y else { return Some(false) };
    let mut values = Vec::new();
    b.read(&y, &mut values).unwrap();
    assert_eq!(values.len(), b.shape(&y).iter().product::<usize>());
    Some(true)
}

/// Makes one random call. Returns whether it succeeded; `None` if its inputs could not be made.
fn call(r: &mut Random<'_>, b: &CpuBackend) -> Option<bool> {
    let (n, d, e) = (r.dim(), r.dim(), r.dim());
    let k = r.pick(&[0, 1, 2, 3, 4, 8]);
    let yes = Renormalize::Yes;
    match r.below(24) {
        0 => {
            let w = r.weight(b, [1, e, d])?;
            let i = r.odd(w.n_in());
            seen(b, b.linear(&r.tensor(b, &[n, i])?, &w))
        }
        1 => {
            let m = r.odd(4);
            let w = r.weight(b, [m, e, d])?;
            let i = r.odd(w.n_in());
            let shape = if r.one_in(2) { vec![n, i] } else { vec![n, k, i] };
            seen(b, b.gather_linear(&r.tensor(b, &shape)?, &w, &r.indices(b, &[n, k], m)?))
        }
        2 => {
            let h = r.odd(3);
            let w = r.weight(b, [h, e, d])?;
            seen(b, b.head_linear(&r.tensor(b, &[n, h, w.n_in()])?, &w))
        }
        3 => {
            let gate = r.weight(b, [4, e, d])?;
            let up = if r.one_in(2) { gate.clone() } else { r.weight(b, [4, e, gate.n_in()])? };
            let (x, experts) = (r.tensor(b, &[n, gate.n_in()])?, r.indices(b, &[n, k], 4)?);
            seen(b, b.gather_qmm_swiglu(&x, GateUp::swiglu(&gate, &up), &experts))
        }
        4 => {
            let w = r.weight(b, [4, e, d])?;
            let (x, experts) = (r.tensor(b, &[n, k, w.n_in()])?, r.indices(b, &[n, k], 4)?);
            let weights = r.tensor(b, &[n, k])?;
            seen(b, b.gather_qmm_combine(&x, Down::plain(&w), &experts, &weights))
        }
        5 => {
            let gate = r.weight(b, [1, e, d])?;
            let up = if r.one_in(2) { gate.clone() } else { r.weight(b, [1, e, gate.n_in()])? };
            seen(b, b.qmm_swiglu(&r.tensor(b, &[n, gate.n_in()])?, GateUp::swiglu(&gate, &up)))
        }
        6 => {
            let o = r.odd(d);
            let (x, w) = (r.tensor(b, &[n, d])?, r.vector(b, o)?);
            seen(b, b.rms_norm(&x, &w, r.value()))
        }
        7 => {
            let (x, y, w) = (r.tensor(b, &[n, d])?, r.tensor(b, &[n, d])?, r.vector(b, d)?);
            seen(b, b.add_rms_norm(&x, &y, &w, 1e-5).map(|(sum, _)| sum))
        }
        8 => {
            let (h, dims) = (r.dim(), r.odd(d / 2 * 2));
            let x = r.tensor(b, &[n, h, d])?;
            let step = b.step(&r.spans(n, &[3, 0, 1000])).ok()?;
            let pairing = r.pick(&[RopePairing::Interleaved, RopePairing::HalfSplit]);
            seen(b, b.rope(&x, &step, &Rope::plain(dims, r.value(), pairing)))
        }
        9 | 10 => attention(r, b, d.min(300)),
        11 | 12 => latent_attention(r, b, d.min(300), e.min(70)),
        13 => {
            let k = r.odd(k);
            Some(b.top_k(&r.tensor(b, &[n, d])?, k).is_ok())
        }
        14 => {
            let settings = SoftmaxTopK { top_k: r.odd(k), renormalize: yes };
            seen(b, b.route_softmax_top_k(&r.tensor(b, &[n, d])?, &settings).map(|(_, weights)| weights))
        }
        15 => {
            let (x, len) = (r.tensor(b, &[n, d])?, r.odd(d));
            let bias = r.vector(b, len)?;
            let (n_group, topk_group) = (r.pick(&[0, 1, 2, 4]), r.pick(&[0, 1, 2, 5]));
            let top_k = r.odd(k);
            let s = NoauxTc {
                top_k,
                n_group,
                topk_group,
                renormalize: yes,
                eps: 0.0,
                routed_scaling_factor: 1.5,
            };
            seen(b, b.route_noaux_tc(&x, &bias, &s).map(|(_, weights)| weights))
        }
        16 => {
            let (x, step) = (r.tensor(b, &[n, d])?, b.step(&r.spans(n, &[0, 5])).ok()?);
            seen(b, b.take_logit_rows(&x, &step))
        }
        17 => seen(b, b.slice_last(&r.tensor(b, &[n, d])?, r.dim()..r.dim())),
        18 => {
            let shape = [r.dim(), r.dim(), n];
            let x = r.tensor(b, &[n, d])?;
            seen(b, b.reshape(&x, &shape[..r.below(4)]))
        }
        19 => {
            let rows = r.odd(n);
            seen(b, b.take_last(&r.tensor(b, &[n, d])?, &r.indices(b, &[rows, k], d)?))
        }
        20 => {
            let rows = r.odd(n);
            seen(b, b.weighted_sum(&r.tensor(b, &[n, k, d])?, &r.tensor(b, &[rows, k])?))
        }
        21 => {
            let w = r.weight(b, [1, e, d])?;
            seen(b, b.embed(&w, &r.indices(b, &[n], e)?))
        }
        22 => {
            let (m, i) = (r.odd(1), r.odd(d));
            let (first, second) = (r.weight(b, [m, e, d])?, r.weight(b, [1, n, i])?);
            let w = b.concat_rows(&[&first, &second, &first]).ok()?;
            let rows = r.odd(k);
            let x = r.tensor(b, &[rows, w.n_in()])?;
            seen(b, b.qmm_swiglu(&x, GateUp::swiglu(&w, &w))).and(seen(b, b.linear(&x, &w)))
        }
        _ => {
            let width = r.odd(d);
            let (x, y) = (r.tensor(b, &[n, d])?, r.tensor(b, &[n, width])?);
            let (n_group, topk_group) = (r.odd(2), r.odd(1));
            for y in [
                b.add(&x, &y),
                b.gated(&x, &y, Activation::SwiGlu),
                b.softmax(&x),
                b.sigmoid(&x),
                b.scale(&x, 0.5),
                b.div_by_sum(&x, 0.0),
                b.keep_top_groups(&x, n_group, topk_group),
            ] {
                seen(b, y);
            }
            Some(true)
        }
    }
}

fn spec(kind: CacheKind) -> CacheSpec {
    CacheSpec { kind, format: KvFormat::Native }
}

fn attention(r: &mut Random<'_>, b: &CpuBackend, head_dim: usize) -> Option<bool> {
    let (n_kv_heads, group) = (r.pick(&[1, 2, 3]), r.pick(&[0, 1, 2, 5]));
    let window = r.pick(&[None, Some(1), Some(7)]);
    let kind = match window {
        None => CacheKind::Full { n_kv_heads, head_dim },
        Some(window) => CacheKind::Window { n_kv_heads, head_dim, window },
    };
    let mut cache = b.cache(&spec(kind)).ok()?;
    let (mut lens, mut ok) = ([0; 3], true);
    for _ in 0..r.below(5) {
        let n = if r.one_in(6) { 200 } else { r.below(9) };
        let (rows, width) = (r.odd(n), r.odd(head_dim));
        let q = r.tensor(b, &[rows, n_kv_heads * group, head_dim])?;
        let (k, v) = (r.tensor(b, &[n, n_kv_heads, head_dim])?, r.tensor(b, &[n, n_kv_heads, width])?);
        let Ok(step) = b.step(&r.spans(n, &lens)) else { continue };
        let settings = AttentionSettings { scale: r.value(), window };
        let done =
            b.attention(AttentionInputs { q: &q, k: &k, v: &v, sinks: None }, &mut cache, &step, &settings);
        ok &= settle(r, b, &mut cache, &step, &mut lens, n, done);
    }
    Some(ok)
}

fn latent_attention(r: &mut Random<'_>, b: &CpuBackend, rank: usize, rope_dim: usize) -> Option<bool> {
    let mut cache = b.cache(&spec(CacheKind::Latent { rank, rope_dim })).ok()?;
    let (mut lens, mut ok) = ([0; 3], true);
    for _ in 0..r.below(5) {
        let (n, h) = (if r.one_in(6) { 150 } else { r.below(9) }, r.below(6));
        let (heads, nope) = (r.odd(h), r.pick(&[1, 32, 64]));
        let (q_pe, kv) = (r.tensor(b, &[n, heads, rope_dim])?, r.tensor(b, &[n, rank])?);
        let k_pe = r.tensor(b, &[n, rope_dim])?;
        let Ok(step) = b.step(&r.spans(n, &lens)) else { continue };
        let done = if r.one_in(2) {
            let q_nope = r.tensor(b, &[n, h, rank])?;
            let inputs = MlaInputs { q_nope: &q_nope, q_pe: &q_pe, kv: &kv, k_pe: &k_pe };
            b.latent_attention(inputs, &mut cache, &step, 0.1)
        } else {
            let (embed_q, unembed_out) = (r.weight(b, [h, rank, nope])?, r.weight(b, [h, 16, rank])?);
            let q_nope = r.tensor(b, &[n, h, embed_q.n_in()])?;
            let inputs = MlaInputs { q_nope: &q_nope, q_pe: &q_pe, kv: &kv, k_pe: &k_pe };
            b.mla_attention(
                inputs,
                MlaWeights { embed_q: &embed_q, unembed_out: &unembed_out },
                &mut cache,
                &step,
                0.1,
            )
        };
        ok &= settle(r, b, &mut cache, &step, &mut lens, n, done);
    }
    Some(ok)
}

/// Commits or rolls back a step, then sometimes truncates a sequence.
fn settle(
    r: &mut Random<'_>,
    b: &CpuBackend,
    cache: &mut CpuCache,
    step: &CpuStep,
    lens: &mut [usize; 3],
    n: usize,
    done: Result<CpuTensor>,
) -> bool {
    let ok = seen(b, done) == Some(true) && b.n_tokens(step) == n;
    if ok {
        b.commit(cache, step);
    } else {
        b.rollback(cache, step);
    }
    if r.one_in(4) {
        let (slot, to) = (r.below(4), r.below(20));
        let _ = b.truncate(cache, slot, to);
    }
    if r.one_in(9) {
        let (from, to, len) = (r.below(4), r.below(4), r.below(20));
        let _ = b.fork(cache, from, to, len);
    }
    for (slot, len) in lens.iter_mut().enumerate() {
        // The largest length for which the cache needs no more memory. If there is none, the length stays.
        *len = (0..400).rev().find(|len| b.growth_bytes(cache, slot, *len) == 0).unwrap_or(*len);
    }
    ok
}

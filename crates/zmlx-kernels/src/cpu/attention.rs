//! Causal attention over a growing cache: separate keys and values, or one latent that serves as both.

use super::level::Level;
use super::math::softmax;
use super::matmul::SyncPtr;
use super::pool::{CpuTensor, Shape};
use super::simd::Simd;
use super::simd::scalar::Scalar;
use super::{CpuBackend, lock};
use crate::backend::check_spans;
use crate::error::ensure;
use crate::{Error, KvLayout, MlaInputs, Result, Span};

/// Query rows that one kernel call takes: they share the loads of keys.
const QUERY_ROWS: usize = 4;
/// Cached tokens by whose number a sequence's memory grows.
const GROW_TOKENS: usize = 256;

/// Keys and values of one layer, f32, grown as tokens come.
#[derive(Debug)]
pub struct CpuKvCache {
    layout: KvLayout,
    slots: Vec<Slot>,
}

/// One sequence: per kv head a row of keys per token, and of values unless the latent serves as both.
#[derive(Debug, Default)]
struct Slot {
    n_tokens: usize,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl CpuKvCache {
    pub(super) fn new(layout: KvLayout, n_slots: usize) -> Result<Self> {
        let (n_heads, n_values, dims_ok) = match layout {
            KvLayout::Heads { n_kv_heads, head_dim } => {
                (n_kv_heads, n_kv_heads, n_kv_heads > 0 && head_dim > 0)
            }
            KvLayout::Latent { rank, rope_dim } => (1, 0, rank > 0 && rope_dim > 0),
        };
        ensure(dims_ok && n_slots > 0, "kv_cache", "layout", "no zero dimension", (layout, n_slots))?;
        let slot = || Slot { n_tokens: 0, k: vec![Vec::new(); n_heads], v: vec![Vec::new(); n_values] };
        Ok(Self { layout, slots: (0..n_slots).map(|_| slot()).collect() })
    }

    pub(super) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        let (k_dim, v_dim) = (self.k_dim(), self.v_dim());
        let len = self.slots.len();
        let slot = self.slots.get_mut(slot).ok_or(Error::IndexOutOfRange {
            op: "truncate",
            what: "slot",
            index: slot,
            len,
        })?;
        ensure(
            n_tokens <= slot.n_tokens,
            "truncate",
            "n_tokens",
            format_args!("at most {}", slot.n_tokens),
            n_tokens,
        )?;
        slot.n_tokens = n_tokens;
        slot.k.iter_mut().for_each(|k| k.truncate(n_tokens * k_dim));
        slot.v.iter_mut().for_each(|v| v.truncate(n_tokens * v_dim));
        Ok(())
    }

    /// Floats of a key.
    fn k_dim(&self) -> usize {
        match self.layout {
            KvLayout::Heads { head_dim, .. } => head_dim,
            KvLayout::Latent { rank, rope_dim } => rank + rope_dim,
        }
    }

    /// Floats of a value: with a latent, the leading ones of the key.
    fn v_dim(&self) -> usize {
        match self.layout {
            KvLayout::Heads { head_dim, .. } => head_dim,
            KvLayout::Latent { rank, .. } => rank,
        }
    }

    fn n_heads(&self) -> usize {
        self.slots[0].k.len()
    }

    fn check(&self, op: &'static str, spans: &[Span], n_tokens: usize) -> Result<()> {
        check_spans(op, spans, n_tokens)?;
        for (i, span) in spans.iter().enumerate() {
            let len = self.slots.len();
            let slot = self.slots.get(span.slot).ok_or(Error::IndexOutOfRange {
                op,
                what: "slot",
                index: span.slot,
                len,
            })?;
            // Two spans of one slot would have to follow each other; nothing needs that.
            let repeated = spans[..i].iter().any(|s| s.slot == span.slot);
            ensure(!repeated, op, "spans", "each slot once", span.slot)?;
            ensure(
                span.start == slot.n_tokens,
                op,
                "span",
                format_args!("to start at the {} tokens cached in slot {}", slot.n_tokens, span.slot),
                span.start,
            )?;
        }
        Ok(())
    }

    /// Appends each token's key, made of `keys` side by side, and its value.
    fn append(&mut self, spans: &[Span], keys: &[&CpuTensor], values: Option<&CpuTensor>) {
        let n_heads = self.n_heads();
        let (k_dim, v_dim) = (self.k_dim(), self.v_dim());
        let mut t = 0;
        for span in spans {
            let slot = &mut self.slots[span.slot];
            let reserve = |v: &mut Vec<f32>, dim: usize| {
                if v.capacity() - v.len() < span.n_tokens * dim {
                    v.reserve_exact((span.n_tokens.next_multiple_of(GROW_TOKENS) + v.len() / dim / 2) * dim);
                }
            };
            slot.k.iter_mut().for_each(|k| reserve(k, k_dim));
            slot.v.iter_mut().for_each(|v| reserve(v, v_dim));
            for _ in 0..span.n_tokens {
                for h in 0..n_heads {
                    for key in keys {
                        let dim = key.shape.last();
                        slot.k[h].extend_from_slice(&key.values()[(t * n_heads + h) * dim..][..dim]);
                    }
                    if let Some(v) = values {
                        slot.v[h].extend_from_slice(&v.values()[(t * n_heads + h) * v_dim..][..v_dim]);
                    }
                }
                t += 1;
            }
            slot.n_tokens += span.n_tokens;
        }
    }
}

/// A few query rows against one head's cache.
struct Block<'a> {
    /// `n_rows ≤ QUERY_ROWS` rows of `k_dim`.
    q: [&'a [f32]; QUERY_ROWS],
    /// Visible positions of each row.
    limits: [usize; QUERY_ROWS],
    n_rows: usize,
    k: &'a [f32],
    /// Rows `k_dim` or `v_dim` long.
    v: &'a [f32],
    v_stride: usize,
    v_dim: usize,
    scale: f32,
}

type AttendFn = unsafe fn(block: &Block<'_>, scores: &mut [f32], out: &mut [&mut [f32]]);

fn attend(level: Level) -> AttendFn {
    match level {
        Level::Scalar => attend_block::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => attend_block::<super::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => attend_block::<super::simd::avx512::Avx512<false>>,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => attend_block::<super::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

/// # Safety
/// The processor has the instructions of `S`.
unsafe fn attend_block<S: Simd>(b: &Block<'_>, scores: &mut [f32], out: &mut [&mut [f32]]) {
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            let k_dim = b.q[0].len();
            let n_positions = b.limits.into_iter().max().unwrap_or(0);
            let whole = k_dim / S::LANES * S::LANES;
            for (pos, k) in b.k.chunks_exact(k_dim).take(n_positions).enumerate() {
                let mut sums = [s.splat(0.0); QUERY_ROWS];
                for i in (0..whole).step_by(S::LANES) {
                    // SAFETY: i + LANES ≤ k_dim, the length of k and of each query.
                    unsafe {
                        let key = s.load(k.as_ptr().add(i));
                        for (sum, q) in sums.iter_mut().zip(&b.q) {
                            *sum = s.fma(key, s.load(q.as_ptr().add(i)), *sum);
                        }
                    }
                }
                for r in 0..b.n_rows {
                    let rest: f32 = (whole..k_dim).map(|i| k[i] * b.q[r][i]).sum();
                    scores[r * n_positions + pos] = b.scale * (s.sum(sums[r]) + rest);
                }
            }
            for (r, out) in out.iter_mut().enumerate() {
                let p = &mut scores[r * n_positions..][..b.limits[r]];
                softmax(p);
                out.fill(0.0);
                // Four positions per pass over the output row.
                for (pos, p) in p.chunks(4).enumerate() {
                    let v: [&[f32]; 4] = std::array::from_fn(|i| {
                        &b.v[(4 * pos + i.min(p.len() - 1)) * b.v_stride..][..b.v_dim]
                    });
                    let p: [f32; 4] = std::array::from_fn(|i| p.get(i).copied().unwrap_or(0.0));
                    for (i, out) in out.iter_mut().enumerate() {
                        *out += (p[0] * v[0][i] + p[1] * v[1][i]) + (p[2] * v[2][i] + p[3] * v[3][i]);
                    }
                }
            }
        },
    );
}

impl CpuBackend {
    pub(super) fn attention_heads(
        &self,
        [q, k, v]: [&CpuTensor; 3],
        cache: &mut CpuKvCache,
        spans: &[Span],
        scale: f32,
    ) -> Result<CpuTensor> {
        const OP: &str = "attention";
        let KvLayout::Heads { n_kv_heads, head_dim } = cache.layout else {
            return Err(Error::Precondition {
                op: OP,
                what: "cache",
                want: "keys and values".into(),
                got: format!("{:?}", cache.layout),
            });
        };
        let n_tokens = q.dims()[0];
        let kv_shape = [n_tokens, n_kv_heads, head_dim];
        ensure(
            k.dims() == kv_shape && v.dims() == kv_shape,
            OP,
            "k, v",
            format_args!("{kv_shape:?}"),
            (k, v),
        )?;
        self.attend_spans(OP, q, cache, spans, scale, |cache| cache.append(spans, &[k], Some(v)))
    }

    pub(super) fn attention_latent(
        &self,
        inputs: MlaInputs<'_, CpuTensor>,
        cache: &mut CpuKvCache,
        spans: &[Span],
        scale: f32,
    ) -> Result<CpuTensor> {
        const OP: &str = "latent_attention";
        let KvLayout::Latent { rank, rope_dim } = cache.layout else {
            return Err(Error::Precondition {
                op: OP,
                what: "cache",
                want: "a latent".into(),
                got: format!("{:?}", cache.layout),
            });
        };
        let MlaInputs { q_nope, q_pe, kv, k_pe } = inputs;
        let &[n_tokens, n_heads, _] = q_nope.dims() else {
            return ensure(false, OP, "q_nope", "[n, n_heads, rank]", q_nope).map(|()| unreachable!());
        };
        ensure(
            q_nope.dims() == [n_tokens, n_heads, rank],
            OP,
            "q_nope",
            format_args!("[n, n_heads, {rank}]"),
            q_nope,
        )?;
        ensure(
            q_pe.dims() == [n_tokens, n_heads, rope_dim],
            OP,
            "q_pe",
            format_args!("[n, n_heads, {rope_dim}]"),
            q_pe,
        )?;
        ensure(kv.dims() == [n_tokens, rank], OP, "kv", format_args!("[n, {rank}]"), kv)?;
        ensure(k_pe.dims() == [n_tokens, rope_dim], OP, "k_pe", format_args!("[n, {rope_dim}]"), k_pe)?;
        let mut q = self.floats.take(n_tokens * n_heads * (rank + rope_dim));
        for ((q, nope), pe) in q
            .chunks_exact_mut(rank + rope_dim)
            .zip(q_nope.values().chunks_exact(rank))
            .zip(q_pe.values().chunks_exact(rope_dim))
        {
            q[..rank].copy_from_slice(nope);
            q[rank..].copy_from_slice(pe);
        }
        let q = CpuTensor::new(Shape::new(OP, &[n_tokens, n_heads, rank + rope_dim])?, q);
        self.attend_spans(OP, &q, cache, spans, scale, |cache| cache.append(spans, &[kv, k_pe], None))
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the op's arguments and what differs between the two layouts"
    )]
    fn attend_spans(
        &self,
        op: &'static str,
        q: &CpuTensor,
        cache: &mut CpuKvCache,
        spans: &[Span],
        scale: f32,
        append: impl FnOnce(&mut CpuKvCache),
    ) -> Result<CpuTensor> {
        let (k_dim, v_dim, n_kv_heads) = (cache.k_dim(), cache.v_dim(), cache.n_heads());
        let &[n_tokens, n_heads, dim] = q.dims() else {
            return ensure(false, op, "q", "three dimensions", q).map(|()| unreachable!());
        };
        ensure(
            dim == k_dim && n_heads.is_multiple_of(n_kv_heads),
            op,
            "q",
            format_args!("[n, a multiple of {n_kv_heads}, {k_dim}]"),
            q,
        )?;
        cache.check(op, spans, n_tokens)?;
        append(cache);
        let cache = &*cache;
        let group = n_heads / n_kv_heads;
        let mut out = self.floats.take(n_tokens * n_heads * v_dim);
        let out_ptr = SyncPtr::new(&mut out);
        let attend = attend(self.level);
        let blocks_of = |span: &Span| (span.n_tokens * group).div_ceil(QUERY_ROWS);
        let n_jobs: usize = spans.iter().map(|s| blocks_of(s) * n_kv_heads).sum();
        let next = std::sync::atomic::AtomicUsize::new(0);
        lock(&self.team).run(&|m| {
            let mut scratch = lock(&self.scratch[m.idx()]);
            loop {
                // The last blocks see the most positions: they go first, so that the short ones fill the gaps.
                let job = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if job >= n_jobs {
                    return;
                }
                let mut job = n_jobs - 1 - job;
                let mut first_token = 0;
                let mut spans = spans.iter();
                let span = loop {
                    let span = spans.next().expect("jobs are counted from the spans");
                    let n = blocks_of(span) * n_kv_heads;
                    if job < n {
                        break span;
                    }
                    job -= n;
                    first_token += span.n_tokens;
                };
                let (block, kv_head) = (job / n_kv_heads, job % n_kv_heads);
                let slot = &cache.slots[span.slot];
                let rows = block * QUERY_ROWS..(block * QUERY_ROWS + QUERY_ROWS).min(span.n_tokens * group);
                // Row r is token r / group, head r % group of this kv head's group.
                let at = |r: usize| (first_token + r / group) * n_heads + kv_head * group + r % group;
                let row = |i: usize| (rows.start + i).min(rows.end - 1);
                let limits = std::array::from_fn(|i| span.start + row(i) / group + 1);
                let (v, v_stride) = match slot.v.get(kv_head) {
                    Some(v) => (v, v_dim),
                    None => (&slot.k[kv_head], k_dim),
                };
                let b = Block {
                    q: std::array::from_fn(|i| &q.values()[at(row(i)) * k_dim..][..k_dim]),
                    limits,
                    n_rows: rows.len(),
                    k: &slot.k[kv_head],
                    v,
                    v_stride,
                    v_dim,
                    scale,
                };
                let n_scores = rows.len() * limits[QUERY_ROWS - 1];
                if scratch.attention.len() < n_scores {
                    // Grown by half as much again, so that a growing context rarely allocates.
                    scratch.attention.resize(n_scores + n_scores / 2 + 1024, 0.0);
                }
                let mut empty: [&mut [f32]; QUERY_ROWS] = Default::default();
                for (i, out) in empty[..rows.len()].iter_mut().enumerate() {
                    // SAFETY: each row of the output belongs to one block.
                    *out = unsafe { out_ptr.slice(at(rows.start + i) * v_dim, v_dim) };
                }
                // SAFETY: the level was detected when the backend was made.
                unsafe { attend(&b, &mut scratch.attention, &mut empty[..rows.len()]) };
            }
        });
        Ok(CpuTensor::new(Shape::new(op, &[n_tokens, n_heads, v_dim])?, out))
    }
}

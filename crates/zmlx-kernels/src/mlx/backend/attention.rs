//! Key/value caches and attention, sequence by sequence, as mlx-lm computes one.

use mlx_rs::fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention};
use mlx_rs::{Array, Dtype, ops};

use super::{MlxWeight, dims, f, scalar};
use crate::check::{check_spans, ensure};
use crate::mlx::raw::{self, Product};
use crate::{Error, KvLayout, MlaInputs, MlaWeights, Result, RopeFrequencies, Span};

/// Positions that a cache grows by: mlx-lm's step.
const STEP: usize = 256;

/// Keys and values of one layer: per sequence two arrays `[1, n_kv_heads, capacity, width]`.
#[derive(Clone, Debug)]
pub struct MlxKvCache {
    layout: KvLayout,
    slots: Vec<Slot>,
}

/// One sequence: keys and values, or the latent and the rotated key.
#[derive(Clone, Debug, Default)]
struct Slot {
    n_tokens: usize,
    stored: Option<[Array; 2]>,
}

impl Slot {
    /// The slot with `new` `[1, heads, n, width]` behind its tokens.
    fn append(&self, op: &'static str, new: [&Array; 2]) -> Result<Self> {
        let n = new[0].shape()[2] as usize;
        let n_tokens = self.n_tokens + n;
        let one = |stored: Option<&Array>, new: &Array| {
            let mut shape = new.shape().to_vec();
            let capacity = stored.map_or(0, |a| a.shape()[2] as usize);
            let grown;
            let room = match stored {
                Some(stored) if n_tokens <= capacity => stored,
                _ => {
                    shape[2] = (n.div_ceil(STEP) * STEP) as i32;
                    let zeros = ops::zeros_dtype(&shape, new.dtype()).map_err(f(op))?;
                    grown = match stored {
                        None => zeros,
                        Some(stored) => {
                            let used = first(op, stored, self.n_tokens)?;
                            ops::concatenate(&[&used, &zeros], 2).map_err(f(op))?
                        }
                    };
                    &grown
                }
            };
            let mut stop = new.shape().to_vec();
            stop[2] = n_tokens as i32;
            raw::slice_update(op, room, new, &[0, 0, self.n_tokens as i32, 0], &stop)
        };
        let [a, b] = match &self.stored {
            Some([a, b]) => [Some(a), Some(b)],
            None => [None, None],
        };
        Ok(Self { n_tokens, stored: Some([one(a, new[0])?, one(b, new[1])?]) })
    }

    /// What is stored of its tokens.
    fn fetch(&self, op: &'static str) -> Result<[Array; 2]> {
        match &self.stored {
            Some([a, b]) => Ok([first(op, a, self.n_tokens)?, first(op, b, self.n_tokens)?]),
            None => ensure(false, op, "cache", "a sequence with tokens", 0).map(|()| unreachable!()),
        }
    }
}

/// The first `n` positions of `[1, heads, capacity, width]`.
fn first(op: &'static str, x: &Array, n: usize) -> Result<Array> {
    let mut stop = x.shape().to_vec();
    if stop[2] as usize == n {
        return Ok(x.clone());
    }
    stop[2] = n as i32;
    raw::slice(op, x, &[0; 4], &stop)
}

impl MlxKvCache {
    pub(super) fn new(layout: KvLayout, n_slots: usize) -> Result<Self> {
        let widths = match layout {
            KvLayout::Heads { n_kv_heads, head_dim } => [n_kv_heads, head_dim],
            KvLayout::Latent { rank, rope_dim } => [rank, rope_dim],
        };
        ensure(widths.iter().all(|w| *w > 0), "kv_cache", "layout", "no zero dimension", layout)?;
        ensure(n_slots > 0, "kv_cache", "n_slots", "at least one", n_slots)?;
        Ok(Self { layout, slots: vec![Slot::default(); n_slots] })
    }

    pub(super) fn truncate(&mut self, slot: usize, n_tokens: usize) -> Result<()> {
        const OP: &str = "truncate";
        let len = self.slots.len();
        let out_of_range = Error::IndexOutOfRange { op: OP, what: "slot", index: slot, len };
        let slot = self.slots.get_mut(slot).ok_or(out_of_range)?;
        let had = slot.n_tokens;
        ensure(n_tokens <= had, OP, "n_tokens", format_args!("at most {had}"), n_tokens)?;
        slot.n_tokens = n_tokens;
        if n_tokens == 0 {
            slot.stored = None;
        }
        Ok(())
    }

    /// Everything that is stored.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.slots.iter().flat_map(|s| s.stored.iter().flatten())
    }

    fn check_spans(&self, op: &'static str, spans: &[Span], n_tokens: usize) -> Result<()> {
        check_spans(op, spans, n_tokens)?;
        for (i, span) in spans.iter().enumerate() {
            let Some(slot) = self.slots.get(span.slot) else {
                let len = self.slots.len();
                return Err(Error::IndexOutOfRange { op, what: "slot", index: span.slot, len });
            };
            let had = slot.n_tokens;
            ensure(span.start == had, op, "spans", format_args!("to start at {had}"), span)?;
            let once = spans[..i].iter().all(|s| s.slot != span.slot);
            ensure(once, op, "spans", "each slot once", span)?;
        }
        Ok(())
    }

    /// `attend(slot, rows)` for each span's sequence, in order; the sequences are exchanged when all went well.
    fn for_spans(
        &mut self,
        op: &'static str,
        spans: &[Span],
        mut attend: impl FnMut(&Slot, &Rows) -> Result<(Slot, Array)>,
    ) -> Result<Array> {
        let mut done = Vec::with_capacity(spans.len());
        let mut results = Vec::with_capacity(spans.len());
        let mut start = 0;
        for span in spans.iter().filter(|s| s.n_tokens > 0) {
            let rows = Rows { op, start, n: span.n_tokens, whole: spans.len() == 1 };
            let (slot, y) = attend(&self.slots[span.slot], &rows)?;
            // Back to [n, heads, width].
            let y = y.transpose_axes(&[0, 2, 1, 3]).and_then(|y| y.squeeze_axes(&[0])).map_err(f(op))?;
            done.push((span.slot, slot));
            results.push(y);
            start += span.n_tokens;
        }
        let y = if results.len() == 1 {
            results.remove(0)
        } else {
            ops::concatenate(&results, 0).map_err(f(op))?
        };
        for (i, slot) in done {
            self.slots[i] = slot;
        }
        Ok(y)
    }
}

/// The rows of a span within a batch.
pub(super) struct Rows {
    op: &'static str,
    start: usize,
    n: usize,
    whole: bool,
}

impl Rows {
    /// The rows of the spans that follow each other.
    pub(super) fn of(op: &'static str, spans: &[Span]) -> Vec<Self> {
        let mut start = 0;
        let rows = |s: &Span| {
            let rows = Self { op, start, n: s.n_tokens, whole: spans.len() == 1 };
            start += s.n_tokens;
            rows
        };
        spans.iter().map(rows).collect()
    }

    /// `[1, heads, n, width]` of these rows of `[.., heads, width]`; a view where the batch is one span.
    pub(super) fn heads(&self, x: &Array) -> Result<Array> {
        let part;
        let x = if self.whole {
            x
        } else {
            let mut start = vec![0; x.ndim()];
            let mut stop = x.shape().to_vec();
            (start[0], stop[0]) = (self.start as i32, (self.start + self.n) as i32);
            part = raw::slice(self.op, x, &start, &stop)?;
            &part
        };
        x.expand_dims(0).and_then(|x| x.transpose_axes(&[0, 2, 1, 3])).map_err(f(self.op))
    }
}

/// `attention`: one `mx.fast.scaled_dot_product_attention` per sequence.
pub(super) fn heads(
    [q, k, v]: [&Array; 3],
    cache: &mut MlxKvCache,
    spans: &[Span],
    scale: f32,
) -> Result<Array> {
    const OP: &str = "attention";
    let KvLayout::Heads { n_kv_heads, head_dim } = cache.layout else {
        return ensure(false, OP, "cache", "keys and values of heads", cache.layout).map(|()| unreachable!());
    };
    let shape = dims(q);
    let fits =
        shape.len() == 3 && shape[2] == head_dim && shape[1] > 0 && shape[1].is_multiple_of(n_kv_heads);
    ensure(fits, OP, "q", format_args!("[n, a multiple of {n_kv_heads}, {head_dim}]"), &shape)?;
    let want = [shape[0], n_kv_heads, head_dim];
    ensure(dims(k) == want, OP, "k", format_args!("{want:?}"), dims(k))?;
    ensure(dims(v) == want, OP, "v", format_args!("{want:?}"), dims(v))?;
    cache.check_spans(OP, spans, shape[0])?;
    if shape[0] == 0 {
        return Ok(q.clone());
    }
    cache.for_spans(OP, spans, |slot, rows| {
        let slot = slot.append(OP, [&rows.heads(k)?, &rows.heads(v)?])?;
        let [keys, values] = slot.fetch(OP)?;
        let mask = (rows.n > 1).then_some(Mask::Causal);
        let y = scaled_dot_product_attention(rows.heads(q)?, &keys, &values, scale, mask, None);
        Ok((slot, y.map_err(f(OP))?))
    })
}

/// `latent_attention`, and with weights `mla_attention`.
///
/// As mlx-lm: the scores of the rotated parts are a product of their own and enter attention as its additive mask.
/// With weights, one token goes into latent space, several expand keys and values out of it.
pub(super) fn latent(
    inputs: MlaInputs<'_, Array>,
    weights: Option<MlaWeights<'_, MlxWeight>>,
    cache: &mut MlxKvCache,
    spans: &[Span],
    scale: f32,
) -> Result<Array> {
    const OP: &str = "latent_attention";
    let KvLayout::Latent { rank, rope_dim } = cache.layout else {
        return ensure(false, OP, "cache", "latents", cache.layout).map(|()| unreachable!());
    };
    let shape = dims(inputs.q_nope);
    let fits = shape.len() == 3 && shape[1] > 0;
    ensure(fits, OP, "q_nope", "[n, n_heads, width]", &shape)?;
    let (n, n_heads) = (shape[0], shape[1]);
    let mut v_dim = rank;
    match &weights {
        None => ensure(shape[2] == rank, OP, "q_nope", format_args!("[{n}, {n_heads}, {rank}]"), &shape)?,
        Some(w) => {
            let got = [w.embed_q.n_mats(), w.embed_q.n_out(), w.embed_q.n_in()];
            let want = [n_heads, rank, shape[2]];
            ensure(got == want, OP, "embed_q", format_args!("{want:?}"), got)?;
            let got = [w.unembed_out.n_mats(), w.unembed_out.n_in()];
            ensure(got == [n_heads, rank], OP, "unembed_out", format_args!("{n_heads} × [.., {rank}]"), got)?;
            v_dim = w.unembed_out.n_out();
        }
    }
    for (what, x, want) in [
        ("q_pe", inputs.q_pe, vec![n, n_heads, rope_dim]),
        ("kv", inputs.kv, vec![n, rank]),
        ("k_pe", inputs.k_pe, vec![n, rope_dim]),
    ] {
        ensure(dims(x) == want, OP, what, format_args!("{want:?}"), dims(x))?;
    }
    cache.check_spans(OP, spans, n)?;
    if n == 0 {
        return super::zeros(OP, &[n, n_heads, v_dim], inputs.q_nope.dtype());
    }
    // The one head of the latent and of the rotated key.
    let one_head = |x: &Array| x.expand_dims(1).map_err(f(OP));
    let (kv, k_pe) = (one_head(inputs.kv)?, one_head(inputs.k_pe)?);
    cache.for_spans(OP, spans, |slot, rows| {
        let n_before = slot.n_tokens;
        let slot = slot.append(OP, [&rows.heads(&kv)?, &rows.heads(&k_pe)?])?;
        let [kv, k_pe] = slot.fetch(OP)?;
        let q_pe = rows.heads(inputs.q_pe)?;
        let scores = q_pe
            .multiply(scalar(scale, q_pe.dtype())?)
            .and_then(|q| q.matmul(&k_pe.swap_axes(-1, -2)?))
            .map_err(f(OP))?;
        let scores = if rows.n > 1 { causal(&scores, n_before, rows.n)? } else { scores };
        let q_nope = rows.heads(inputs.q_nope)?;
        let attend = |q: &Array, k: &Array, v: &Array| {
            scaled_dot_product_attention(q, k, v, scale, Mask::Array(&scores), None).map_err(f(OP))
        };
        let y = match &weights {
            None => attend(&q_nope, &kv, &kv)?,
            Some(w) if rows.n == 1 => {
                let q = w.embed_q.matmul(OP, &q_nope, Product::Transposed)?;
                w.unembed_out.matmul(OP, &attend(&q, &kv, &kv)?, Product::Transposed)?
            }
            Some(w) => {
                let keys = w.embed_q.matmul(OP, &kv, Product::Plain)?;
                let values = w.unembed_out.matmul(OP, &kv, Product::Transposed)?;
                attend(&q_nope, &keys, &values)?
            }
        };
        Ok((slot, y))
    })
}

/// Scores `[1, heads, n, n_before + n]` with those of later positions at the smallest finite number.
fn causal(scores: &Array, n_before: usize, n: usize) -> Result<Array> {
    const OP: &str = "latent_attention";
    let lowest = match scores.dtype() {
        Dtype::Float16 => half::f16::MIN.to_f32(),
        Dtype::Bfloat16 => half::bf16::MIN.to_f32(),
        _ => f32::MIN,
    };
    let (start, end) = (n_before as i32, (n_before + n) as i32);
    let mask = || {
        let of_keys = Array::arange::<i32, i32>(None, end, None)?.expand_dims(0)?;
        let of_queries = Array::arange::<i32, i32>(start, end, None)?.expand_dims(1)?;
        of_queries.ge(&of_keys)
    };
    let lowest = scalar(lowest, scores.dtype())?;
    mask().and_then(|mask| ops::select(&mask, scores, &lowest)).map_err(f(OP))
}

/// The rotated dimensions times the rope's scale, rounded to the type of `x` as mlx-lm does before it rotates.
fn scaled(x: &Array, rope: &crate::Rope, width: usize) -> Result<Array> {
    if rope.scale == 1.0 {
        return Ok(x.clone());
    }
    let mut factors = vec![rope.scale; rope.dims];
    factors.resize(width, 1.0);
    let factors = Array::from_slice(&factors, &[width as i32]).as_dtype(x.dtype());
    factors.and_then(|factors| x.multiply(factors)).map_err(f("rope"))
}

/// `rope`: one `mx.fast.rope` per sequence.
pub(super) fn rope(x: &Array, spans: &[Span], rope: &crate::Rope) -> Result<Array> {
    const OP: &str = "rope";
    let shape = dims(x);
    let fits = shape.len() == 3 && shape[1] > 0;
    ensure(fits, OP, "x", "[n, n_heads, d]", &shape)?;
    rope.check(OP, shape[2])?;
    check_spans(OP, spans, shape[0])?;
    let fits = spans.iter().all(|s| i32::try_from(s.start + s.n_tokens).is_ok());
    ensure(fits, OP, "spans", "positions below 2^31", spans)?;
    if shape[0] == 0 {
        return Ok(x.clone());
    }
    let traditional = rope.pairing == crate::RopePairing::Interleaved;
    // As mlx-lm: powers are computed by the op itself; other frequencies are given to it as their reciprocals, in f32.
    let (base, scale, periods) = match &rope.frequencies {
        RopeFrequencies::Powers { theta, position_scale } => (Some(*theta), *position_scale, None),
        RopeFrequencies::Given(given) => {
            let periods: Vec<f32> = given.iter().map(|f| f.recip() as f32).collect();
            (None, 1.0, Some(Array::from_slice(&periods, &[periods.len() as i32])))
        }
    };
    let x = &scaled(x, rope, shape[2])?;
    let mut parts = Vec::with_capacity(spans.len());
    for (span, rows) in spans.iter().zip(Rows::of(OP, spans)).filter(|(s, _)| s.n_tokens > 0) {
        let dims = rope.dims as i32;
        let heads = rows.heads(x)?;
        let offset = span.start as i32;
        let y = mlx_rs::fast::rope(&heads, dims, traditional, base, scale, offset, periods.as_ref());
        let y = y.and_then(|y| y.transpose_axes(&[0, 2, 1, 3])?.squeeze_axes(&[0]));
        parts.push(y.map_err(f(OP))?);
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    ops::concatenate(&parts, 0).map_err(f(OP))
}

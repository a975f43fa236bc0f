//! Attention, sequence by sequence, as mlx-lm computes one.

use mlx_rs::fast::ScaledDotProductAttentionMask as Mask;
use mlx_rs::{Array, Dtype, ops};

use super::arrays::{dims, scalar, vector, zeros};
use super::cache::{MlxCache, Sequence, without_first};
use super::step::MlxStep;
use super::{MlxWeight, f};
use crate::check::ensure;
use crate::mlx::Gpu;
use crate::mlx::raw::{self, Product};
use crate::{
    AttentionInputs, AttentionSettings, CacheKind, MlaInputs, MlaWeights, Result, RopeFrequencies, Span,
};

/// `attend(sequence, rows)` for each span's sequence, in order.
fn for_spans(
    op: &'static str,
    cache: &mut MlxCache,
    spans: &[Span],
    mut attend: impl FnMut(&mut Sequence, &Rows) -> Result<Array>,
) -> Result<Array> {
    let mut results = Vec::with_capacity(spans.len());
    let mut start = 0;
    for span in spans.iter().filter(|s| s.n_tokens > 0) {
        let rows = Rows { op, start, n: span.n_tokens, whole: spans.len() == 1 };
        let y = attend(cache.sequence(span.slot)?, &rows)?;
        // Back to [n, heads, width].
        let y = y.transpose_axes(&[0, 2, 1, 3]).and_then(|y| y.squeeze_axes(&[0])).map_err(f(op))?;
        results.push(y);
        start += span.n_tokens;
    }
    if results.len() == 1 {
        return Ok(results.remove(0));
    }
    ops::concatenate(&results, 0).map_err(f(op))
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

/// Heads, their width and the window of a cache of keys and values.
fn kind(
    op: &'static str,
    cache: &MlxCache,
    settings: &AttentionSettings,
) -> Result<(usize, usize, Option<usize>)> {
    let (n_kv_heads, head_dim, window) = match cache.kind() {
        CacheKind::Full { n_kv_heads, head_dim } => (n_kv_heads, head_dim, None),
        CacheKind::Window { n_kv_heads, head_dim, window } => (n_kv_heads, head_dim, Some(window)),
        _ => return ensure(false, op, "cache", "keys and values", cache.kind()).map(|()| unreachable!()),
    };
    ensure(
        settings.window == window,
        op,
        "window",
        format_args!("that of the cache, {window:?}"),
        settings.window,
    )?;
    Ok((n_kv_heads, head_dim, window))
}

/// Attention of a span's queries to what is stored of its sequence, the span's own tokens the last of it.
fn attend(
    op: &'static str,
    q: &Array,
    [keys, values]: [Array; 2],
    (sequence, n): (&Sequence, usize),
    (scale, window, sinks): (f32, Option<usize>, Option<&Array>),
) -> Result<Array> {
    let (n_before, n_gone) = (sequence.n_tokens(), sequence.n_gone());
    let Some(window) = window.filter(|window| n_before + n > *window) else {
        let mask = (n > 1).then_some(Mask::Causal);
        return raw::attention(op, [q, &keys, &values], scale, mask, sinks);
    };
    // The first query's window begins here.
    let from = (n_before + 1).saturating_sub(window);
    let [keys, values] = [keys, values].map(|x| without_first(op, &x, from - n_gone));
    let (keys, values) = (keys?, values?);
    // One query sees all that is left.
    let mask = (n > 1).then(|| windowed([from, n_before, n_before + n], window));
    let mask = mask.transpose().map_err(f(op))?;
    let mask = mask.as_ref().map(Mask::Array);
    raw::attention(op, [q, &keys, &values], scale, mask, sinks)
}

/// Which keys from position `from` to `end` queries from `start` on see: those of their window.
fn windowed(
    [from, start, end]: [usize; 3],
    window: usize,
) -> std::result::Result<Array, mlx_rs::error::Exception> {
    let positions = |from: usize| Array::arange::<i32, i32>(from as i32, end as i32, None);
    let (of_keys, of_queries) = (positions(from)?.expand_dims(0)?, positions(start)?.expand_dims(1)?);
    let oldest = of_queries.subtract(Array::from_int(window as i32))?;
    of_queries.ge(&of_keys)?.logical_and(of_keys.gt(&oldest)?)
}

/// `attention`: one `mx.fast.scaled_dot_product_attention` per sequence.
pub(super) fn heads(
    inputs: AttentionInputs<'_, Array, MlxWeight>,
    cache: &mut MlxCache,
    step: &MlxStep,
    settings: &AttentionSettings,
) -> Result<Array> {
    const OP: &str = "attention";
    let (n_kv_heads, head_dim, window) = kind(OP, cache, settings)?;
    let AttentionInputs { q, k, v, sinks } = inputs;
    let shape = dims(q);
    check_queries(OP, &shape, (n_kv_heads, head_dim))?;
    let want = [shape[0], n_kv_heads, head_dim];
    ensure(dims(k) == want, OP, "k", format_args!("{want:?}"), dims(k))?;
    ensure(dims(v) == want, OP, "v", format_args!("{want:?}"), dims(v))?;
    step.check(OP, "q", q)?;
    let sinks = sinks.map(|sinks| sinks.vector(OP, shape[1])?.as_dtype(q.dtype()).map_err(f(OP)));
    let sinks = sinks.transpose()?;
    cache.check(OP, step.spans())?;
    if shape[0] == 0 {
        return Ok(q.clone());
    }
    for_spans(OP, cache, step.spans(), |sequence, rows| {
        let stored = sequence.append(OP, [&rows.heads(k)?, &rows.heads(v)?])?;
        let settings = (settings.scale, window, sinks.as_ref());
        attend(OP, &rows.heads(q)?, stored, (sequence, rows.n), settings)
    })
}

/// `attention_shared`: as [`heads`], on what is there.
pub(super) fn shared(
    q: &Array,
    cache: &MlxCache,
    step: &MlxStep,
    settings: &AttentionSettings,
) -> Result<Array> {
    const OP: &str = "attention_shared";
    let (n_kv_heads, head_dim, window) = kind(OP, cache, settings)?;
    let shape = dims(q);
    check_queries(OP, &shape, (n_kv_heads, head_dim))?;
    step.check(OP, "q", q)?;
    cache.check(OP, step.spans())?;
    if shape[0] == 0 {
        return Ok(q.clone());
    }
    // A copy, whose arrays are shared: nothing is written.
    for_spans(OP, &mut cache.clone(), step.spans(), |sequence, rows| {
        let stored = sequence.used(OP, rows.n)?;
        attend(OP, &rows.heads(q)?, stored, (sequence, rows.n), (settings.scale, window, None))
    })
}

fn check_queries(op: &'static str, shape: &[usize], (n_kv_heads, head_dim): (usize, usize)) -> Result<()> {
    let fits = matches!(*shape, [_, n_heads, dim] if dim == head_dim && n_heads > 0 && n_heads.is_multiple_of(n_kv_heads));
    ensure(fits, op, "q", format_args!("[n, a multiple of {n_kv_heads}, {head_dim}]"), shape)
}

/// `latent_attention`, and with weights `mla_attention`.
///
/// As mlx-lm: the scores of the rotated parts are a product of their own and enter attention as its additive mask.
/// With weights, one token goes into latent space, several expand keys and values out of it.
pub(super) fn latent(
    inputs: MlaInputs<'_, Array>,
    weights: Option<MlaWeights<'_, MlxWeight>>,
    cache: &mut MlxCache,
    step: &MlxStep,
    scale: f32,
) -> Result<Array> {
    const OP: &str = "latent_attention";
    let CacheKind::Latent { rank, rope_dim } = cache.kind() else {
        return ensure(false, OP, "cache", "latents", cache.kind()).map(|()| unreachable!());
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
    step.check(OP, "q_nope", inputs.q_nope)?;
    cache.check(OP, step.spans())?;
    if n == 0 {
        return zeros(OP, &[n, n_heads, v_dim], inputs.q_nope.dtype());
    }
    // The one head of the latent and of the rotated key.
    let one_head = |x: &Array| x.expand_dims(1).map_err(f(OP));
    let (kv, k_pe) = (one_head(inputs.kv)?, one_head(inputs.k_pe)?);
    for_spans(OP, cache, step.spans(), |sequence, rows| {
        let n_before = sequence.n_tokens();
        let stored = sequence.append_latents(OP, &[&rows.heads(&kv)?, &rows.heads(&k_pe)?])?;
        let columns = |from: usize, to: usize| {
            let (mut start, mut stop) = ([0; 4], stored.shape().to_vec());
            (start[3], stop[3]) = (from as i32, to as i32);
            raw::slice(OP, &stored, &start, &stop)
        };
        let (kv, k_pe) = (columns(0, rank)?, columns(rank, rank + rope_dim)?);
        let q_pe = rows.heads(inputs.q_pe)?;
        let scores = q_pe
            .multiply(scalar(scale, q_pe.dtype())?)
            .and_then(|q| q.matmul(&k_pe.swap_axes(-1, -2)?))
            .map_err(f(OP))?;
        let scores = if rows.n > 1 { causal(&scores, n_before, rows.n)? } else { scores };
        let q_nope = rows.heads(inputs.q_nope)?;
        let attend = |q: &Array, k: &Array, v: &Array| {
            raw::attention(OP, [q, k, v], scale, Some(Mask::Array(&scores)), None)
        };
        match &weights {
            None => attend(&q_nope, &kv, &kv),
            Some(w) if rows.n == 1 => {
                let q = w.embed_q.matmul(OP, &q_nope, Product::Transposed)?;
                w.unembed_out.matmul(OP, &attend(&q, &kv, &kv)?, Product::Transposed)
            }
            Some(w) => {
                let keys = w.embed_q.matmul(OP, &kv, Product::Plain)?;
                let values = w.unembed_out.matmul(OP, &kv, Product::Transposed)?;
                attend(&q_nope, &keys, &values)
            }
        }
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
    let factors = vector(&factors, &[width as i32], x.dtype())?;
    x.multiply(factors).map_err(f("rope"))
}

/// Frequencies that are no powers, as MLX takes them: their reciprocals, in f32.
pub(super) fn periods(rope: &crate::Rope) -> Option<Array> {
    let RopeFrequencies::Given(given) = &rope.frequencies else { return None };
    let periods: Vec<f32> = given.iter().map(|f| f.recip() as f32).collect();
    Some(Array::from_slice(&periods, &[periods.len() as i32]))
}

/// `rope`: one `mx.fast.rope` per sequence.
///
/// On CUDA, MLX 0.32.2 writes past its memory if heads are parts of wider rows, as those of latent attention are
/// (docs/METAL-PROOF.md): they are made contiguous there.
pub(super) fn rope(x: &Array, step: &MlxStep, rope: &crate::Rope, gpu: Option<Gpu>) -> Result<Array> {
    const OP: &str = "rope";
    let shape = dims(x);
    let fits = shape.len() == 3 && shape[1] > 0;
    ensure(fits, OP, "x", "[n, n_heads, d]", &shape)?;
    rope.check(OP, shape[2])?;
    step.check(OP, "x", x)?;
    let spans = step.spans();
    if shape[0] == 0 {
        return Ok(x.clone());
    }
    // As mlx-lm: powers are computed by the op itself.
    let (base, scale) = match &rope.frequencies {
        RopeFrequencies::Powers { theta, position_scale } => (Some(*theta), *position_scale),
        RopeFrequencies::Given(_) => (None, 1.0),
    };
    let periods = periods(rope);
    let x = &scaled(x, rope, shape[2])?;
    let mut parts = Vec::with_capacity(spans.len());
    for (span, rows) in spans.iter().zip(Rows::of(OP, spans)).filter(|(s, _)| s.n_tokens > 0) {
        let powers = (base, scale, periods.as_ref());
        let mut heads = rows.heads(x)?;
        if gpu == Some(Gpu::Cuda) {
            heads = heads.contiguous().map_err(f(OP))?;
        }
        let y = raw::rope(OP, &heads, rope, powers, span.start as i32)?;
        let y = y.transpose_axes(&[0, 2, 1, 3]).and_then(|y| y.squeeze_axes(&[0]));
        parts.push(y.map_err(f(OP))?);
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    ops::concatenate(&parts, 0).map_err(f(OP))
}

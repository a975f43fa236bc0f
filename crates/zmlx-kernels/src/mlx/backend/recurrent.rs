//! Convolutions and gated delta rules, sequence by sequence, as mlx-lm's ops compute them where there is no Metal kernel.

use mlx_rs::{Array, Dtype, ops};

use super::arrays::{dims, last_width, same_shape, scalar, zeros};
use super::cache::MlxCache;
use super::step::MlxStep;
use super::{MlxWeight, f};
use crate::check::ensure;
use crate::mlx::raw;
use crate::{CacheKind, ConvActivation, ConvWeights, DeltaInputs, DeltaWeights, Result};

/// Tokens of a prompt after which the state is computed: the graph of all of them would be deep.
const EVAL_EVERY: usize = 64;

/// Rows `start..stop` of the first dimension.
fn rows(op: &'static str, x: &Array, start: usize, stop: usize) -> Result<Array> {
    let mut to = x.shape().to_vec();
    if start == 0 && to[0] as usize == stop {
        return Ok(x.clone());
    }
    let mut from = vec![0; to.len()];
    (from[0], to[0]) = (start as i32, stop as i32);
    raw::slice(op, x, &from, &to)
}

fn joined(op: &'static str, mut parts: Vec<Array>) -> Result<Array> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    ops::concatenate(&parts, 0).map_err(f(op))
}

/// `x · sigmoid(x)`.
fn silu(op: &'static str, x: &Array) -> Result<Array> {
    ops::sigmoid(x).and_then(|s| x.multiply(s)).map_err(f(op))
}

/// `causal_conv`.
pub(super) fn conv(
    x: &Array,
    weights: ConvWeights<'_, MlxWeight>,
    cache: &mut MlxCache,
    step: &MlxStep,
    activation: ConvActivation,
) -> Result<Array> {
    const OP: &str = "causal_conv";
    let (n_channels, kernel) = match cache.kind() {
        CacheKind::Conv { n_channels, kernel } => (n_channels, kernel),
        CacheKind::Delta(dims) => (dims.n_channels(), dims.kernel),
        other => return ensure(false, OP, "cache", "a state", other).map(|()| unreachable!()),
    };
    let shape = dims(x);
    let fits = shape.len() == 2 && shape[1] == n_channels;
    ensure(fits, OP, "x", format_args!("[n, {n_channels}]"), &shape)?;
    step.check(OP, "x", x)?;
    let taps = weights.taps.vector(OP, kernel * n_channels)?;
    let bias = weights.bias.map(|bias| bias.vector(OP, n_channels)).transpose()?;
    cache.check(OP, step.spans())?;
    if shape[0] == 0 {
        return Ok(x.clone());
    }
    let taps = taps
        .reshape(&[kernel as i32, n_channels as i32])
        .and_then(|taps| taps.transpose_axes(&[1, 0])?.expand_dims(-1))
        .map_err(f(OP))?;
    let (n_before, mut start, mut parts) = (kernel - 1, 0, Vec::new());
    for span in step.spans().iter().filter(|span| span.n_tokens > 0) {
        let own = rows(OP, x, start, start + span.n_tokens)?;
        start += span.n_tokens;
        let sequence = cache.sequence(span.slot)?;
        let before = match sequence.state(0) {
            Some(state) => state.clone(),
            None => zeros(OP, &[n_before, n_channels], x.dtype())?,
        };
        let all = ops::concatenate(&[&before, &own], 0).map_err(f(OP))?;
        let n_all = n_before + span.n_tokens;
        sequence.set_state(0, rows(OP, &all, n_all - n_before, n_all)?);
        let y = all
            .expand_dims(0)
            .and_then(|all| ops::conv1d(all, &taps, 1, 0, 1, n_channels as i32)?.squeeze_axes(&[0]))
            .map_err(f(OP))?;
        parts.push(y);
    }
    let mut y = joined(OP, parts)?;
    if let Some(bias) = bias {
        y = y.add(&bias).map_err(f(OP))?;
    }
    match activation {
        ConvActivation::None => Ok(y),
        ConvActivation::Silu => silu(OP, &y),
    }
}

/// `gated_delta`: decay and state in f32, all else in the type of the activations.
pub(super) fn delta(
    inputs: DeltaInputs<'_, Array>,
    weights: DeltaWeights<'_, MlxWeight>,
    cache: &mut MlxCache,
    step: &MlxStep,
) -> Result<Array> {
    const OP: &str = "gated_delta";
    let CacheKind::Delta(sizes) = cache.kind() else {
        return ensure(false, OP, "cache", "the state of a delta rule", cache.kind())
            .map(|()| unreachable!());
    };
    let DeltaInputs { qkv, a, b } = inputs;
    let (n_k_heads, n_v_heads, k_dim, v_dim) = (sizes.n_k_heads, sizes.n_v_heads, sizes.k_dim, sizes.v_dim);
    let (n, n_channels) = (step.n_tokens(), sizes.n_channels());
    ensure(dims(qkv) == [n, n_channels], OP, "qkv", format_args!("[{n}, {n_channels}]"), dims(qkv))?;
    for (what, x) in [("a", a), ("b", b)] {
        ensure(dims(x) == [n, n_v_heads], OP, what, format_args!("[{n}, {n_v_heads}]"), dims(x))?;
    }
    let a_log = weights.a_log.vector(OP, n_v_heads)?;
    let dt_bias = weights.dt_bias.vector(OP, n_v_heads)?;
    cache.check(OP, step.spans())?;
    if n == 0 {
        return zeros(OP, &[0, n_v_heads, v_dim], qkv.dtype());
    }
    let per_head = n_v_heads / n_k_heads;
    let [n_k, r, dk, dv] = [n_k_heads, per_head, k_dim, v_dim].map(|n| n as i32);
    let n_i32 = n as i32;
    let columns = |from: usize, to: usize| raw::slice(OP, qkv, &[0, from as i32], &[n_i32, to as i32]);
    // Norms without weight give √k_dim times the unit vectors.
    let unit = |from: usize, factor: f32| -> Result<Array> {
        let x = columns(from, from + n_k_heads * k_dim)?.reshape(&[n_i32, n_k, dk]).map_err(f(OP))?;
        let normed = raw::rms_norm(OP, &x, None, 1e-6 / k_dim as f32)?;
        let normed = normed.multiply(scalar(factor, x.dtype())?);
        normed.and_then(|x| x.reshape(&[n_i32, n_k, 1, 1, dk])).map_err(f(OP))
    };
    let factor = (k_dim as f32).sqrt().recip();
    let (q, k) = (unit(0, factor * factor)?, unit(n_k_heads * k_dim, factor)?);
    let v = columns(2 * n_k_heads * k_dim, n_channels)?.reshape(&[n_i32, n_k, r, dv]).map_err(f(OP))?;
    let beta = ops::sigmoid(b).and_then(|b| b.reshape(&[n_i32, n_k, r, 1])).map_err(f(OP))?;
    let x = a.add(&dt_bias).map_err(f(OP))?;
    let softplus = ops::logaddexp(&x, scalar(0.0, x.dtype())?).map_err(f(OP))?;
    let decay = a_log
        .as_dtype(Dtype::Float32)
        .and_then(|a_log| {
            ops::exp(a_log)?.negative()?.multiply(&softplus)?.exp()?.reshape(&[n_i32, n_k, r, 1, 1])
        })
        .map_err(f(OP))?;
    let (mut start, mut parts) = (0, Vec::with_capacity(n));
    for span in step.spans().iter().filter(|span| span.n_tokens > 0) {
        let sequence = cache.sequence(span.slot)?;
        let mut state = match sequence.state(1) {
            Some(state) => state.clone(),
            None => zeros(OP, &[n_k_heads, per_head, v_dim, k_dim], Dtype::Float32)?,
        };
        for t in start..start + span.n_tokens {
            let at = |x: &Array| rows(OP, x, t, t + 1)?.squeeze_axes(&[0]).map_err(f(OP));
            let (q, k, v, beta, decay) = (at(&q)?, at(&k)?, at(&v)?, at(&beta)?, at(&decay)?);
            let one = || {
                let decayed = state.multiply(&decay)?;
                let recalled = decayed.multiply(&k)?.sum_axis(-1, false)?;
                let change = v.subtract(&recalled)?.multiply(&beta)?.expand_dims(-1)?;
                let state = decayed.add(k.multiply(&change)?)?;
                let y = state.multiply(&q)?.sum_axis(-1, false)?;
                Ok((state, y.as_dtype(qkv.dtype())?.reshape(&[1, n_k * r, dv])?))
            };
            let (next, y) = one().map_err(f(OP))?;
            state = next;
            parts.push(y);
            if (t + 1 - start).is_multiple_of(EVAL_EVERY) {
                state.eval().map_err(f(OP))?;
            }
        }
        start += span.n_tokens;
        sequence.set_state(1, state);
    }
    joined(OP, parts)
}

/// `rms_norm_gated`: the norm in the type of the activations, then SiLU and product in f32, rounded once.
pub(super) fn norm_gated(x: &Array, gate: &Array, weight: &MlxWeight, eps: f32) -> Result<Array> {
    const OP: &str = "rms_norm_gated";
    same_shape(OP, "gate", x, gate)?;
    let weight = weight.vector(OP, last_width(x))?;
    if x.size() == 0 {
        return Ok(x.clone());
    }
    let normed = raw::rms_norm(OP, x, Some(&weight), eps)?;
    let gate = silu(OP, &gate.as_dtype(Dtype::Float32).map_err(f(OP))?)?;
    normed
        .as_dtype(Dtype::Float32)
        .and_then(|normed| gate.multiply(normed)?.as_dtype(x.dtype()))
        .map_err(f(OP))
}

//! Choosing a token on the device.

use mlx_rs::{Array, Dtype, error, ops, random};

use super::arrays::{check_rows, scalar};
use super::f;
use super::indices::MlxIndices;
use super::router::columns;
use crate::check::ensure;
use crate::mlx::raw;
use crate::{Error, Repetition, Result, SampleSettings};

const OP: &str = "sample";

/// As mlx-lm: penalty, then top-p, min-p and top-k of the log-probabilities at temperature 1, then a draw at the
/// temperature. The arg-max is that of `logits - logsumexp(logits)` in the logits' own type, whose rounding can make the
/// two best equal; chance is f32.
pub(super) fn sample(
    logits: &Array,
    row: usize,
    settings: &SampleSettings<'_, MlxIndices>,
) -> Result<MlxIndices> {
    let (n, vocab) = check_rows(OP, logits)?;
    if row >= n {
        return Err(Error::IndexOutOfRange { op: OP, what: "row", index: row, len: n });
    }
    let one = match n {
        1 => logits,
        _ => &raw::slice(OP, logits, &[row as i32, 0], &[row as i32 + 1, vocab as i32])?,
    };
    let penalised = match &settings.repetition {
        Some(repetition) => &penalise(one, vocab, repetition)?,
        None => one,
    };
    let chosen = if settings.temperature == 0.0 {
        logprobs(penalised).and_then(|p| ops::indexing::argmax_axis(p, -1, false)).map_err(f(OP))?
    } else {
        draw(penalised, vocab, settings)?
    };
    MlxIndices::computed(OP, chosen, vocab)
}

fn logprobs(logits: &Array) -> error::Result<Array> {
    logits.subtract(logits.logsumexp_axis(-1, true)?)
}

/// A token listed twice gets the same value twice.
fn penalise(logits: &Array, vocab: usize, repetition: &Repetition<'_, MlxIndices>) -> Result<Array> {
    let Repetition { penalty, recent, last } = repetition;
    if let Some(&token) = recent.iter().find(|t| **t as usize >= vocab) {
        return Err(Error::IndexOutOfRange {
            op: OP,
            what: "recent token",
            index: token as usize,
            len: vocab,
        });
    }
    if let Some(last) = last {
        last.check(OP, "last token", vocab)?;
        ensure(last.array().shape() == [1], OP, "last", "[1]", last.array().shape())?;
    }
    let known = (!recent.is_empty()).then(|| Array::from_slice(recent, &[1, recent.len() as i32]));
    let (penalty, zero) = (scalar(*penalty, logits.dtype())?, scalar(0.0, logits.dtype())?);
    let build = || {
        let last = last.map(|last| last.array().reshape(&[1, 1])).transpose()?;
        let tokens = match (known, last) {
            (None, None) => return Ok(logits.clone()),
            (Some(tokens), None) | (None, Some(tokens)) => tokens,
            (Some(known), Some(last)) => ops::concatenate(&[known, last], -1)?,
        };
        let values = logits.take_along_axis(&tokens, -1)?;
        let values = ops::select(values.lt(&zero)?, values.multiply(&penalty)?, values.divide(&penalty)?)?;
        logits.put_along_axis(&tokens, values, -1)
    };
    build().map_err(f(OP))
}

fn draw(logits: &Array, vocab: usize, settings: &SampleSettings<'_, MlxIndices>) -> Result<Array> {
    let &SampleSettings { temperature, top_k, top_p, min_p, seed, .. } = settings;
    let top_p = top_p.filter(|&p| p < 1.0);
    let top_k = top_k.filter(|&k| k < vocab);
    let min_p = min_p.filter(|&p| p > 0.0);
    let mut p = logits.as_dtype(Dtype::Float32).and_then(|l| logprobs(&l)).map_err(f(OP))?;
    let max = p.max_axis(-1, true).map_err(f(OP))?;
    // By rank, where a rank is asked for; mlx's sort keeps equal ones in their order.
    let mut order = None;
    if top_p.is_some() || top_k.is_some() {
        let by_rank = p.negative().and_then(|p| ops::argsort_axis(p, -1)).map_err(f(OP))?;
        let by_rank = match top_k {
            Some(k) => columns(OP, &by_rank, 0, k)?,
            None => by_rank,
        };
        p = p.take_along_axis(&by_rank, -1).map_err(f(OP))?;
        order = Some(by_rank);
    }
    let build = || {
        let nothing = Array::from_f32(f32::NEG_INFINITY);
        let sorted = p.clone();
        if let Some(mass) = top_p {
            let above = sorted.exp()?.cumsum(-1, false, false)?;
            p = ops::select(above.lt(Array::from_f32(mass))?, &p, &nothing)?;
        }
        if let Some(fraction) = min_p {
            let floor = max.add(Array::from_f32(fraction.ln()))?;
            p = ops::select(sorted.ge(floor)?, &p, &nothing)?;
        }
        // The best one's becomes 0, which no temperature makes infinite.
        let p = p.subtract(&max)?.divide(Array::from_f32(temperature))?;
        let chosen = random::categorical(&p, -1, None, Some(&random::key(seed)?))?;
        match order {
            Some(order) => order.take_along_axis(chosen.reshape(&[1, 1])?, -1)?.reshape(&[1]),
            None => Ok(chosen),
        }
    };
    build().map_err(f(OP))
}

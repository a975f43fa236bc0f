//! Ops on rows of numbers: scales, gates, choices of a router and the weights of experts.

use mlx_rs::{Array, ops};

use super::arrays::{check_groups, check_route, check_rows, last_width, same_shape, scalar, zeros};
use super::router::{self, Pick};
use super::{MlxIndices, MlxWeight, f};
use crate::Result;
use crate::check::ensure;

pub(super) fn mul_sigmoid(x: &Array, gate: &Array) -> Result<Array> {
    const OP: &str = "mul_sigmoid";
    let mut per_row = x.shape().to_vec();
    if let Some(last) = per_row.last_mut() {
        *last = 1;
    }
    let fits = gate.shape() == x.shape() || gate.shape() == per_row;
    let want = format_args!("{:?}, or one value for each row", x.shape());
    ensure(fits, OP, "gate", want, gate.shape())?;
    ops::sigmoid(gate).and_then(|gate| x.multiply(gate)).map_err(f(OP))
}

pub(super) fn soft_cap(x: &Array, cap: f32) -> Result<Array> {
    const OP: &str = "soft_cap";
    ensure(cap > 0.0, OP, "cap", "a positive number", cap)?;
    let cap = scalar(cap, x.dtype())?;
    x.divide(&cap).and_then(|x| ops::tanh(&x)?.multiply(&cap)).map_err(f(OP))
}

pub(super) fn add_vector(x: &Array, vector: &MlxWeight) -> Result<Array> {
    let vector = vector.vector("add_vector", last_width(x))?;
    x.add(&vector).map_err(f("add_vector"))
}

pub(super) fn keep_top_groups(x: &Array, n_group: usize, topk_group: usize) -> Result<Array> {
    const OP: &str = "keep_top_groups";
    let (_, width) = check_rows(OP, x)?;
    check_groups(OP, width, n_group, topk_group)?;
    if x.size() == 0 {
        return Ok(x.clone());
    }
    router::keep_top_groups(OP, x, n_group, topk_group, Pick::FirstOfEqual)
}

/// In descending order, by a stable sort, which puts NaN last.
pub(super) fn top_k(x: &Array, k: usize) -> Result<MlxIndices> {
    const OP: &str = "top_k";
    if let Some((experts, _)) = check_route(OP, x, k)? {
        return Ok(experts);
    }
    let order = x.negative().and_then(|x| ops::argsort_axis(x, -1)).map_err(f(OP))?;
    MlxIndices::computed(OP, router::columns(OP, &order, 0, k)?, last_width(x))
}

pub(super) fn take_last(x: &Array, indices: &MlxIndices) -> Result<Array> {
    const OP: &str = "take_last";
    let (n, width) = check_rows(OP, x)?;
    let shape = indices.array().shape();
    let fits = shape.len() == 2 && shape[0] as usize == n;
    ensure(fits, OP, "indices", format_args!("[{n}, k]"), shape)?;
    indices.check(OP, "column", width)?;
    if n == 0 {
        return zeros(OP, &[0, shape[1] as usize], x.dtype());
    }
    x.take_along_axis(indices.array(), -1).map_err(f(OP))
}

pub(super) fn mul_taken(x: &Array, vector: &MlxWeight, indices: &MlxIndices) -> Result<Array> {
    const OP: &str = "mul_taken";
    let len = vector.n_in();
    let vector = vector.vector(OP, len)?;
    same_shape(OP, "indices", x, indices.array())?;
    indices.check(OP, "value", len)?;
    if x.size() == 0 {
        return Ok(x.clone());
    }
    vector.take_axis(indices.array(), 0).and_then(|factors| x.multiply(factors)).map_err(f(OP))
}

pub(super) fn div_by_sum(x: &Array, eps: f32) -> Result<Array> {
    const OP: &str = "div_by_sum";
    if x.size() == 0 {
        return Ok(x.clone());
    }
    let eps = scalar(eps, x.dtype())?;
    x.sum_axis(-1, true).and_then(|sum| x.divide(sum.add(&eps)?)).map_err(f(OP))
}

/// Products in the wider of both types, their sum too, one cast to the type of `x`: as mlx-lm's blocks.
pub(super) fn weighted_sum(x: &Array, weights: &Array) -> Result<Array> {
    const OP: &str = "weighted_sum";
    let &[n, top_k, width] = x.shape() else {
        return ensure(false, OP, "x", "[n, top_k, d]", x.shape()).map(|()| unreachable!());
    };
    ensure(weights.shape() == [n, top_k], OP, "weights", format_args!("[{n}, {top_k}]"), weights.shape())?;
    if x.size() == 0 {
        return zeros(OP, &[n as usize, width as usize], x.dtype());
    }
    let weighted = weights.expand_dims(-1).and_then(|w| x.multiply(w));
    weighted.and_then(|y| y.sum_axis(-2, false)?.as_dtype(x.dtype())).map_err(f(OP))
}

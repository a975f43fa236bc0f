//! What is particular to a backend that is one of several ranks.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops};

use super::arrays::{dims, scalar, zeros};
use super::router::columns;
use super::{MlxIndices, f};
use crate::Result;
use crate::check::ensure;
use crate::mlx::Group;

/// The indices of rank 0: devices that are not alike could choose other ones.
pub(super) fn of_rank_0(group: Group, own: &MlxIndices, n_values: usize) -> Result<MlxIndices> {
    const OP: &str = "of_rank_0";
    let own = own.array();
    let summand = if group.shard().rank == 0 {
        own.clone()
    } else {
        // Of its values nothing stays, but it is computed first: so the ranks exchange things in the same order.
        own.multiply(Array::from_slice(&[0u32], &[])).map_err(f(OP))?
    };
    MlxIndices::computed(OP, group.all_sum(&summand)?, n_values)
}

/// The columns of all ranks side by side.
pub(super) fn gather_columns(group: Group, x: &Array, width: usize, n: usize) -> Result<Array> {
    const OP: &str = "gather_columns";
    let &[n_rows, own] = x.shape() else {
        return ensure(false, OP, "x", "[n_rows, width]", x.shape()).map(|()| unreachable!());
    };
    let (n_ranks, width_i32) = (group.shard().n_ranks, i32::try_from(width).unwrap_or(i32::MAX));
    ensure(own <= width_i32, OP, "x", format_args!("at most {width} columns"), own)?;
    let fits = n <= width.saturating_mul(n_ranks);
    ensure(fits, OP, "n", format_args!("at most {n_ranks} times {width}"), n)?;
    if n_rows == 0 {
        return zeros(OP, &[0, n], x.dtype());
    }
    let padded = if own < width_i32 {
        let zeros = zeros(OP, &[n_rows as usize, width - own as usize], x.dtype())?;
        &ops::concatenate(&[x, &zeros], -1).map_err(f(OP))?
    } else {
        x
    };
    let all = group.all_gather(padded)?;
    let all = all
        .reshape(&[n_ranks as i32, n_rows, width_i32])
        .and_then(|all| all.transpose_axes(&[1, 0, 2])?.reshape(&[n_rows, n_ranks as i32 * width_i32]))
        .map_err(f(OP))?;
    columns(OP, &all, 0, n)
}

/// Begins to compute `x` and to send it.
pub(super) fn send(group: Group, x: &Array, like: &Array, to: usize) -> Result<()> {
    const OP: &str = "send";
    ensure(x.dtype() == like.dtype(), OP, "x", format_args!("{:?}", like.dtype()), x.dtype())?;
    let sent = group.send(x, to)?;
    mlx_rs::transforms::async_eval([&sent]).map_err(f(OP))
}

/// What another rank sends, in the type of `like`.
pub(super) fn receive(group: Group, shape: &[usize], like: &Array, from: usize) -> Result<Array> {
    group.receive_like(&zeros("receive", shape, like.dtype())?, from)
}

/// `held_experts` on the device.
pub(super) fn held_experts(
    experts: &MlxIndices,
    weights: &Array,
    held: Range<usize>,
) -> Result<(MlxIndices, Array)> {
    const OP: &str = "held_experts";
    ensure(!held.is_empty(), OP, "held", "at least one expert", &held)?;
    let shape = dims(experts.array());
    ensure(dims(weights) == shape, OP, "weights", format_args!("{shape:?}"), dims(weights))?;
    let zero = scalar(0.0, weights.dtype())?;
    let select = || {
        let (start, end) = (held.start as i32, held.end as i32);
        let experts = experts.array().as_dtype(Dtype::Int32)?;
        let is_held = experts.ge(Array::from_int(start))?.logical_and(experts.lt(Array::from_int(end))?)?;
        let index = experts.subtract(Array::from_int(start))?;
        let index = ops::select(&is_held, &index, Array::from_int(0))?;
        Ok((index, ops::select(&is_held, weights, &zero)?))
    };
    let (index, weights) = select().map_err(f(OP))?;
    Ok((MlxIndices::computed(OP, index, held.len())?, weights))
}

//! What is particular to a backend that is one of several ranks.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops};

use super::{MlxIndices, dims, f, scalar};
use crate::Result;
use crate::check::ensure;
use crate::mlx::Group;

/// The token that rank 0 has chosen: devices that are not alike could choose another.
pub(super) fn of_rank_0(group: Group, chosen: &MlxIndices, n_values: usize) -> Result<MlxIndices> {
    const OP: &str = "sample";
    let id = chosen.array();
    let summand = if group.shard().rank == 0 {
        id.clone()
    } else {
        ops::zeros_dtype(id.shape(), Dtype::Uint32).map_err(f(OP))?
    };
    MlxIndices::computed(OP, group.all_sum(&summand)?, n_values)
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

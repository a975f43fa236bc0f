//! Arrays of MLX: their shapes, small constants, their values on the host, and checks of the arguments of ops.

use mlx_rs::error::AsSliceError;
use mlx_rs::{Array, ArrayElement, Dtype, ops};

use super::MlxIndices;
use crate::check::ensure;
use crate::mlx::runtime::{NAME, fault as f};
use crate::{Error, Result};

pub(super) fn dims(x: &Array) -> Vec<usize> {
    x.shape().iter().map(|n| *n as usize).collect()
}

/// A shape as MLX counts.
pub(super) fn shape_i32(shape: &[usize]) -> Vec<i32> {
    shape.iter().map(|n| i32::try_from(*n).unwrap_or(i32::MAX)).collect()
}

pub(super) fn zeros(op: &'static str, shape: &[usize], dtype: Dtype) -> Result<Array> {
    ops::zeros_dtype(&shape_i32(shape), dtype).map_err(f(op))
}

/// A number in the type of an array, as Python's numbers take part in MLX's arithmetic. It is rounded here: a cast would be
/// an op of the device.
pub(super) fn scalar(value: f32, dtype: Dtype) -> Result<Array> {
    vector(&[value], &[], dtype)
}

/// Values in the type of an array, rounded here.
pub(super) fn vector(values: &[f32], shape: &[i32], dtype: Dtype) -> Result<Array> {
    match dtype {
        Dtype::Float32 => Ok(Array::from_slice(values, shape)),
        Dtype::Float16 => {
            let values: Vec<_> = values.iter().copied().map(half::f16::from_f32).collect();
            Ok(Array::from_slice(&values, shape))
        }
        Dtype::Bfloat16 => {
            let values: Vec<_> = values.iter().copied().map(half::bf16::from_f32).collect();
            Ok(Array::from_slice(&values, shape))
        }
        other => Array::from_slice(values, shape).as_dtype(other).map_err(f("scalar")),
    }
}

/// Computes `x` and appends its values to `out`.
pub(in crate::mlx) fn copy_out<T: ArrayElement + Copy>(
    op: &'static str,
    x: &Array,
    out: &mut Vec<T>,
) -> Result<()> {
    let fault = |e: AsSliceError| Error::Fault { op, backend: NAME, why: e.to_string() };
    match x.try_as_slice::<T>() {
        Ok(values) => out.extend_from_slice(values),
        Err(AsSliceError::NotContiguous) => {
            let x = x.contiguous().map_err(f(op))?;
            out.extend_from_slice(x.try_as_slice::<T>().map_err(fault)?);
        }
        Err(e) => return Err(fault(e)),
    }
    Ok(())
}

/// Checks a shape for `n_values` values; at most four dimensions.
pub(super) fn check_shape(op: &'static str, shape: &[usize], n_values: usize) -> Result<()> {
    ensure((1..=4).contains(&shape.len()), op, "shape", "one to four dimensions", shape)?;
    let n = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    ensure(n == Some(n_values), op, "shape", format_args!("{n_values} values"), shape)
}

/// Rows and columns of a matrix of scores.
pub(super) fn check_rows(op: &'static str, x: &Array) -> Result<(usize, usize)> {
    match dims(x)[..] {
        [n, width] if width > 0 => Ok((n, width)),
        _ => ensure(false, op, "x", "[n, width]", dims(x)).map(|()| unreachable!()),
    }
}

fn check_top_k(op: &'static str, k: usize, width: usize) -> Result<()> {
    ensure((1..=width).contains(&k), op, "top_k", format_args!("1 to {width}"), k)
}

pub(super) fn check_groups(op: &'static str, width: usize, n_group: usize, topk_group: usize) -> Result<()> {
    let fits = n_group > 0 && width.is_multiple_of(n_group) && width / n_group >= 2;
    ensure(fits, op, "n_group", format_args!("groups of two or more among {width}"), n_group)?;
    let fits = (1..=n_group).contains(&topk_group);
    ensure(fits, op, "topk_group", format_args!("1 to {n_group}"), topk_group)
}

/// Checks a routing op's arguments; the result of no tokens, if there are none.
pub(super) fn check_route(op: &'static str, x: &Array, top_k: usize) -> Result<Option<(MlxIndices, Array)>> {
    let (n, width) = check_rows(op, x)?;
    check_top_k(op, top_k, width)?;
    if n > 0 {
        return Ok(None);
    }
    let experts = MlxIndices::new(op, &[], &[0, top_k as i32])?;
    Ok(Some((experts, zeros(op, &[0, top_k], x.dtype())?)))
}

pub(super) fn same_shape(op: &'static str, what: &'static str, a: &Array, b: &Array) -> Result<()> {
    ensure(a.shape() == b.shape(), op, what, format_args!("{:?}", a.shape()), b.shape())
}

pub(super) fn last_width(x: &Array) -> usize {
    x.shape().last().map_or(0, |n| *n as usize)
}

//! Products with weights: the rows of an embedding, matrices, matrices of chosen experts, matrices of heads.

use mlx_rs::{Array, Dtype};

use super::arrays::{dims, last_width, zeros};
use super::{MlxIndices, MlxWeight, f};
use crate::Result;
use crate::check::ensure;
use crate::metal::Numerics;
use crate::mlx::raw::{Order, Product};

pub(super) fn embed(table: &MlxWeight, ids: &MlxIndices, numerics: Numerics) -> Result<Array> {
    const OP: &str = "embed";
    ensure(table.n_mats() == 1, OP, "table", "one matrix", table.n_mats())?;
    let &[n] = ids.array().shape() else {
        return ensure(false, OP, "ids", "[n]", ids.array().shape()).map(|()| unreachable!());
    };
    ids.check(OP, "token", table.n_out())?;
    if n == 0 {
        return zeros(OP, &[0, table.n_in()], Dtype::Float32);
    }
    let rows = table.rows(OP, ids.array())?;
    match numerics {
        Numerics::Exact => Ok(rows),
        Numerics::Accurate => rows.as_dtype(Dtype::Float32).map_err(f(OP)),
    }
}

pub(super) fn linear(x: &Array, weight: &MlxWeight) -> Result<Array> {
    const OP: &str = "linear";
    ensure(weight.n_mats() == 1, OP, "weight", "one matrix", weight.n_mats())?;
    let n_in = weight.n_in();
    ensure(last_width(x) == n_in, OP, "x", format_args!("[.., {n_in}]"), x.shape())?;
    if x.size() == 0 {
        let mut shape = dims(x);
        if let Some(last) = shape.last_mut() {
            *last = weight.n_out();
        }
        return zeros(OP, &shape, x.dtype());
    }
    weight.matmul(OP, x, Product::Transposed)
}

/// The products of a joined weight's parts; `None` where the weight's own product is to be cut into these widths.
pub(super) fn of_parts<const N: usize>(
    x: &Array,
    weight: &MlxWeight,
    widths: [usize; N],
) -> Result<Option<[Array; N]>> {
    let Some(parts) = weight.parts_for(x).filter(|parts| parts.iter().map(MlxWeight::n_out).eq(widths))
    else {
        return Ok(None);
    };
    let products: Vec<_> = parts.iter().map(|part| linear(x, part)).collect::<Result<_>>()?;
    Ok(Some(products.try_into().map_err(|_| unreachable!("there is one for each width"))?))
}

/// As mlx-lm's `SwitchLinear`: 64 choices or more are sorted by expert first.
pub(super) fn gather_linear(x: &Array, weight: &MlxWeight, experts: &MlxIndices) -> Result<Array> {
    const OP: &str = "gather_linear";
    let n_in = weight.n_in();
    let &[n, top_k] = experts.array().shape() else {
        return ensure(false, OP, "experts", "[n, top_k]", experts.array().shape()).map(|()| unreachable!());
    };
    let per_token = x.shape() == [n, n_in as i32];
    let fits = per_token || x.shape() == [n, top_k, n_in as i32];
    ensure(fits, OP, "x", format_args!("[{n}, {n_in}] or [{n}, {top_k}, {n_in}]"), x.shape())?;
    experts.check(OP, "expert", weight.n_mats())?;
    let n_out = weight.n_out();
    let shape = [n, top_k, n_out as i32];
    if n * top_k == 0 {
        return zeros(OP, &[n as usize, top_k as usize, n_out], x.dtype());
    }
    if let Some(sorted) = experts.sorted() {
        let (rows, order) = if per_token { (n, &sorted.tokens) } else { (n * top_k, &sorted.slots) };
        let x = x.reshape(&[rows, 1, n_in as i32]).and_then(|x| x.take_axis(order, 0)).map_err(f(OP))?;
        let y = weight.gather(OP, &x, &sorted.experts, Order::Sorted)?;
        return y.take_axis(&sorted.inverse, 0).and_then(|y| y.reshape(&shape)).map_err(f(OP));
    }
    let slots = if per_token { 1 } else { top_k };
    let x = x.reshape(&[n, slots, 1, n_in as i32]).map_err(f(OP))?;
    let y = weight.gather(OP, &x, experts.array(), Order::Unsorted)?;
    y.squeeze_axes(&[-2]).map_err(f(OP))
}

pub(super) fn gather_add(x: &Array, bank: &MlxWeight, experts: &MlxIndices) -> Result<Array> {
    const OP: &str = "gather_add";
    let width = last_width(x);
    let rows = dims(x);
    let fits = rows.len() == 3 && dims(experts.array()) == rows[..2];
    ensure(fits, OP, "x", "[n, top_k, d] for experts [n, top_k]", rows)?;
    experts.check(OP, "expert", bank.n_mats())?;
    let bank = bank.vectors(OP, bank.n_mats(), width)?;
    if x.size() == 0 {
        return Ok(x.clone());
    }
    bank.take_axis(experts.array(), 0).and_then(|biases| x.add(biases)).map_err(f(OP))
}

pub(super) fn head_linear(x: &Array, weight: &MlxWeight) -> Result<Array> {
    const OP: &str = "head_linear";
    let shape = dims(x);
    let (n_heads, n_in) = (weight.n_mats(), weight.n_in());
    let fits = shape.len() == 3 && shape[1..] == [n_heads, n_in];
    ensure(fits, OP, "x", format_args!("[n, {n_heads}, {n_in}]"), &shape)?;
    if shape[0] == 0 {
        return zeros(OP, &[0, n_heads, weight.n_out()], x.dtype());
    }
    let heads = x.expand_dims(0).and_then(|x| x.transpose_axes(&[0, 2, 1, 3])).map_err(f(OP))?;
    let y = weight.matmul(OP, &heads, Product::Transposed)?;
    y.transpose_axes(&[0, 2, 1, 3]).and_then(|y| y.squeeze_axes(&[0])).map_err(f(OP))
}

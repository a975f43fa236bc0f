//! Token ids and expert choices on the device.

use std::cell::RefCell;
use std::collections::HashMap;

use mlx_rs::{Array, Dtype};

use super::f;
use crate::check::ensure;
use crate::{Error, Result};

/// From this many choices on, mlx-lm sorts them by expert, so that each expert is read once.
const SORT_FROM: usize = 64;

/// An array of u32 with an upper bound that is known without computing it. Cloning shares the array.
#[derive(Clone, Debug)]
pub struct MlxIndices {
    array: Array,
    /// No value is above it; `None` if there are no values.
    max: Option<u32>,
    sorted: Option<Box<Sorted>>,
}

/// Choices by ascending expert.
#[derive(Clone, Debug)]
pub(super) struct Sorted {
    /// The experts, ascending.
    pub(super) experts: Array,
    /// Which slot each comes from.
    pub(super) slots: Array,
    /// Which token each comes from.
    pub(super) tokens: Array,
    /// Where each slot's result is.
    pub(super) inverse: Array,
}

impl MlxIndices {
    /// Values that the device will compute, all below `n_values`.
    pub(in crate::mlx) fn computed(op: &'static str, array: Array, n_values: usize) -> Result<Self> {
        let array = array.as_dtype(Dtype::Uint32).map_err(f(op))?;
        let max = u32::try_from(n_values.saturating_sub(1)).unwrap_or(u32::MAX);
        let max = (array.size() > 0).then_some(max);
        Ok(Self { sorted: sorted(op, &array)?, array, max })
    }

    /// Values from the host.
    pub(super) fn new(op: &'static str, values: &[u32], shape: &[i32]) -> Result<Self> {
        let array = if values.is_empty() {
            mlx_rs::ops::zeros_dtype(shape, Dtype::Uint32).map_err(f(op))?
        } else {
            Array::from_slice(values, shape)
        };
        Ok(Self { sorted: sorted(op, &array)?, array, max: values.iter().max().copied() })
    }

    /// One list after the other.
    pub(super) fn join(op: &'static str, lists: &[&Self]) -> Result<Self> {
        ensure(!lists.is_empty(), op, "lists", "at least one", lists.len())?;
        for list in lists {
            ensure(list.array.ndim() == 1, op, "list", "[n]", list.array.shape())?;
        }
        if let [one] = lists {
            return Ok((*one).clone());
        }
        let arrays: Vec<&Array> = lists.iter().map(|list| &list.array).collect();
        let array = mlx_rs::ops::concatenate(&arrays, 0).map_err(f(op))?;
        Ok(Self { array, max: lists.iter().filter_map(|list| list.max).max(), sorted: None })
    }

    /// Indices that an mlx-rs program has, all below `n_values`. MLX itself does not check them, and reads wherever they point:
    /// so what is beyond, or negative, becomes the last.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the array is not of an integer type.
    pub fn from_array(array: Array, n_values: usize) -> Result<Self> {
        const OP: &str = "indices";
        let integer = matches!(array.dtype(), Dtype::Uint32 | Dtype::Int32);
        ensure(integer, OP, "array", "u32 or i32", array.dtype())?;
        let array = array.as_dtype(Dtype::Uint32).and_then(|array| below(&array, n_values)).map_err(f(OP))?;
        Self::computed(OP, array, n_values)
    }

    /// The values, u32.
    pub fn array(&self) -> &Array {
        &self.array
    }

    pub(super) fn sorted(&self) -> Option<&Sorted> {
        self.sorted.as_deref()
    }

    /// Refuses values that may reach `len`.
    pub(super) fn check(&self, op: &'static str, what: &'static str, len: usize) -> Result<()> {
        match self.max {
            Some(max) if max as usize >= len => {
                Err(Error::IndexOutOfRange { op, what, index: max as usize, len })
            }
            _ => Ok(()),
        }
    }
}

/// Of u32 indices the smaller of each and `n - 1`.
pub(in crate::mlx) fn below(indices: &Array, n: usize) -> mlx_rs::error::Result<Array> {
    let last = u32::try_from(n.saturating_sub(1)).unwrap_or(u32::MAX);
    mlx_rs::ops::minimum(indices, Array::from_slice(&[last], &[]))
}

/// The numbers from 0 on, in this shape: which row of x meets each expert, if all are taken in order. `mx.gather_qmm` makes
/// them in every call where they are not given, which is a launch; here they are made once per thread and shape.
///
/// None for sorted choices and for many: there MLX takes kernels that it does not take for indices that are given.
pub(in crate::mlx) fn rows_in_order(shape: &[i32]) -> Option<Array> {
    thread_local! {
        static MADE: RefCell<HashMap<Vec<i32>, Array>> = RefCell::default();
    }
    let n = shape.iter().product::<i32>();
    if n as usize >= SORT_FROM {
        return None;
    }
    let make = || Array::from_slice(&(0..n as u32).collect::<Vec<_>>(), shape);
    Some(MADE.with_borrow_mut(|made| match made.get(shape) {
        Some(array) => array.clone(),
        None => made.entry(shape.to_vec()).or_insert(make()).clone(),
    }))
}

/// Built here, computed only if a gather asks for it.
fn sorted(op: &'static str, array: &Array) -> Result<Option<Box<Sorted>>> {
    let &[_, top_k] = array.shape() else { return Ok(None) };
    if array.size() < SORT_FROM {
        return Ok(None);
    }
    let build = || {
        let flat = array.flatten(None, None)?;
        let slots = mlx_rs::ops::argsort_axis(&flat, -1)?;
        Ok(Sorted {
            experts: flat.take_axis(&slots, 0)?,
            tokens: slots.floor_divide(Array::from_slice(&[top_k as u32], &[]))?,
            inverse: mlx_rs::ops::argsort_axis(&slots, -1)?,
            slots,
        })
    };
    build().map(|s| Some(Box::new(s))).map_err(f(op))
}

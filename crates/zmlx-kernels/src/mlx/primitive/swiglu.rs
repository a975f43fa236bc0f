//! Gate, up and SwiGLU.

use mlx_rs::{Array, ops};

use super::{Call, GatherOptions, check_indices, check_pair, check_width, f32_bank, f32_of, rows, shape_of};
use crate::check::ensure;
use crate::metal::Numerics;
use crate::mlx::backend::{Pairs, launch_gather_qmm_swiglu, packed, rows_in_order};
use crate::mlx::raw::{self, Order};
use crate::mlx::runtime::fault;
use crate::mlx::{MlxBackend, MlxWeight, QuantizedExperts};
use crate::{Activation, Backend, GateUp, Result, stock};

const GATHER: &str = "gather_qmm_swiglu";
const DENSE: &str = "qmm_swiglu";

/// [`super::gather_qmm_swiglu`].
pub(super) struct Gather<'a> {
    backend: MlxBackend,
    x: &'a Array,
    gate: &'a QuantizedExperts,
    up: &'a QuantizedExperts,
    /// u32, as the caller gave them.
    lhs: Option<Array>,
    rhs: Array,
    sorted: bool,
    /// The shape of the pairs.
    pairs: Vec<i32>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(
        x: &'a Array,
        gate: &'a QuantizedExperts,
        up: &'a QuantizedExperts,
        rhs_indices: &Array,
        options: &GatherOptions<'_>,
    ) -> Result<Self> {
        let backend = MlxBackend::new(options.numerics)?;
        check_pair(GATHER, gate, up)?;
        check_width(GATHER, x, gate.n_in(), 2)?;
        let rhs = check_indices(GATHER, "rhs_indices", rhs_indices, gate.n_experts())?;
        let n_entries = x.shape()[..x.ndim() - 2].iter().product::<i32>() as usize;
        let lhs =
            options.lhs_indices.map(|l| check_indices(GATHER, "lhs_indices", l, n_entries)).transpose()?;
        let left = lhs.as_ref().map_or(&x.shape()[..x.ndim() - 2], |l| l.shape());
        let pairs = broadcast(left, rhs.shape());
        let want = format_args!("a shape that broadcasts with {left:?} of the left side").to_string();
        ensure(pairs.is_some(), GATHER, "rhs_indices", want, rhs.shape())?;
        let pairs = pairs.unwrap_or_default();
        Ok(Self { backend, x, gate, up, lhs, rhs, sorted: options.sorted_indices, pairs })
    }

    fn n_rows(&self) -> i32 {
        self.x.shape()[self.x.ndim() - 2]
    }

    /// x with its batch entries such that pair p takes entry `p / (pairs / entries)`, and their number.
    fn entries(&self) -> Result<(Array, usize)> {
        let (batch, inner) = self.x.shape().split_at(self.x.ndim() - 2);
        let n_entries = batch.iter().product::<i32>();
        if self.lhs.is_none() && in_order(batch, &self.pairs) {
            return Ok((self.x.clone(), n_entries as usize));
        }
        let build = || {
            let lhs = match &self.lhs {
                Some(lhs) => lhs.clone(),
                None => ops::arange::<_, u32>(None, n_entries, None)?.reshape(batch)?,
            };
            let lhs = ops::broadcast_to(&lhs, &self.pairs)?.reshape(&[-1])?;
            self.x.reshape(&[&[n_entries], inner].concat())?.take_axis(&lhs, 0)
        };
        let x = build().map_err(fault(GATHER))?;
        Ok((x, self.pairs.iter().product::<i32>() as usize))
    }
}

impl Call<1> for Gather<'_> {
    const KERNEL: &'static str = "zmlx_gather_qmm_swiglu";

    fn backend(&self) -> &MlxBackend {
        &self.backend
    }

    fn fused(&self) -> Result<Option<[Array; 1]>> {
        let (x, x_batch) = self.entries()?;
        let experts = ops::broadcast_to(&self.rhs, &self.pairs).map_err(fault(GATHER))?;
        let x_shape = [x_batch, self.n_rows() as usize];
        let pairs = Pairs { x_shape, experts: &experts, sorted: self.sorted };
        let Some(y) = launch_gather_qmm_swiglu(&self.backend, &x, self.gate, self.up, pairs)? else {
            return Ok(None);
        };
        let shape = [&self.pairs[..], &[self.n_rows(), self.gate.n_out() as i32]].concat();
        y.reshape(&shape).map(|y| Some([y])).map_err(fault(GATHER))
    }

    fn composed(&self) -> Result<[Array; 1]> {
        let order = if self.sorted { Order::Sorted } else { Order::Unsorted };
        let swiglu = |x: &Array, gate: &QuantizedExperts, up: &QuantizedExperts| {
            let rows = match order {
                Order::Unsorted => rows_in_order(&x.shape()[..x.ndim() - 2]),
                Order::Sorted => None,
            };
            let indices = [self.lhs.as_ref().or(rows.as_ref()), Some(&self.rhs)];
            let gate = raw::gather_qmm(GATHER, x, packed(gate), indices, order)?;
            let up = raw::gather_qmm(GATHER, x, packed(up), indices, order)?;
            self.backend.gated(&gate, &up, Activation::SwiGlu)
        };
        let y = match self.backend.numerics() {
            Numerics::Exact => swiglu(self.x, self.gate, self.up)?,
            Numerics::Accurate => {
                let (gate, up) = (f32_bank(GATHER, self.gate)?, f32_bank(GATHER, self.up)?);
                let y = swiglu(&f32_of(GATHER, self.x)?, &gate, &up)?;
                y.as_dtype(self.x.dtype()).map_err(fault(GATHER))?
            }
        };
        Ok([y])
    }
}

/// [`super::qmm_swiglu`].
pub(super) struct Dense<'a> {
    backend: MlxBackend,
    x: &'a Array,
    gate: &'a QuantizedExperts,
    up: &'a QuantizedExperts,
}

impl<'a> Dense<'a> {
    pub(super) fn new(
        x: &'a Array,
        gate: &'a QuantizedExperts,
        up: &'a QuantizedExperts,
        numerics: Numerics,
    ) -> Result<Self> {
        let backend = MlxBackend::new(numerics)?;
        check_pair(DENSE, gate, up)?;
        ensure(gate.n_experts() == 1, DENSE, "gate", "one matrix", gate.n_experts())?;
        check_width(DENSE, x, gate.n_in(), 1)?;
        Ok(Self { backend, x, gate, up })
    }
}

impl Call<1> for Dense<'_> {
    const KERNEL: &'static str = "zmlx_gather_qmm_swiglu";

    fn backend(&self) -> &MlxBackend {
        &self.backend
    }

    fn fused(&self) -> Result<Option<[Array; 1]>> {
        let gate = MlxWeight::from_experts(self.gate.clone())?;
        let up = MlxWeight::from_experts(self.up.clone())?;
        let x = rows(DENSE, self.x)?;
        let Some(y) = self.backend.fused_qmm_swiglu(&x, GateUp::swiglu(&gate, &up))? else {
            return Ok(None);
        };
        y.reshape(&shape_of(self.x, 1, &[gate.n_out()])).map(|y| Some([y])).map_err(fault(DENSE))
    }

    fn composed(&self) -> Result<[Array; 1]> {
        let swiglu = |x: &Array, gate: QuantizedExperts, up: QuantizedExperts| {
            let (gate, up) = (MlxWeight::from_experts(gate)?, MlxWeight::from_experts(up)?);
            stock::qmm_swiglu(&self.backend, x, GateUp::swiglu(&gate, &up))
        };
        let y = match self.backend.numerics() {
            Numerics::Exact => swiglu(self.x, self.gate.clone(), self.up.clone())?,
            Numerics::Accurate => {
                let (gate, up) = (f32_bank(DENSE, self.gate)?, f32_bank(DENSE, self.up)?);
                let y = swiglu(&f32_of(DENSE, self.x)?, gate, up)?;
                y.as_dtype(self.x.dtype()).map_err(fault(DENSE))?
            }
        };
        Ok([y])
    }
}

/// The shape that both take part in, as numpy's rule has it.
fn broadcast(a: &[i32], b: &[i32]) -> Option<Vec<i32>> {
    let n = a.len().max(b.len());
    let dim = |s: &[i32], i: usize| (i + s.len()).checked_sub(n).map_or(1, |i| s[i]);
    let join = |i| match (dim(a, i), dim(b, i)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..n).map(join).collect()
}

/// Whether entries of shape `batch`, broadcast to `pairs`, each stand for as many pairs in a row: only trailing dimensions
/// are repeated.
fn in_order(batch: &[i32], pairs: &[i32]) -> bool {
    let leading = pairs.len() - batch.len();
    let batch: Vec<i32> = std::iter::repeat_n(1, leading).chain(batch.iter().copied()).collect();
    let repeated = batch.iter().zip(pairs).position(|(b, p)| b != p).unwrap_or(batch.len());
    batch[repeated..].iter().all(|b| *b == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_broadcast_as_numpy() {
        assert_eq!(broadcast(&[2, 1], &[3]), Some(vec![2, 3]));
        assert_eq!(broadcast(&[], &[4, 2]), Some(vec![4, 2]));
        assert_eq!(broadcast(&[5, 1, 3], &[2, 1]), Some(vec![5, 2, 3]));
        assert_eq!(broadcast(&[2], &[3]), None);
    }

    #[test]
    fn entries_are_in_order_where_pair_p_takes_entry_p_over_the_repeats() {
        // Against the indices that broadcasting gives.
        for batch in
            [vec![], vec![1], vec![2], vec![2, 1], vec![1, 3], vec![2, 3], vec![3, 1, 1], vec![1, 2, 1]]
        {
            for pairs in [vec![3], vec![2, 3], vec![4, 2, 3], vec![3, 2, 3], vec![1, 2, 1], vec![2, 3, 1]] {
                if broadcast(&batch, &pairs).as_ref() != Some(&pairs) {
                    continue;
                }
                let n_pairs: i32 = pairs.iter().product();
                let n_entries: i32 = batch.iter().product();
                let entry = |p: i32| {
                    let (mut rest, mut entry, mut stride) = (p, 0, 1);
                    for (i, n) in pairs.iter().enumerate().rev() {
                        let b = (i + batch.len()).checked_sub(pairs.len()).map_or(1, |i| batch[i]);
                        entry += (rest % n) % b * stride;
                        (rest, stride) = (rest / n, stride * b);
                    }
                    entry
                };
                let want = (0..n_pairs).all(|p| entry(p) == p / (n_pairs / n_entries));
                assert_eq!(in_order(&batch, &pairs), want, "{batch:?} {pairs:?}");
            }
        }
    }
}

//! Products for ops: argument checks, which rows are multiplied by which matrices, and where results go.

use super::matmul::{Groups, Product, Results};
use super::pool::Shape;
use super::sync_ptr::SyncPtr;
use super::{CpuBackend, CpuIndices, CpuTensor, CpuWeight, lock, math};
use zmlx_core::check::ensure;
use zmlx_core::{Error, GateUp, Result};

impl CpuBackend {
    /// Products of all rows of x with weights that are single matrices.
    pub(super) fn product_all<const W: usize>(
        &self,
        op: &'static str,
        x: &CpuTensor,
        weights: [&CpuWeight; W],
        f: impl Fn(At, [&[f32]; W], &mut [f32]) + Sync,
    ) -> Result<CpuTensor> {
        let w = weights[0];
        ensure(w.n_mats() == 1, op, "weight", "one matrix", w)?;
        ensure(x.shape.last() == w.n_in(), op, "x", format_args!("[.., {}]", w.n_in()), x)?;
        let shape = x.shape.with_last(op, w.n_out())?;
        check_pairs(op, x.shape.n_rows())?;
        let mut groups = lock(&self.groups);
        groups.all(x.shape.n_rows());
        let product = Product { op, weights, x: x.values(), pairs_per_x: 1 };
        self.product_into(shape, &product, &groups, f)
    }

    /// Products of each token's (or slot's) row with its experts' matrices.
    pub(super) fn product_gathered<const W: usize>(
        &self,
        op: &'static str,
        x: &CpuTensor,
        weights: [&CpuWeight; W],
        experts: &CpuIndices,
        f: impl Fn(At, [&[f32]; W], &mut [f32]) + Sync,
    ) -> Result<CpuTensor> {
        let w = weights[0];
        let (n_tokens, top_k) = Self::check_experts(op, x, w, experts)?;
        let shape = Shape::new(op, &[n_tokens, top_k, w.n_out()])?;
        let mut groups = lock(&self.groups);
        groups.by_mat(n_tokens * top_k, w.n_mats(), |p| experts.values()[p] as usize);
        let pairs_per_x = if x.dims().len() == 2 { top_k } else { 1 };
        let product = Product { op, weights, x: x.values(), pairs_per_x };
        self.product_into(shape, &product, &groups, f)
    }

    /// Writes `f(values, out[pair][rows])` for all pairs of a product into a new tensor of that shape.
    fn product_into<const W: usize>(
        &self,
        shape: Shape,
        product: &Product<'_, W>,
        groups: &Groups,
        f: impl Fn(At, [&[f32]; W], &mut [f32]) + Sync,
    ) -> Result<CpuTensor> {
        let mut y = self.floats.take(product.op, shape.len())?;
        let write = self.write(SyncPtr::new(&mut y), shape.last(), f);
        self.product(product, groups, |_| (), |_, _| (), write)?;
        Ok(CpuTensor::new(shape, y))
    }

    /// Writes `f` of the results of pair p to row p of `out`, which is `n_out` wide.
    pub(super) fn write<const W: usize>(
        &self,
        out: SyncPtr,
        n_out: usize,
        f: impl Fn(At, [&[f32]; W], &mut [f32]) + Sync,
    ) -> impl Fn(&Results<'_, W>) + Sync {
        let level = self.level;
        move |results| {
            level.vectorize(
                #[inline(always)]
                || {
                    results.for_each(
                        #[inline(always)]
                        |pair, values| {
                            let first_row = results.rows.start;
                            let at = pair * n_out + first_row;
                            // SAFETY: each element is computed by one member.
                            f(At { pair, first_row }, values, unsafe { out.slice(at, results.rows.len()) });
                        },
                    );
                },
            );
        }
    }

    /// The numbers of tokens and slots in `experts`. Every index is checked against `n_mats`.
    pub(super) fn check_experts(
        op: &'static str,
        x: &CpuTensor,
        weight: &CpuWeight,
        experts: &CpuIndices,
    ) -> Result<(usize, usize)> {
        let &[n_tokens, top_k] = experts.dims() else {
            return ensure(false, op, "experts", "[n, top_k]", experts).map(|()| unreachable!());
        };
        let n_in = weight.n_in();
        let per_token = x.dims() == [n_tokens, n_in];
        let per_slot = x.dims() == [n_tokens, top_k, n_in];
        ensure(
            per_token || per_slot,
            op,
            "x",
            format_args!("[{n_tokens}, {n_in}] or [{n_tokens}, {top_k}, {n_in}]"),
            x,
        )?;
        check_pairs(op, experts.values().len())?;
        let len = weight.n_mats();
        match experts.values().iter().find(|e| **e as usize >= len) {
            Some(e) => Err(Error::IndexOutOfRange { op, what: "expert", index: *e as usize, len }),
            None => Ok((n_tokens, top_k)),
        }
    }
}

impl CpuBackend {
    /// Gate and up of all rows of x, or of each token's experts, with their biases if they have any, joined by the
    /// activation.
    pub(super) fn gate_up(
        &self,
        op: &'static str,
        x: &CpuTensor,
        weights: GateUp<'_, CpuWeight>,
        experts: Option<&CpuIndices>,
    ) -> Result<CpuTensor> {
        let GateUp { gate, up, biases, activation } = weights;
        let biases =
            biases.map(|[g, u]| Ok::<_, Error>([Biases::new(op, g, gate)?, Biases::new(op, u, up)?]));
        let (pair, biases) = ([gate, up], biases.transpose()?);
        if let Some(experts) = experts {
            let chosen = experts.values();
            return self.product_gathered(
                op,
                x,
                pair,
                experts,
                #[inline(always)]
                |at, values, out| {
                    let mat = chosen[at.pair] as usize;
                    let biases = biases.map(|of| of.map(|b| b.rows(mat, at.first_row, out.len())));
                    math::gated(activation, values, biases, out);
                },
            );
        }
        self.product_all(
            op,
            x,
            pair,
            #[inline(always)]
            |at, values, out| {
                let biases = biases.map(|of| of.map(|b| b.rows(0, at.first_row, out.len())));
                math::gated(activation, values, biases, out);
            },
        )
    }
}

/// [`math::swiglu`] of a product's results.
#[inline(always)]
pub(super) fn swiglu(_: At, values: [&[f32]; 2], out: &mut [f32]) {
    math::swiglu(values, out);
}

/// Refuses more rows than [`Groups`] can number.
pub(super) fn check_pairs(op: &'static str, n_pairs: usize) -> Result<()> {
    let fits = u32::try_from(n_pairs).is_ok_and(|n| n < u32::MAX);
    ensure(fits, op, "x", "fewer than 2^32 - 1 rows", n_pairs)
}

/// The place of results in a product.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// The row of activations and its matrix.
    pub(super) pair: usize,
    /// The first of the matrix's rows.
    pub(super) first_row: usize,
}

/// The biases of a bank's products.
#[derive(Clone, Copy)]
pub(super) struct Biases<'a> {
    /// `[n_mats, n_out]`.
    values: &'a [f32],
    n_out: usize,
}

impl<'a> Biases<'a> {
    /// The biases in `bias`, for the products of `weight`.
    pub(super) fn new(op: &'static str, bias: &'a CpuWeight, weight: &CpuWeight) -> Result<Self> {
        let n_out = weight.n_out();
        Ok(Self { values: bias.vectors(op, weight.n_mats(), n_out)?, n_out })
    }

    /// The biases of `n` rows of a matrix, from `first_row` on.
    #[inline(always)]
    pub(super) fn rows(self, mat: usize, first_row: usize, n: usize) -> &'a [f32] {
        &self.values[mat * self.n_out + first_row..][..n]
    }
}

pub(super) fn check_gate_up(op: &'static str, weights: GateUp<'_, CpuWeight>) -> Result<()> {
    let shape = |w: &CpuWeight| [w.n_mats(), w.n_out(), w.n_in()];
    let (gate, up) = (shape(weights.gate), shape(weights.up));
    ensure(gate == up, op, "up", format_args!("{gate:?}"), up)
}

#[inline(always)]
pub(super) fn copy(_: At, [values]: [&[f32]; 1], out: &mut [f32]) {
    out.copy_from_slice(values);
}

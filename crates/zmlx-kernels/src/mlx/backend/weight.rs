//! Weights in MLX's memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlx_rs::{Array, Dtype, ops};

use super::arrays::zeros;
use super::{f, rows_in_order};
use crate::check::ensure;
use crate::metal::{Numerics, stock};
use crate::mlx::QuantizedExperts;
use crate::mlx::raw::{self, Packed, Product, mlx_dtype};
use crate::mlx::runtime::NAME;
use crate::{DType, Error, HostWeight, QuantMode, Result, WeightFormat};

/// A matrix or bank of matrices as MLX arrays. Cloning shares them.
///
/// MLX computes from its own page-aligned buffers, which a tensor within a file never is: each weight is copied once,
/// when it is uploaded.
#[derive(Clone, Debug)]
pub struct MlxWeight {
    n_mats: usize,
    n_out: usize,
    n_in: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// `[n_out, n_in]`, or `[n_mats, n_out, n_in]` for more than one.
    Dense(Array),
    Quantized(Quantized),
    /// Rows of several parts, stored once: the parts are views.
    Joined(Box<Joined>),
    Concat(Arc<Concat>),
}

/// A matrix, and its rows in parts.
#[derive(Clone, Debug)]
struct Joined {
    whole: MlxWeight,
    parts: Vec<MlxWeight>,
    /// Whether one row of x times the whole has the bits of its products with the parts.
    is_exact_for_one_row: bool,
    numerics: Numerics,
}

/// Quantised arrays twice: as a bank for gathers, and for one matrix without the bank's dimension, as mlx-lm holds it.
#[derive(Clone, Debug)]
struct Quantized {
    bank: QuantizedExperts,
    matrix: Option<[Option<Array>; 3]>,
}

/// Banks, or parts of several formats, whose rows follow each other. Banks are joined when first used, beside the parts: a model
/// that never takes the concatenated product never pays.
///
/// Behind one lock, as arrays may move to other threads but not be used by two.
#[derive(Debug)]
struct Concat(Mutex<Joining>);

#[derive(Debug)]
struct Joining {
    parts: Vec<MlxWeight>,
    joined: Option<MlxWeight>,
}

impl Concat {
    fn lock(&self) -> MutexGuard<'_, Joining> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self) -> Vec<MlxWeight> {
        self.lock().parts.clone()
    }
}

impl Quantized {
    fn new(bank: QuantizedExperts) -> Result<Self> {
        let matrix = if bank.n_experts() == 1 {
            let first = |a: &Array| a.squeeze_axes(&[0]).map_err(f("upload"));
            let biases = bank.biases().map(first).transpose()?;
            Some([Some(first(bank.weight())?), Some(first(bank.scales())?), biases])
        } else {
            None
        };
        Ok(Self { bank, matrix })
    }

    fn packed(&self) -> Packed<'_> {
        let spec = self.bank.spec();
        match &self.matrix {
            Some([Some(weight), Some(scales), biases]) => {
                Packed { weight, scales, biases: biases.as_ref(), spec }
            }
            _ => packed(&self.bank),
        }
    }
}

/// The arrays of a bank.
pub(crate) fn packed(bank: &QuantizedExperts) -> Packed<'_> {
    Packed { weight: bank.weight(), scales: bank.scales(), biases: bank.biases(), spec: bank.spec() }
}

impl MlxWeight {
    /// Copies a weight from host memory.
    pub(super) fn upload(host: &HostWeight, numerics: Numerics) -> Result<Self> {
        if host.has_factors() {
            // MLX's C interface has no second scale; bf16 is what mlx-lm computes in.
            return Self::upload(&host.to_bf16(), numerics);
        }
        let (n_mats, n_out, n_in) = (host.n_mats(), host.n_out(), host.n_in());
        let float = |a: Array| match numerics {
            Numerics::Exact => Ok(a),
            Numerics::Accurate => a.as_dtype(Dtype::Float32).map_err(f("upload")),
        };
        let kind = match host.format() {
            WeightFormat::Dense(dtype) => {
                let shape = if n_mats == 1 { vec![n_out, n_in] } else { vec![n_mats, n_out, n_in] };
                let array = float(copy(host, |m| &m.data, dtype, &shape)?)?;
                array.eval().map_err(f("upload"))?;
                Kind::Dense(array)
            }
            WeightFormat::Quantized { spec, scale_dtype } => {
                let words = [n_mats, n_out, n_in * spec.bits() / 32];
                let groups = [n_mats, n_out, n_in / spec.group_size()];
                let weight = copy(host, |m| &m.data, DType::U32, &words)?;
                let mut scales = copy(host, |m| &m.scales, scale_dtype, &groups)?;
                let mut biases = None;
                if spec.mode() == QuantMode::Affine {
                    scales = float(scales)?;
                    biases = Some(float(copy(host, |m| &m.biases, scale_dtype, &groups)?)?);
                }
                let quantized = Quantized::new(QuantizedExperts::new(weight, scales, biases, spec)?)?;
                quantized.eval()?;
                Kind::Quantized(quantized)
            }
        };
        Ok(Self { n_mats, n_out, n_in, kind })
    }

    /// The weight that a bank of an mlx-rs program is; nothing is copied.
    ///
    /// # Errors
    /// A device fault.
    pub fn from_experts(bank: QuantizedExperts) -> Result<Self> {
        let (n_mats, n_out, n_in) = (bank.n_experts(), bank.n_out(), bank.n_in());
        Ok(Self { n_mats, n_out, n_in, kind: Kind::Quantized(Quantized::new(bank)?) })
    }

    /// The weight that a dense array `[n_in]`, `[n_out, n_in]` or `[n_mats, n_out, n_in]` is; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Precondition`] if the shape is another, or the elements are no floats.
    pub fn from_dense(array: Array) -> Result<Self> {
        const OP: &str = "dense weight";
        let float = matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
        ensure(float, OP, "array", "f32, f16 or bf16", array.dtype())?;
        let shape: Vec<usize> = array.shape().iter().map(|n| *n as usize).collect();
        let (n_mats, n_out, n_in) = match shape[..] {
            [n_in] => (1, 1, n_in),
            [n_out, n_in] => (1, n_out, n_in),
            [n_mats, n_out, n_in] => (n_mats, n_out, n_in),
            _ => return ensure(false, OP, "array", "1 to 3 dimensions", shape).map(|()| unreachable!()),
        };
        ensure(n_mats * n_out * n_in > 0, OP, "array", "no empty dimension", &shape)?;
        let shape = if n_mats == 1 { vec![n_out, n_in] } else { shape };
        let shape: Vec<i32> = shape.iter().map(|n| *n as i32).collect();
        let array = array.reshape(&shape).map_err(f(OP))?;
        Ok(Self { n_mats, n_out, n_in, kind: Kind::Dense(array) })
    }

    pub(super) fn concat_rows(weights: &[&Self]) -> Result<Self> {
        const OP: &str = "concat_rows";
        ensure(!weights.is_empty(), OP, "parts", "at least one", 0)?;
        let (n_mats, n_in) = (weights[0].n_mats, weights[0].n_in);
        let mut parts = Vec::new();
        for w in weights {
            let got = (w.n_mats, w.n_in);
            ensure(got == (n_mats, n_in), OP, "parts", format_args!("{n_mats} matrices {n_in} wide"), got)?;
            match &w.kind {
                Kind::Concat(c) => parts.extend(c.parts()),
                Kind::Joined(joined) => parts.extend(joined.parts.iter().cloned()),
                Kind::Dense(_) | Kind::Quantized(_) => parts.push((*w).clone()),
            }
        }
        let n_out = parts.iter().map(|p| p.n_out).sum();
        let concat = Arc::new(Concat(Mutex::new(Joining { parts, joined: None })));
        Ok(Self { n_mats, n_out, n_in, kind: Kind::Concat(concat) })
    }

    /// The rows of all parts in one matrix, and the parts as views of it. Banks, and parts of different formats, stay what they
    /// are: [`Self::concat_rows`].
    pub(super) fn join_rows(parts: Vec<Self>, numerics: Numerics) -> Result<(Self, Vec<Self>)> {
        let whole = Self::concat_rows(&parts.iter().collect::<Vec<_>>())?;
        let is_plain = |w: &Self| w.n_mats == 1 && matches!(w.kind, Kind::Dense(_) | Kind::Quantized(_));
        if parts.len() < 2 || !parts.iter().all(is_plain) {
            return Ok((whole, parts));
        }
        let Some(whole) = whole.join(&parts)? else { return Ok((whole, parts)) };
        whole.eval("join_rows")?;
        let mut start = 0;
        let mut views = Vec::with_capacity(parts.len());
        for part in &parts {
            views.push(whole.rows_view(start, part.n_out)?);
            start += part.n_out;
        }
        let order = |w: &Self| w.experts().map(|bank| stock::dense(bank.spec(), 1, w.n_out, w.n_in));
        let is_exact_for_one_row = views.iter().all(|part| order(part) == order(&whole));
        let (n_mats, n_out, n_in) = (whole.n_mats, whole.n_out, whole.n_in);
        let joined = Joined { whole, parts: views.clone(), is_exact_for_one_row, numerics };
        Ok((Self { n_mats, n_out, n_in, kind: Kind::Joined(Box::new(joined)) }, views))
    }

    /// Computes what it holds.
    fn eval(&self, op: &'static str) -> Result<()> {
        match &self.kind {
            Kind::Dense(a) => a.eval().map_err(f(op)),
            Kind::Quantized(q) => q.eval(),
            Kind::Joined(_) | Kind::Concat(_) => Ok(()),
        }
    }

    /// Some rows of one matrix, in the same memory.
    fn rows_view(&self, start: usize, n_out: usize) -> Result<Self> {
        const OP: &str = "join_rows";
        let rows = |a: &Array| {
            let (mut from, mut to) = (vec![0; a.ndim()], a.shape().to_vec());
            (from[a.ndim() - 2], to[a.ndim() - 2]) = (start as i32, (start + n_out) as i32);
            raw::slice(OP, a, &from, &to)
        };
        let kind = match &self.kind {
            Kind::Dense(a) => Kind::Dense(rows(a)?),
            Kind::Quantized(q) => {
                let biases = q.bank.biases().map(rows).transpose()?;
                let bank = QuantizedExperts::view(
                    rows(q.bank.weight())?,
                    rows(q.bank.scales())?,
                    biases,
                    q.bank.spec(),
                )?;
                Kind::Quantized(Quantized::new(bank)?)
            }
            Kind::Joined(_) | Kind::Concat(_) => {
                return Err(self.unsupported(OP, "it is a concatenation itself"));
            }
        };
        let view = Self { n_out, kind, ..*self };
        view.eval(OP)?;
        Ok(view)
    }

    /// Number of matrices.
    pub fn n_mats(&self) -> usize {
        self.n_mats
    }

    /// Rows of each matrix.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of each matrix.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// The quantised arrays; `None` for dense weights and concatenations.
    pub fn experts(&self) -> Option<&QuantizedExperts> {
        match &self.kind {
            Kind::Quantized(q) => Some(&q.bank),
            _ => None,
        }
    }

    /// A vector of `len` values.
    pub(super) fn vector(&self, op: &'static str, len: usize) -> Result<Array> {
        self.vectors(op, 1, len)?.reshape(&[len as i32]).map_err(f(op))
    }

    /// `n_mats` vectors of `len` values each, `[n_mats, len]`.
    pub(super) fn vectors(&self, op: &'static str, n_mats: usize, len: usize) -> Result<Array> {
        let shape = [self.n_mats, self.n_out, self.n_in];
        ensure(shape == [n_mats, 1, len], op, "weight", format_args!("[{n_mats}, 1, {len}]"), shape)?;
        match &self.kind {
            Kind::Dense(a) => a.reshape(&[n_mats as i32, len as i32]).map_err(f(op)),
            _ => Err(self.unsupported(op, "the vector is not one dense array")),
        }
    }

    fn unsupported(&self, op: &'static str, why: &str) -> Error {
        Error::Unsupported { op, backend: NAME, why: why.to_owned() }
    }

    /// One product over all rows if all parts have one format, else none.
    fn joined(&self, concat: &Concat) -> Result<Option<Self>> {
        const OP: &str = "concat_rows";
        let mut concat = concat.lock();
        if concat.joined.is_none() {
            let joined = self.join(&concat.parts)?;
            joined.as_ref().map(|w| w.eval(OP)).transpose()?;
            concat.joined = joined;
        }
        Ok(concat.joined.clone())
    }

    fn join(&self, parts: &[Self]) -> Result<Option<Self>> {
        let rows = |arrays: &[&Array]| ops::concatenate(arrays, -2).map_err(f("concat_rows"));
        let dense: Vec<&Array> = parts.iter().filter_map(Self::dense).collect();
        let banks: Vec<&QuantizedExperts> = parts.iter().filter_map(Self::experts).collect();
        let kind = if dense.len() == parts.len() {
            if dense.iter().any(|a| a.dtype() != dense[0].dtype()) {
                return Ok(None);
            }
            Kind::Dense(rows(&dense)?)
        } else if banks.len() == parts.len() {
            let format = |b: &QuantizedExperts| (b.spec(), b.scales().dtype());
            if banks.iter().any(|b| format(b) != format(banks[0])) {
                return Ok(None);
            }
            let biases: Vec<&Array> = banks.iter().filter_map(|b| b.biases()).collect();
            let biases = if biases.is_empty() { None } else { Some(rows(&biases)?) };
            let weight = rows(&banks.iter().map(|b| b.weight()).collect::<Vec<_>>())?;
            let scales = rows(&banks.iter().map(|b| b.scales()).collect::<Vec<_>>())?;
            Kind::Quantized(Quantized::new(QuantizedExperts::new(weight, scales, biases, banks[0].spec())?)?)
        } else {
            return Ok(None);
        };
        Ok(Some(Self { kind, ..*self }))
    }

    fn dense(&self) -> Option<&Array> {
        match &self.kind {
            Kind::Dense(a) => Some(a),
            _ => None,
        }
    }

    /// `product(w)` of the whole weight, or of its parts side by side.
    pub(super) fn each(&self, op: &'static str, product: &dyn Fn(&Self) -> Result<Array>) -> Result<Array> {
        match &self.kind {
            Kind::Dense(_) | Kind::Quantized(_) => product(self),
            Kind::Joined(joined) => product(&joined.whole),
            Kind::Concat(concat) => match self.joined(concat)? {
                Some(joined) => product(&joined),
                None => side_by_side(op, &concat.parts(), product),
            },
        }
    }

    /// The parts whose products with `x` make up its product, if that is not one product.
    pub(super) fn parts_for(&self, x: &Array) -> Option<&[Self]> {
        match &self.kind {
            Kind::Joined(joined) if !joined.is_like_parts(x) => Some(&joined.parts),
            _ => None,
        }
    }

    /// `x · Wᵀ` or `x · W`, with one matrix per entry of the dimension before the last two if it is a bank.
    pub(super) fn matmul(&self, op: &'static str, x: &Array, product: Product) -> Result<Array> {
        match &self.kind {
            Kind::Dense(w) => {
                let w = match product {
                    Product::Transposed => w.swap_axes(-1, -2).map_err(f(op))?,
                    Product::Plain => w.clone(),
                };
                x.matmul(&w).map_err(f(op))
            }
            Kind::Quantized(q) => raw::quantized_matmul(op, x, q.packed(), product),
            // Of more rows than one, MLX chooses the kernel by the number of rows of the matrix, too.
            Kind::Joined(joined) if product == Product::Transposed && !joined.is_like_parts(x) => {
                side_by_side(op, &joined.parts, &|w| w.matmul(op, x, product))
            }
            Kind::Joined(joined) => joined.whole.matmul(op, x, product),
            Kind::Concat(concat) => match (self.joined(concat)?, product) {
                (Some(joined), _) => joined.matmul(op, x, product),
                (None, Product::Transposed) => self.each(op, &|w| w.matmul(op, x, product)),
                (None, Product::Plain) => {
                    Err(self.unsupported(op, "the weight is a concatenation of several formats"))
                }
            },
        }
    }

    /// `x[.., m, n_in]` times the matrix of each entry of `experts`, which broadcast with x's other dimensions.
    pub(super) fn gather(
        &self,
        op: &'static str,
        x: &Array,
        experts: &Array,
        order: raw::Order,
    ) -> Result<Array> {
        self.each(op, &|w| match &w.kind {
            Kind::Dense(a) => {
                // A bank of one matrix has no dimension for it.
                let shape = [w.n_mats as i32, w.n_out as i32, w.n_in as i32];
                let a = a.reshape(&shape).and_then(|a| a.swap_axes(-1, -2)).map_err(f(op))?;
                ops::gather_mm(x, a, None, experts, order == raw::Order::Sorted).map_err(f(op))
            }
            Kind::Quantized(q) => {
                let rows = match order {
                    raw::Order::Unsorted => rows_in_order(&x.shape()[..x.ndim() - 2]),
                    raw::Order::Sorted => None,
                };
                raw::gather_qmm(op, x, packed(&q.bank), [rows.as_ref(), Some(experts)], order)
            }
            Kind::Joined(_) | Kind::Concat(_) => {
                Err(w.unsupported(op, "a part of a concatenation is one itself"))
            }
        })
    }

    /// The rows `ids` (`[n]`, all in range), dequantised.
    pub(super) fn rows(&self, op: &'static str, ids: &Array) -> Result<Array> {
        let take = |a: &Array| a.take_axis(ids, 0).map_err(f(op));
        match &self.kind {
            Kind::Dense(a) => take(a),
            Kind::Quantized(q) => {
                let p = q.packed();
                let (weight, scales) = (take(p.weight)?, take(p.scales)?);
                let biases = p.biases.map(take).transpose()?;
                let rows = Packed { weight: &weight, scales: &scales, biases: biases.as_ref(), spec: p.spec };
                if p.spec.mode() == QuantMode::Nvfp4 && !self.n_in.is_multiple_of(32) {
                    // MLX 0.32.2 dequantises nvfp4 by pairs of groups only. A product with ones is exact, too.
                    let ones = mlx_rs::ops::identity::<f32>(self.n_in as i32).map_err(f(op))?;
                    let columns = raw::quantized_matmul(op, &ones, rows, Product::Transposed)?;
                    return columns.swap_axes(-1, -2).map_err(f(op));
                }
                raw::dequantize(op, rows)
            }
            Kind::Joined(joined) => joined.whole.rows(op, ids),
            Kind::Concat(concat) => {
                if let Some(joined) = self.joined(concat)? {
                    return joined.rows(op, ids);
                }
                // Each id lies in one part: take from all, clamped, and keep what the id names.
                let mut first = 0;
                let mut y = zeros(op, &[ids.size(), self.n_in], Dtype::Float32)?;
                for part in &concat.parts() {
                    let at = Array::from_int(first as i32);
                    let last = Array::from_int(part.n_out as i32 - 1);
                    let row = ids.as_dtype(Dtype::Int32).and_then(|i| i.subtract(&at)).map_err(f(op))?;
                    let inside = row.ge(Array::from_int(0)).and_then(|a| a.logical_and(row.le(&last)?));
                    let clamped = ops::minimum(&row, &last).and_then(|i| ops::maximum(i, Array::from_int(0)));
                    let clamped = clamped.map_err(f(op))?;
                    let rows = part.rows(op, &clamped)?;
                    let inside = inside.and_then(|a| a.expand_dims(-1)).map_err(f(op))?;
                    y = ops::select(&inside, &rows, &y).map_err(f(op))?;
                    first += part.n_out;
                }
                Ok(y)
            }
        }
    }
}

impl Joined {
    /// Whether the product with the whole matrix may stand for those with its parts.
    fn is_like_parts(&self, x: &Array) -> bool {
        let n_rows = x.size() / self.whole.n_in;
        self.numerics == Numerics::Accurate || n_rows == 1 && self.is_exact_for_one_row
    }
}

/// The products with each of these weights, side by side.
fn side_by_side(
    op: &'static str,
    parts: &[MlxWeight],
    product: &dyn Fn(&MlxWeight) -> Result<Array>,
) -> Result<Array> {
    let parts = parts.iter().map(product).collect::<Result<Vec<_>>>()?;
    ops::concatenate(&parts, -1).map_err(f(op))
}

impl Quantized {
    fn eval(&self) -> Result<()> {
        let b = &self.bank;
        let matrix = self.matrix.iter().flatten().flatten();
        let arrays = [b.weight(), b.scales()].into_iter().chain(b.biases()).chain(matrix);
        mlx_rs::transforms::eval(arrays).map_err(f("upload"))
    }
}

/// The buffers of all matrices, one after the other, as an array of `dtype`.
fn copy(
    host: &HostWeight,
    of: impl Fn(&crate::WeightBytes) -> &bytes::Bytes,
    dtype: DType,
    shape: &[usize],
) -> Result<Array> {
    const OP: &str = "upload";
    let mut joined = Vec::new();
    let all: &[u8] = if host.n_mats() == 1 {
        of(host.mat(0))
    } else {
        joined.reserve_exact(host.n_mats() * of(host.mat(0)).len());
        (0..host.n_mats()).for_each(|i| joined.extend_from_slice(of(host.mat(i))));
        &joined
    };
    let too_large = || Error::Unsupported {
        op: OP,
        backend: NAME,
        why: format!("{} bytes in one weight: MLX counts in 32 bits", all.len()),
    };
    let n_bytes = i32::try_from(all.len()).map_err(|_| too_large())?;
    let shape: Vec<i32> = shape.iter().map(|n| *n as i32).collect();
    // As bytes first: those of a file may lie at any address.
    Array::from_slice(all, &[n_bytes])
        .view_dtype(mlx_dtype(dtype))
        .and_then(|a| a.reshape(&shape))
        .map_err(f(OP))
}

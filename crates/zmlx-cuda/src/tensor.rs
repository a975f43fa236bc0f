//! Tensors: values on the device, or what will compute them.

use std::sync::{Arc, Mutex};

use zmlx_core::Result;

use crate::communicator::Communicator;
use crate::device::Device;
use crate::host_copy::HostCopy;
use crate::matmul::Grouped;
use crate::memory::{Buffer, lock};
use crate::products::Product;
use crate::rows::{copy_rows, rms_norm};
use crate::step::StepData;
use crate::weight::Vector;

pub(crate) use zmlx_core::check::ensure;

/// The dimensions of a tensor: one to four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// # Errors
    /// If there are no or more than four dimensions, or the product overflows.
    pub(crate) fn new(op: &'static str, shape: &[usize]) -> Result<Self> {
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).and_then(|n| n.checked_mul(4));
        let fits = (1..=4).contains(&shape.len()) && len.is_some();
        ensure(fits, op, "shape", "one to four dimensions", shape)?;
        let mut dims = [1; 4];
        dims[..shape.len()].copy_from_slice(shape);
        Ok(Self { dims, rank: shape.len() })
    }

    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub(crate) fn len(&self) -> usize {
        self.dims().iter().product()
    }

    pub(crate) fn last(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// The product of all dimensions but the last.
    pub(crate) fn n_rows(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    pub(crate) fn with_first(mut self, first: usize) -> Self {
        self.dims[0] = first;
        self
    }

    pub(crate) fn with_last(mut self, last: usize) -> Self {
        self.dims[self.rank - 1] = last;
        self
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dims().fmt(f)
    }
}

/// Values in a buffer: segments of consecutive ones at equal distances.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) buffer: Arc<Buffer>,
    /// In values, as all that follows.
    pub(crate) offset: usize,
    pub(crate) segment: usize,
    pub(crate) stride: usize,
    pub(crate) len: usize,
}

/// Rows of a view, as the kernels take them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) data: u64,
    pub(crate) per_segment: u32,
    pub(crate) stride: u32,
}

impl View {
    /// All of a buffer of `len` values.
    pub(crate) fn whole(buffer: Arc<Buffer>, len: usize) -> Self {
        Self { buffer, offset: 0, segment: len, stride: len, len }
    }

    /// Where the values begin.
    pub(crate) fn at(&self) -> u64 {
        self.buffer.at() + 4 * self.offset as u64
    }

    /// Whether rows can be read 16 bytes at a time.
    pub(crate) fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(4) && self.stride.is_multiple_of(4)
    }

    fn is_contiguous(&self) -> bool {
        self.segment >= self.len || self.stride == self.segment
    }

    /// The view as rows of `width` values; `None` if a row would not lie in one piece, or numbers do not fit.
    pub(crate) fn rows(&self, width: usize) -> Option<Rows> {
        let (segment, stride) =
            if self.is_contiguous() { (width, width) } else { (self.segment, self.stride) };
        let fits = width > 0 && segment.is_multiple_of(width) && stride <= u32::MAX as usize;
        fits.then(|| Rows { data: self.at(), per_segment: (segment / width) as u32, stride: stride as u32 })
    }

    /// Columns of rows of `width` values; `None` if that is not a view of this kind.
    pub(crate) fn columns(&self, width: usize, range: &std::ops::Range<usize>) -> Option<Self> {
        let stride = if self.is_contiguous() {
            width
        } else if self.segment == width {
            self.stride
        } else {
            return None;
        };
        let n_rows = self.len / width;
        Some(Self {
            buffer: Arc::clone(&self.buffer),
            offset: self.offset + range.start,
            segment: range.len(),
            stride,
            len: n_rows * range.len(),
        })
    }
}

/// What turns heads by their positions.
#[derive(Clone)]
pub(crate) struct Rotation {
    /// Half turns per position of each pair, f64.
    pub(crate) half_turns: Arc<Buffer>,
    pub(crate) dims: u32,
    pub(crate) is_interleaved: u32,
    pub(crate) scale: f32,
}

/// A norm over rows.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Vector,
    pub(crate) eps: f32,
}

/// Normed rows as quantised products take them, once one of these has made that.
pub(crate) type Staged = Arc<Mutex<Option<Arc<Buffer>>>>;

/// Heads that will be normed, rotated, or both.
#[derive(Clone)]
pub(crate) struct Heads {
    pub(crate) x: View,
    pub(crate) width: usize,
    pub(crate) norm: Option<Norm>,
    pub(crate) rotation: Option<(Rotation, Arc<StepData>, usize)>,
    pub(crate) staged: Staged,
}

/// An op that has not been launched: something that needs its result may take it along.
#[derive(Clone)]
pub(crate) enum Pending {
    /// Rows that are normed.
    Heads(Heads),
    /// A product, to which something may be added.
    Product(Box<Product>),
    /// A sum over all ranks, to which something may be added.
    RankSum(RankSum),
}

/// What the ranks will sum up.
#[derive(Clone)]
pub(crate) struct RankSum {
    pub(crate) ranks: Arc<Communicator>,
    /// This rank's summand.
    pub(crate) x: CudaTensor,
}

impl RankSum {
    /// The sum, and a residual. A product that has not been launched makes the sum itself if it can.
    pub(crate) fn launch(&self, device: &Arc<Device>, residual: Option<&View>) -> Result<View> {
        let (n_rows, n_values) = (self.x.shape.n_rows(), self.x.shape.len());
        if let Some(Pending::Product(product)) = self.x.op()
            && let Some(mailboxes) = self.ranks.mailbox_args(n_rows, n_values)
            && let Some(sum) = product.with_sum_of_ranks(device, mailboxes)
        {
            return sum.launch(device, residual);
        }
        self.ranks.all_sum(&self.x.contiguous(device)?, n_rows, residual)
    }
}

enum State {
    Ready(View),
    Pending(Pending),
}

/// Activations of the CUDA backend: f32, row-major.
#[derive(Clone)]
pub struct CudaTensor {
    pub(crate) shape: Shape,
    state: Arc<Mutex<State>>,
    /// The values on their way to the host.
    pub(crate) copy: Option<Arc<HostCopy>>,
}

impl CudaTensor {
    pub(crate) fn ready(shape: Shape, view: View) -> Self {
        debug_assert_eq!(shape.len(), view.len);
        Self { shape, state: Arc::new(Mutex::new(State::Ready(view))), copy: None }
    }

    pub(crate) fn pending(shape: Shape, op: Pending) -> Self {
        Self { shape, state: Arc::new(Mutex::new(State::Pending(op))), copy: None }
    }

    /// A buffer for the values of a tensor, and the tensor.
    pub(crate) fn fresh(device: &Arc<Device>, shape: Shape) -> Result<(Self, u64)> {
        let buffer = Buffer::scratch(device, 4 * shape.len())?;
        let at = buffer.at();
        Ok((Self::ready(shape, View::whole(buffer, shape.len())), at))
    }

    /// The same values with another shape of equal length.
    pub(crate) fn reshaped(&self, shape: Shape) -> Self {
        Self { shape, state: Arc::clone(&self.state), copy: self.copy.clone() }
    }

    /// The same tensor, whose values are on their way to the host.
    pub(crate) fn with_copy(self, copy: HostCopy) -> Self {
        Self { copy: Some(Arc::new(copy)), ..self }
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Whether both are the same values, however they are shaped.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// The op that will compute the values, if it has not been launched.
    pub(crate) fn op(&self) -> Option<Pending> {
        match &*lock(&self.state) {
            State::Ready(_) => None,
            State::Pending(op) => Some(op.clone()),
        }
    }

    /// The values, which something else has computed from [`CudaTensor::op`].
    pub(crate) fn set(&self, view: View) {
        *lock(&self.state) = State::Ready(view);
    }

    /// The values, wherever they lie; launches what computes them.
    pub(crate) fn view(&self, device: &Arc<Device>) -> Result<View> {
        let mut state = lock(&self.state);
        let view = match &*state {
            State::Ready(view) => return Ok(view.clone()),
            State::Pending(Pending::Heads(heads)) => rms_norm(device, heads, self.shape.len())?,
            State::Pending(Pending::Product(product)) => product.launch(device, None)?,
            State::Pending(Pending::RankSum(sum)) => sum.launch(device, None)?,
        };
        *state = State::Ready(view.clone());
        Ok(view)
    }

    /// The values one after the other.
    pub(crate) fn contiguous(&self, device: &Arc<Device>) -> Result<View> {
        let view = self.view(device)?;
        if view.is_contiguous() {
            return Ok(view);
        }
        let packed = copy_rows(device, &view, view.segment, 0..view.segment, None)?;
        *lock(&self.state) = State::Ready(packed.clone());
        Ok(packed)
    }

    /// The values as rows of `width`.
    pub(crate) fn rows(&self, device: &Arc<Device>, width: usize) -> Result<(View, Rows)> {
        let view = self.view(device)?;
        if let Some(rows) = view.rows(width) {
            return Ok((view, rows));
        }
        let view = self.contiguous(device)?;
        let rows = Rows { data: view.at(), per_segment: 1, stride: width as u32 };
        Ok((view, rows))
    }
}

impl std::fmt::Debug for CudaTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shape.fmt(f)
    }
}

/// Token ids and expert choices of the CUDA backend.
#[derive(Clone)]
pub struct CudaIndices {
    pub(crate) shape: Shape,
    pub(crate) buffer: Arc<Buffer>,
    /// Words before the first of them.
    pub(crate) offset: usize,
    /// The values, where they came from the host.
    pub(crate) host: Option<Arc<[u32]>>,
    /// All indices are below this, where they were made on the device.
    pub(crate) bound: usize,
    /// The jobs that they choose experts for, by expert.
    pub(crate) grouped: Grouped,
    /// The launch that wrote them.
    pub(crate) launch: u64,
    /// The values on their way to the host.
    pub(crate) copy: Option<CopiedIndices>,
}

/// The buffer of indices on its way to the host: all indices that it holds, then what else is told of each.
#[derive(Clone)]
pub(crate) struct CopiedIndices {
    pub(crate) values: Arc<HostCopy>,
    /// Number of indices in the buffer.
    pub(crate) n: usize,
    /// Words that belong to an index, the index itself included; `n` apart.
    pub(crate) n_words: usize,
}

impl std::fmt::Debug for CudaIndices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shape.fmt(f)
    }
}

impl CudaIndices {
    /// Indices below `bound` that the latest launch has written to the beginning of a buffer.
    pub(crate) fn written(device: &Device, shape: Shape, buffer: Arc<Buffer>, bound: usize) -> Self {
        let launch = device.driver.last_launch();
        Self { shape, buffer, offset: 0, host: None, bound, grouped: Grouped::default(), launch, copy: None }
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Where they are.
    pub(crate) fn at(&self) -> u64 {
        self.buffer.at() + 4 * self.offset as u64
    }

    /// One list after the other. Nothing is copied if they lie in one buffer in this order.
    pub(crate) fn join(device: &Arc<Device>, op: &'static str, lists: &[&Self]) -> Result<Self> {
        ensure(!lists.is_empty(), op, "lists", "at least one", lists.len())?;
        for list in lists {
            ensure(list.dims().len() == 1, op, "list", "[n]", list)?;
        }
        let n = lists.iter().map(|list| list.shape.len()).sum();
        let shape = Shape::new(op, &[n])?;
        let bound = lists.iter().map(|list| list.least_bound()).max().unwrap_or(0);
        let goes_on = |pair: &[&Self]| {
            Arc::ptr_eq(&pair[0].buffer, &pair[1].buffer)
                && pair[0].offset + pair[0].shape.len() == pair[1].offset
        };
        if lists.windows(2).all(goes_on) {
            return Ok(Self { shape, bound, host: None, ..lists[0].clone() });
        }
        let buffer = Buffer::scratch(device, 4 * n)?;
        device.driver.bind()?;
        let mut n_before = 0;
        for list in lists {
            let len = list.shape.len();
            buffer.copy_from(4 * n_before, (&list.buffer, 4 * list.offset), 4 * len)?;
            n_before += len;
        }
        Ok(Self::written(device, shape, buffer, bound))
    }

    /// All indices are below this.
    fn least_bound(&self) -> usize {
        match &self.host {
            Some(host) => host.iter().max().map_or(0, |most| *most as usize + 1),
            None => self.bound,
        }
    }

    /// Checks that every index is below `len`; reads them back only where that is not known.
    pub(crate) fn check(&self, op: &'static str, what: &'static str, len: usize) -> Result<()> {
        let mut values = Vec::new();
        let values: &[u32] = match &self.host {
            Some(host) => host,
            None if self.bound <= len => return Ok(()),
            None => {
                self.buffer.read(4 * self.offset, self.shape.len(), &mut values)?;
                &values
            }
        };
        match values.iter().find(|i| **i as usize >= len) {
            Some(i) => Err(zmlx_core::Error::IndexOutOfRange { op, what, index: *i as usize, len }),
            None => Ok(()),
        }
    }
}

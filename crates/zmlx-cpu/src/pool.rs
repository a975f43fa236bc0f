//! Buffers that are reused: once warm, a decode step allocates nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use aligned_vec::AVec;

use zmlx_core::check::ensure;
use zmlx_core::{Error, Result, ensure_memory};

/// The largest number of elements of a tensor. It is far below the point where sizes computed from tensors would
/// overflow.
const MAX_LEN: usize = 1 << 48;

/// The dimensions of a tensor: one to four.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    /// # Errors
    /// If there are not one to four dimensions, or if any of them make too many elements, even if another dimension is
    /// 0.
    pub(crate) fn new(op: &'static str, shape: &[usize]) -> Result<Self> {
        let len = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d.max(&1)));
        let fits = (1..=4).contains(&shape.len()) && len.is_some_and(|n| n <= MAX_LEN);
        ensure(fits, op, "shape", "one to four dimensions, of at most 2^48 elements", shape)?;
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

    /// # Errors
    /// As [`Shape::new`].
    pub(crate) fn with_last(mut self, op: &'static str, last: usize) -> Result<Self> {
        self.dims[self.rank - 1] = last;
        Self::new(op, self.dims())
    }
}

/// Formats the shape as a slice, because it appears in error messages.
impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.dims().fmt(f)
    }
}

/// A vector that begins on a cache line, so that loads of whole vectors do not cross a line.
#[derive(Debug)]
pub(crate) struct Aligned<T>(AVec<T>);

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        // The smallest alignment is that of the type, which is twice a cache line.
        Self(AVec::new(0))
    }
}

impl<T> Deref for Aligned<T> {
    type Target = AVec<T>;
    fn deref(&self) -> &AVec<T> {
        &self.0
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut AVec<T> {
        &mut self.0
    }
}

/// Free buffers of one element type.
struct Pool<T> {
    free: Mutex<Vec<Arc<Aligned<T>>>>,
}

impl<T> Pool<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Aligned<T>>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a buffer holds before it is written, in builds with debug assertions: a value that makes every result wrong.
pub(crate) trait Poison: Copy {
    const POISON: Self;
}

impl Poison for f32 {
    const POISON: Self = Self::NAN;
}

impl Poison for u32 {
    const POISON: Self = Self::MAX;
}

/// A handle to a pool of buffers.
pub(crate) struct Buffers<T>(Arc<Pool<T>>);

impl<T: Poison> Buffers<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Pool { free: Mutex::new(Vec::new()) }))
    }

    /// A buffer of `len` elements with unspecified values. The caller writes all of them.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough memory.
    pub(crate) fn take(&self, op: &'static str, len: usize) -> Result<Fresh<T>> {
        let mut free = self.0.lock();
        // The smallest buffer that is large enough, or else the largest one, which then grows.
        let fits = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
        let best = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        let mut data = best.map_or_else(|| Arc::new(Aligned::default()), |i| free.swap_remove(i));
        drop(free);
        let values = Arc::get_mut(&mut data).expect("a free buffer has one owner");
        // A buffer never shrinks, so that elements that have been written once need not be written again when it grows.
        let had = values.len();
        if had < len {
            let n_bytes = len.saturating_mul(size_of::<T>());
            ensure_memory(op, n_bytes)?;
            values.try_reserve(len - had).map_err(|_| Error::Memory { op, n_bytes })?;
            values.resize(len, T::POISON);
        }
        if cfg!(debug_assertions) {
            values[..len].fill(T::POISON);
        }
        Ok(Fresh { buffer: Shared { data: Some(data), len, pool: Arc::clone(&self.0) } })
    }
}

/// A buffer with a single owner, which may write to it.
pub(crate) struct Fresh<T> {
    buffer: Shared<T>,
}

impl<T> Fresh<T> {
    pub(crate) fn freeze(self) -> Shared<T> {
        self.buffer
    }
}

impl<T> Deref for Fresh<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.buffer.values()
    }
}

impl<T> DerefMut for Fresh<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let Shared { data, len, .. } = &mut self.buffer;
        let data = data.as_mut().expect("present until dropped");
        &mut Arc::get_mut(data).expect("a fresh buffer has one owner")[..*len]
    }
}

/// A shared, read-only buffer. Its last owner returns it to its pool.
pub(crate) struct Shared<T> {
    data: Option<Arc<Aligned<T>>>,
    /// Number of elements in use.
    len: usize,
    pool: Arc<Pool<T>>,
}

impl<T> Shared<T> {
    pub(crate) fn values(&self) -> &[T] {
        &self.data.as_ref().expect("present until dropped")[..self.len]
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), len: self.len, pool: Arc::clone(&self.pool) }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.take()
            && Arc::get_mut(&mut data).is_some()
        {
            self.pool.lock().push(data);
        }
    }
}

/// Activations of the CPU backend: f32, row-major.
#[derive(Clone)]
pub struct CpuTensor {
    pub(crate) shape: Shape,
    pub(crate) data: Shared<f32>,
}

impl CpuTensor {
    pub(crate) fn new(shape: Shape, data: Fresh<f32>) -> Self {
        debug_assert_eq!(shape.len(), data.len());
        Self { shape, data: data.freeze() }
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.data.values()
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.shape.dims()
    }
}

impl std::fmt::Debug for CpuTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuTensor").field("shape", &self.dims()).finish_non_exhaustive()
    }
}

/// Token ids or expert indices of the CPU backend.
#[derive(Clone)]
pub struct CpuIndices {
    pub(crate) shape: Shape,
    pub(crate) data: Shared<u32>,
}

impl CpuIndices {
    pub(crate) fn values(&self) -> &[u32] {
        self.data.values()
    }

    pub(crate) fn dims(&self) -> &[usize] {
        self.shape.dims()
    }
}

impl std::fmt::Debug for CpuIndices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuIndices").field("shape", &self.dims()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_wrap_are_refused() {
        for shape in
            [&[1 << 62, 0, 8][..], &[0, usize::MAX], &[1 << 32, 1 << 32], &[0, 3, 1 << 47], &[], &[1; 5]]
        {
            assert!(Shape::new("test", shape).is_err(), "{shape:?}");
        }
        let shape = Shape::new("test", &[1 << 24, 1]).unwrap();
        assert!(shape.with_last("test", 1 << 40).is_err());
        assert_eq!(shape.with_last("test", 3).unwrap().len(), 3 << 24);
        let nothing = Buffers::<f32>::new().take("test", 1 << 60);
        assert!(matches!(nothing.err(), Some(Error::Memory { .. })));
    }

    #[test]
    fn buffers_come_poisoned_and_come_back() {
        let pool = Buffers::<f32>::new();
        for _ in 0..2 {
            let mut buffer = pool.take("test", 5).unwrap();
            assert!(!cfg!(debug_assertions) || buffer.iter().all(|v| v.is_nan()));
            buffer.fill(1.0);
            let shared = buffer.freeze();
            let other = shared.clone();
            drop(shared);
            assert!(pool.0.lock().is_empty(), "still in use");
            assert_eq!(other.values(), [1.0; 5]);
            drop(other);
            assert_eq!(pool.0.lock().len(), 1);
        }
    }
}

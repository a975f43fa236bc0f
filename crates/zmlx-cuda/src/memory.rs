//! Device memory: buffers that go back to a pool, and copies from and to the host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zmlx_core::Result;

use crate::device::Device;
use crate::driver::{Driver, Event};

/// Locks; a panic in another holder does not matter, as no holder leaves a state behind that another cannot use.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Free buffers by their size in bytes. What is freed can be used by the next op at once: the stream is in order.
#[derive(Default)]
pub(crate) struct Pool {
    free: Mutex<HashMap<usize, Vec<u64>>>,
}

impl Pool {
    /// Gives all free buffers back to the driver.
    pub(crate) fn clear(&self, driver: &Driver) {
        for at in lock(&self.free).drain().flat_map(|(_, all)| all) {
            // SAFETY: a free buffer is used by nobody.
            unsafe { driver.free(at) };
        }
    }
}

/// Device memory. The last owner gives it back.
pub(crate) struct Buffer {
    device: Arc<Device>,
    at: u64,
    n_bytes: usize,
    home: Home,
}

/// Where the memory of a buffer goes back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// The pool of ops that run as they are called.
    Pool,
    /// The pool of recorded ops: what a replay writes is no memory that a caller may hold meanwhile.
    Recorded,
    /// The driver.
    Driver,
}

impl Buffer {
    /// Memory for results of ops, whose values are whatever they were: the caller writes all of them. Builds with debug
    /// assertions fill it with NaN (words: `u32::MAX`).
    pub(crate) fn scratch(device: &Arc<Device>, n_bytes: usize) -> Result<Arc<Self>> {
        let n_bytes = n_bytes.max(256).next_power_of_two();
        let home = if device.is_recording() { Home::Recorded } else { Home::Pool };
        let free = lock(&device.pool(home).free).get_mut(&n_bytes).and_then(Vec::pop);
        let at = match free {
            Some(at) => at,
            None => device.driver.allocate(n_bytes)?,
        };
        let buffer = Arc::new(Self { device: Arc::clone(device), at, n_bytes, home });
        if cfg!(debug_assertions) {
            // SAFETY: the buffer is that long and nobody else's.
            unsafe { device.driver.fill(at, 0xff, n_bytes)? };
        }
        Ok(buffer)
    }

    /// Memory that stays as long as something owns it: weights, pages of caches. Filled with zeros.
    pub(crate) fn lasting(device: &Arc<Device>, n_bytes: usize) -> Result<Arc<Self>> {
        let at = device.driver.allocate(n_bytes)?;
        let buffer = Arc::new(Self { device: Arc::clone(device), at, n_bytes, home: Home::Driver });
        // SAFETY: the buffer is that long and nobody else's.
        unsafe { device.driver.fill(at, 0, n_bytes)? };
        Ok(buffer)
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Where `n_bytes` from byte `offset` on begin.
    pub(crate) fn range(&self, offset: usize, n_bytes: usize) -> u64 {
        assert!(offset + n_bytes <= self.n_bytes, "ranges stay within a buffer");
        self.at + offset as u64
    }

    /// Copies `bytes` to `offset`.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.n_bytes, "writes stay within a buffer");
        self.device.driver.bind()?;
        let mut staging = lock(&self.device.staging);
        staging.copy_in(&self.device.driver, self.at + offset as u64, bytes)
    }

    /// Copies `n_bytes` to byte `at` from byte `offset` of another buffer.
    pub(crate) fn copy_from(&self, at: usize, (from, offset): (&Self, usize), n_bytes: usize) -> Result<()> {
        let is_within = at + n_bytes <= self.n_bytes && offset + n_bytes <= from.n_bytes;
        assert!(is_within, "copies stay within buffers");
        // SAFETY: both ranges were just checked.
        unsafe { self.device.driver.copy_within(self.at + at as u64, from.at + offset as u64, n_bytes) }
    }

    /// Replaces `out` by `n` values from byte `offset` on, when all ops in front are done.
    pub(crate) fn read<T: Plain>(&self, offset: usize, n: usize, out: &mut Vec<T>) -> Result<()> {
        let n_bytes = n * size_of::<T>();
        assert!(offset + n_bytes <= self.n_bytes, "reads stay within a buffer");
        self.device.driver.bind()?;
        let mut staging = lock(&self.device.staging);
        staging.copy_out(&self.device.driver, self.at + offset as u64, n, out)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.home != Home::Driver {
            let pool = self.device.pool(self.home);
            lock(&pool.free).entry(self.n_bytes).or_default().push(self.at);
        } else if self.device.driver.bind().and_then(|()| self.device.driver.synchronize()).is_ok() {
            // SAFETY: what was on the stream has ended, and nobody else has the address.
            unsafe { self.device.driver.free(self.at) };
        }
    }
}

/// Values that any bytes are.
///
/// # Safety
/// Every pattern of bits is a value of the type.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: a number.
unsafe impl Plain for f32 {}
// SAFETY: a number.
unsafe impl Plain for u32 {}

/// Bytes of each of the two pinned buffers.
const STAGING_BYTES: usize = 16 << 20;

/// Pinned memory on the way to the device and back: while one half is copied by the GPU, the other is filled.
pub(crate) struct Staging {
    halves: [*mut u8; 2],
    done: [Event; 2],
    next: usize,
}

// SAFETY: the pointers are to memory that only this value uses; it is behind a lock.
unsafe impl Send for Staging {}

impl Staging {
    pub(crate) fn new(driver: &Driver) -> Result<Self> {
        let halves = [driver.allocate_host(STAGING_BYTES)?, driver.allocate_host(STAGING_BYTES)?];
        Ok(Self { halves, done: [driver.event()?, driver.event()?], next: 0 })
    }

    /// Gives the memory back.
    pub(crate) fn free(&mut self, driver: &Driver) {
        for half in &mut self.halves {
            // SAFETY: allocated by `new`; the device that owns this is being dropped, so nobody uses it.
            unsafe { driver.free_host(std::mem::take(half)) };
        }
    }

    fn copy_in(&mut self, driver: &Driver, to: u64, bytes: &[u8]) -> Result<()> {
        for (i, piece) in bytes.chunks(STAGING_BYTES).enumerate() {
            let half = self.next;
            self.next = 1 - half;
            driver.wait_for(&self.done[half])?;
            // SAFETY: the half is as long as a piece at most, and the GPU has read what was in it; it stays as it is until
            // the mark behind the copy is waited for. The caller has checked the range of the device.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), self.halves[half], piece.len());
                driver.copy_in(to + (i * STAGING_BYTES) as u64, self.halves[half], piece.len())?;
            }
            driver.mark(&self.done[half])?;
        }
        Ok(())
    }

    fn copy_out<T: Plain>(&mut self, driver: &Driver, from: u64, n: usize, out: &mut Vec<T>) -> Result<()> {
        out.clear();
        out.reserve(n);
        driver.wait_for(&self.done[0])?;
        let per_piece = STAGING_BYTES / size_of::<T>();
        while out.len() < n {
            let (start, len) = (out.len(), per_piece.min(n - out.len()));
            // SAFETY: the half is that long; the caller has checked the range of the device; any bytes are a `T`, and the
            // vector has room for `n`.
            unsafe {
                driver.copy_out(
                    self.halves[0],
                    from + (start * size_of::<T>()) as u64,
                    len * size_of::<T>(),
                )?;
                let values = self.halves[0].cast::<T>();
                std::ptr::copy_nonoverlapping(values, out.as_mut_ptr().add(start), len);
                out.set_len(start + len);
            }
        }
        Ok(())
    }
}

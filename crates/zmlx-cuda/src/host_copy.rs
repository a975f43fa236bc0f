//! Results on their way to the host while the device goes on: a stream of their own carries them.

use std::sync::{Arc, Mutex};

use zmlx_core::Result;

use crate::device::Device;
use crate::driver::{Driver, Event};
use crate::memory::{Buffer, Plain, lock};

/// Pinned memory and the marks of a copy into it.
struct Pinned {
    at: *mut u8,
    n_bytes: usize,
    /// Put behind what computes the values.
    ready: Event,
    /// Put behind the copy.
    done: Event,
}

// SAFETY: the pointer is to memory that only this value uses.
unsafe impl Send for Pinned {}
// SAFETY: through a shared reference the memory is only read, after the copy into it has ended (`HostCopy::read`).
unsafe impl Sync for Pinned {}

/// Pinned memory that no copy uses.
#[derive(Default)]
pub(crate) struct PinnedPool(Mutex<Vec<Pinned>>);

impl PinnedPool {
    /// Gives all memory back.
    pub(crate) fn clear(&self, driver: &Driver) {
        for pinned in lock(&self.0).drain(..) {
            // SAFETY: the copy into it has ended, and nobody else has the address.
            unsafe { driver.free_host(pinned.at) };
        }
    }
}

/// Values that are being copied, or have been.
pub(crate) struct HostCopy {
    device: Arc<Device>,
    /// Kept until the copy is done.
    _from: Arc<Buffer>,
    pinned: Option<Pinned>,
    n_bytes: usize,
}

impl HostCopy {
    /// Starts to copy `n_bytes` from byte `offset` of a buffer, as soon as everything that is on the stream now has ended.
    pub(crate) fn start(from: &Arc<Buffer>, offset: usize, n_bytes: usize) -> Result<Self> {
        let device = Arc::clone(from.device());
        let driver = &device.driver;
        driver.bind()?;
        let free = {
            let mut pool = lock(&device.pinned.0);
            pool.iter().position(|p| p.n_bytes == n_bytes).map(|at| pool.swap_remove(at))
        };
        let pinned = match free {
            Some(pinned) => pinned,
            None => {
                let (ready, done) = (driver.event()?, driver.event()?);
                Pinned { at: driver.allocate_host(n_bytes)?, n_bytes, ready, done }
            }
        };
        let from_at = from.range(offset, n_bytes);
        driver.mark(&pinned.ready)?;
        // SAFETY: the buffer has the range and is kept until the copy is done, which dropping waits for; the pinned memory is
        // as long.
        unsafe { driver.copy_out_beside(pinned.at, from_at, n_bytes, (&pinned.ready, &pinned.done))? };
        Ok(Self { _from: Arc::clone(from), pinned: Some(pinned), n_bytes, device })
    }

    /// Replaces `out` by the values, when they are there.
    pub(crate) fn read<T: Plain>(&self, out: &mut Vec<T>) -> Result<()> {
        out.clear();
        let Some(pinned) = &self.pinned else { return Ok(()) };
        self.device.driver.bind()?;
        self.device.driver.wait_for(&pinned.done)?;
        // SAFETY: the copy has filled that many bytes, any bytes are a `T`, and pinned memory is aligned to pages.
        let values =
            unsafe { std::slice::from_raw_parts(pinned.at.cast::<T>(), self.n_bytes / size_of::<T>()) };
        out.extend_from_slice(values);
        Ok(())
    }
}

impl Drop for HostCopy {
    fn drop(&mut self) {
        let driver = &self.device.driver;
        if let Some(pinned) = self.pinned.take()
            && driver.bind().and_then(|()| driver.wait_for(&pinned.done)).is_ok()
        {
            lock(&self.device.pinned.0).push(pinned);
        }
    }
}

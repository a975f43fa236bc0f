//! A GPU with its memory and its kernels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use zmlx_core::{Error, Result};

use crate::NAME;
use crate::compile::{CompileError, Unit, machine_code};
use crate::driver::{Driver, GraphExec, Grid, Kernel};
use crate::host_copy::PinnedPool;
use crate::memory::{Home, Pool, Staging, lock};

/// Counters of 8 bytes that kernels of several blocks leave at zero.
pub(crate) const N_COUNTERS: usize = 1 << 18;

/// A GPU with its memory and its kernels.
pub(crate) struct Device {
    // Events in here end before the driver.
    pub(crate) staging: Mutex<Staging>,
    /// For copies to the host beside the stream.
    pub(crate) pinned: PinnedPool,
    kernels: Mutex<HashMap<(Unit, &'static str), Kernel>>,
    /// Rows of the caches' tables, by slot: slots may be any numbers, tables are dense.
    rows: Mutex<HashMap<usize, usize>>,
    n_moved: AtomicU64,
    pool: Pool,
    /// Memory of recorded ops.
    recorded: Pool,
    is_recording: AtomicBool,
    pub(crate) counters: u64,
    pub(crate) driver: Driver,
}

impl Device {
    pub(crate) fn open(ordinal: i32) -> Result<Arc<Self>> {
        let driver = Driver::open(ordinal)?;
        let counters = driver.allocate(N_COUNTERS * 8)?;
        // SAFETY: allocated just now, with that length.
        unsafe { driver.fill(counters, 0, N_COUNTERS * 8)? };
        let staging = Mutex::new(Staging::new(&driver)?);
        Ok(Arc::new(Self {
            staging,
            pinned: PinnedPool::default(),
            kernels: Mutex::default(),
            rows: Mutex::default(),
            n_moved: AtomicU64::new(0),
            pool: Pool::default(),
            recorded: Pool::default(),
            is_recording: AtomicBool::new(false),
            counters,
            driver,
        }))
    }

    /// The pool of ops that run as they are called, or that of recorded ones.
    pub(crate) fn pool(&self, home: Home) -> &Pool {
        match home {
            Home::Recorded => &self.recorded,
            Home::Pool | Home::Driver => &self.pool,
        }
    }

    /// Records what `body` puts on the stream, without running it. Its results lie in memory of their own.
    pub(crate) fn record<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<(GraphExec, T)> {
        self.is_recording.store(true, Ordering::Relaxed);
        let recorded = self.driver.record(body);
        self.is_recording.store(false, Ordering::Relaxed);
        recorded
    }

    /// Whether ops are being recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.is_recording.load(Ordering::Relaxed)
    }

    /// The row of the caches' tables that belongs to a slot.
    pub(crate) fn row_of(&self, slot: usize) -> usize {
        let mut rows = lock(&self.rows);
        let next = rows.len();
        *rows.entry(slot).or_insert(next)
    }

    /// A cache's table has another address: what was recorded with the old one is no longer right.
    pub(crate) fn table_moved(&self) {
        self.n_moved.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that has happened.
    pub(crate) fn n_moved(&self) -> u64 {
        self.n_moved.load(Ordering::Relaxed)
    }

    /// Launches kernel `name` of a unit, which is loaded, and compiled if need be, when it is first used.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(crate) unsafe fn launch<A>(
        &self,
        op: &'static str,
        (unit, name): (Unit, &'static str),
        grid: Grid,
        args: &A,
    ) -> Result<()> {
        let kernel = self.kernel(unit, name)?;
        self.driver.bind()?;
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(op, kernel, grid, args) }
    }

    fn kernel(&self, unit: Unit, name: &'static str) -> Result<Kernel> {
        if let Some(kernel) = lock(&self.kernels).get(&(unit, name)) {
            return Ok(*kernel);
        }
        let properties = &self.driver.properties;
        let code = machine_code(&unit, properties.arch, properties.driver).map_err(|error| match error {
            CompileError::NoNvrtc | CompileError::Library { .. } => {
                Error::Unavailable { backend: NAME, why: error.to_string() }
            }
            error => Error::Fault { op: "compile", backend: NAME, why: error.to_string() },
        })?;
        let kernel = self.driver.load(&code, name)?;
        lock(&self.kernels).insert((unit, name), kernel);
        Ok(kernel)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.driver.bind().and_then(|()| self.driver.synchronize()).is_err() {
            return; // a broken context: its memory ends with the process
        }
        self.pool.clear(&self.driver);
        self.recorded.clear(&self.driver);
        lock(&self.staging).free(&self.driver);
        self.pinned.clear(&self.driver);
        // SAFETY: the stream has ended.
        unsafe { self.driver.free(self.counters) };
    }
}

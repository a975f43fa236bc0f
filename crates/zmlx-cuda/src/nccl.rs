//! NCCL, which is loaded when ranks first need it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Mutex;

use libloading::Library;
use zmlx_core::{Error, Result, Shard};

use crate::NAME;
use crate::library;
use crate::memory::lock;

/// The types that are sent, as `ncclDataType_t` has them.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Type {
    U32 = 3,
    F32 = 7,
}

/// `ncclSum`.
const SUM: c_int = 0;

/// What the ranks of a communicator have in common before there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct UniqueId(pub(crate) [u8; 128]);

/// A stream of the driver.
pub(crate) type Stream = *mut c_void;
type Handle = *mut c_void;

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type CommInitRank = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int;
type CommAbort = unsafe extern "C" fn(Handle) -> c_int;
type AllReduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> c_int;
type Broadcast =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
type Recv = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type GetLastError = unsafe extern "C" fn(Handle) -> *const c_char;

/// NCCL's functions.
pub(crate) struct Nccl {
    version: GetVersion,
    unique_id: GetUniqueId,
    init: CommInitRank,
    abort: CommAbort,
    all_reduce: AllReduce,
    all_gather: AllGather,
    broadcast: Broadcast,
    send: Send,
    receive: Recv,
    error_text: GetErrorString,
    last_error: GetLastError,
    /// Keeps the functions loaded.
    _library: Library,
}

impl Nccl {
    /// Loads the library named by `ZMLX_NCCL`, or that in the usual places.
    pub(crate) fn find() -> Result<Self> {
        let unavailable = |why| Error::Unavailable { backend: NAME, why };
        let Some((path, found)) = library::find("ZMLX_NCCL", &["libnccl.so.2", "libnccl.so"]) else {
            return Err(unavailable(
                "NCCL, which connects several GPUs, was not found; install it or the Python package nvidia-nccl-cu13, \
                 and put the folder of libnccl.so.2 into LD_LIBRARY_PATH or its path into ZMLX_NCCL"
                    .to_owned(),
            ));
        };
        Self::of(found).map_err(|error| unavailable(format!("{path} cannot be used as NCCL: {error}")))
    }

    fn of(library: Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the types are those of nccl.h, unchanged since NCCL 2.18.
        unsafe {
            Ok(Self {
                version: *library.get(b"ncclGetVersion\0")?,
                unique_id: *library.get(b"ncclGetUniqueId\0")?,
                init: *library.get(b"ncclCommInitRank\0")?,
                abort: *library.get(b"ncclCommAbort\0")?,
                all_reduce: *library.get(b"ncclAllReduce\0")?,
                all_gather: *library.get(b"ncclAllGather\0")?,
                broadcast: *library.get(b"ncclBroadcast\0")?,
                send: *library.get(b"ncclSend\0")?,
                receive: *library.get(b"ncclRecv\0")?,
                error_text: *library.get(b"ncclGetErrorString\0")?,
                last_error: *library.get(b"ncclGetLastError\0")?,
                _library: library,
            })
        }
    }

    fn check(&self, op: &'static str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: NCCL returns texts that stay: constants, and the last error, which lies in a buffer of its own.
        let [kind, last] = unsafe { [(self.error_text)(code), (self.last_error)(null_mut())] }.map(|text| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: a text of NCCL's that ends with a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        });
        Err(Error::Fault { op, backend: NAME, why: format!("NCCL: {kind} ({last})") })
    }

    /// The version, as `2.27.5`.
    pub(crate) fn version(&self) -> Result<String> {
        let mut version = 0;
        // SAFETY: the pointer is to a local.
        self.check("ncclGetVersion", unsafe { (self.version)(&mut version) })?;
        Ok(format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100))
    }

    /// What a new communicator is known by.
    pub(crate) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is to a local.
        self.check("ncclGetUniqueId", unsafe { (self.unique_id)(&mut id) })?;
        Ok(id)
    }

    /// Joins a communicator with the GPU whose context is current. Waits until all ranks have called this.
    pub(crate) fn join(self, shard: Shard, id: UniqueId) -> Result<Connected> {
        let mut handle = null_mut();
        // SAFETY: the pointer is to a local; the id is one that rank 0 has made.
        let code = unsafe { (self.init)(&mut handle, shard.n_ranks as c_int, id, shard.rank as c_int) };
        self.check("ncclCommInitRank", code)?;
        Ok(Connected { nccl: self, handle: Mutex::new(handle) })
    }
}

/// A communicator: the ranks that compute together. All of them call its functions in the same order. They return before the work
/// is done, which happens on the stream.
pub(crate) struct Connected {
    nccl: Nccl,
    handle: Mutex<Handle>,
}

// SAFETY: a handle that NCCL takes from any thread, one at a time: it is behind a lock.
unsafe impl std::marker::Send for Connected {}
// SAFETY: as above.
unsafe impl Sync for Connected {}

impl Connected {
    /// The sum of `n` values of all ranks, on all of them.
    ///
    /// # Safety
    /// Both ranges are valid until the stream has come past this; on all ranks `n` is the same. This holds for the other methods too.
    pub(crate) unsafe fn all_sum(&self, from: u64, to: u64, n: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.nccl.all_reduce)(
                from as *const c_void,
                to as *mut c_void,
                n,
                Type::F32 as c_int,
                SUM,
                *lock(&self.handle),
                stream,
            )
        };
        self.nccl.check("ncclAllReduce", code)
    }

    /// The values of all ranks one after the other, `n` of each.
    ///
    /// # Safety
    /// As [`Connected::all_sum`].
    pub(crate) unsafe fn all_gather(&self, from: u64, to: u64, n: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            let (from, to) = (from as *const c_void, to as *mut c_void);
            (self.nccl.all_gather)(from, to, n, Type::F32 as c_int, *lock(&self.handle), stream)
        };
        self.nccl.check("ncclAllGather", code)
    }

    /// `n` indices of rank 0 on all ranks.
    ///
    /// # Safety
    /// As [`Connected::all_sum`].
    pub(crate) unsafe fn of_rank_0(&self, from: u64, to: u64, n: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            let (from, to) = (from as *const c_void, to as *mut c_void);
            (self.nccl.broadcast)(from, to, n, Type::U32 as c_int, 0, *lock(&self.handle), stream)
        };
        self.nccl.check("ncclBroadcast", code)
    }

    /// Sends `n` values to the rank `to`, which [receives](Connected::receive) as many.
    ///
    /// # Safety
    /// As [`Connected::all_sum`].
    pub(crate) unsafe fn send(&self, from: u64, n: usize, to: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.nccl.send)(
                from as *const c_void,
                n,
                Type::F32 as c_int,
                to as c_int,
                *lock(&self.handle),
                stream,
            )
        };
        self.nccl.check("ncclSend", code)
    }

    /// Receives `n` values from the rank `from`.
    ///
    /// # Safety
    /// As [`Connected::all_sum`].
    pub(crate) unsafe fn receive(&self, to: u64, n: usize, from: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.nccl.receive)(
                to as *mut c_void,
                n,
                Type::F32 as c_int,
                from as c_int,
                *lock(&self.handle),
                stream,
            )
        };
        self.nccl.check("ncclRecv", code)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        // Not ncclCommDestroy, which waits for the other ranks: one of them may have failed.
        // SAFETY: made by `join`, dropped once, after the recordings that use it.
        let _ = unsafe { (self.nccl.abort)(*lock(&self.handle)) };
    }
}

//! The driver: opening a GPU, loading code, launching kernels, and copies. All calls of CUDA's C interface are here.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use zmlx_core::{Error, Result};

use crate::NAME;

/// The oldest driver that works, as `cuDriverGetVersion` counts: CUDA 12.3.
const OLDEST_DRIVER: i32 = 12030;

/// Bytes of what another process opens an allocation with.
pub(crate) const IPC_HANDLE_BYTES: usize = 64;

/// An error of the driver, in the words of the driver.
fn fault(op: &'static str, code: CUresult) -> Error {
    Error::Fault { op, backend: NAME, why: format!("{code:?}") }
}

fn check(op: &'static str, code: CUresult) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(fault(op, code)),
    }
}

fn unavailable(why: impl Into<String>) -> Error {
    Error::Unavailable { backend: NAME, why: why.into() }
}

/// What a GPU is.
#[derive(Clone, Debug)]
pub(crate) struct Properties {
    pub(crate) name: String,
    /// Major and minor, as `90`.
    pub(crate) arch: u32,
    pub(crate) n_multiprocessors: u32,
    /// Most dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
    pub(crate) total_bytes: usize,
    /// As `cuDriverGetVersion` counts: 13000 is CUDA 13.0.
    pub(crate) driver: i32,
}

impl Properties {
    /// Most blocks of a cluster: 8 everywhere, 16 where the processors of a group are as many.
    pub(crate) fn most_in_cluster(&self) -> usize {
        if matches!(self.arch, 90 | 100) && self.n_multiprocessors >= 100 { 16 } else { 8 }
    }
}

/// A GPU with one stream, on which everything happens in order, and another one that carries results to the host.
pub(crate) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: sys::CUstream,
    pub(crate) properties: Properties,
    /// Kernels and copies so far.
    n_launched: AtomicU64,
    /// Whether other code put the last op on the stream: the next kernel may not start before it has ended.
    is_after_other_code: AtomicBool,
}

// SAFETY: the driver's handles may be used from any thread; `bind` makes the context current on the calling one.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver's functions are safe to call at the same time.
unsafe impl Sync for Driver {}

/// A kernel in a loaded module. Modules stay loaded as long as the context.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(sys::CUfunction);

// SAFETY: a handle that the driver takes from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// Blocks, threads of a block, and its dynamic shared memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [usize; 3],
    pub(crate) threads: usize,
    pub(crate) shared_bytes: usize,
    /// Blocks along y that reach each other's shared memory; 1 where they need not, and the most is
    /// [`Properties::most_in_cluster`].
    pub(crate) cluster: usize,
}

/// A mark on the stream.
pub(crate) struct Event(sys::CUevent);

// SAFETY: a handle that the driver takes from any thread.
unsafe impl Send for Event {}
// SAFETY: a handle that the driver takes from several threads at once.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `Driver::event`, dropped once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// A recorded sequence of launches and copies.
pub(crate) struct GraphExec(sys::CUgraphExec);

// SAFETY: a handle that the driver takes from any thread, one at a time: its owner is behind a lock.
unsafe impl Send for GraphExec {}

impl Driver {
    /// Opens GPU `ordinal`.
    pub(crate) fn open(ordinal: i32) -> Result<Self> {
        // SAFETY: tries to load a library.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable(
                "no NVIDIA driver was found (libcuda.so.1); install the driver of the GPU, version 545 or later",
            ));
        }
        let mut version = 0;
        // SAFETY: the library was found; the pointers are to locals.
        unsafe {
            let code = sys::cuInit(0);
            if code != CUresult::CUDA_SUCCESS {
                return Err(unavailable(format!(
                    "the NVIDIA driver found no GPU that it can use ({code:?})"
                )));
            }
            check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
        }
        if version < OLDEST_DRIVER {
            return Err(unavailable(format!(
                "the NVIDIA driver is for CUDA {}.{}, older than {}.{}: install version 545 or later",
                version / 1000,
                version % 1000 / 10,
                OLDEST_DRIVER / 1000,
                OLDEST_DRIVER % 1000 / 10
            )));
        }
        let (mut device, mut context, mut stream, mut copies) = (0, null_mut(), null_mut(), null_mut());
        // SAFETY: the driver is initialised; the pointers are to locals; the context lives until `drop`.
        unsafe {
            let mut n = 0;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut n))?;
            if ordinal >= n {
                return Err(unavailable(format!(
                    "there is no GPU {ordinal}: this machine has {n}, counted from 0"
                )));
            }
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, ordinal))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            check("cuStreamCreate", sys::cuStreamCreate(&mut stream, flags))?;
            check("cuStreamCreate", sys::cuStreamCreate(&mut copies, flags))?;
        }
        let properties = properties(device, version)?;
        if properties.arch < 80 {
            let (major, minor) = (properties.arch / 10, properties.arch % 10);
            return Err(unavailable(format!(
                "{} has compute capability {major}.{minor}; 8.0 is the least",
                properties.name
            )));
        }
        Ok(Self {
            device,
            context,
            stream,
            copies,
            properties,
            n_launched: AtomicU64::new(0),
            is_after_other_code: AtomicBool::new(false),
        })
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// The number of the launch or copy that was last put on the stream.
    pub(crate) fn last_launch(&self) -> u64 {
        self.n_launched.load(Ordering::Relaxed)
    }

    fn count(&self) {
        self.n_launched.fetch_add(1, Ordering::Relaxed);
    }

    /// Loads machine code and finds a kernel in it.
    pub(crate) fn load(&self, code: &[u8], name: &str) -> Result<Kernel> {
        self.bind()?;
        let text = CString::new(name)
            .map_err(|_| fault("cuModuleGetFunction", CUresult::CUDA_ERROR_INVALID_VALUE))?;
        let (mut module, mut function) = (null_mut(), null_mut());
        // SAFETY: `code` is a whole cubin, as NVRTC made it; the module is never unloaded, so the function stays valid.
        unsafe {
            check("cuModuleLoadData", sys::cuModuleLoadData(&mut module, code.as_ptr().cast()))?;
            check("cuModuleGetFunction", sys::cuModuleGetFunction(&mut function, module, text.as_ptr()))?;
            let kind = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            let mut own = 0;
            check("cuFuncGetAttribute", sys::cuFuncGetAttribute(&mut own, kind, function))?;
            let kind = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let most = self.properties.shared_bytes as i32 - own;
            check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, kind, most))?;
            if self.properties.most_in_cluster() > 8 {
                let kind =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
                check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, kind, 1))?;
            }
        }
        Ok(Kernel(function))
    }

    /// Launches a kernel whose one parameter is the struct `args`.
    ///
    /// # Safety
    /// `A` is the kernel's parameter, field by field, and the kernel touches only memory that `args` and the grid make valid
    /// and that stays allocated until the stream has come past this launch.
    pub(crate) unsafe fn launch<A>(
        &self,
        op: &'static str,
        kernel: Kernel,
        grid: Grid,
        args: &A,
    ) -> Result<()> {
        let [x, y, z] = grid.blocks;
        if x * y * z == 0 {
            return Ok(());
        }
        if y > 65535 || z > 65535 || grid.shared_bytes + 512 > self.properties.shared_bytes as usize {
            let why = format!("{grid:?} is more than this GPU can take");
            return Err(Error::Unsupported { op, backend: NAME, why });
        }
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let mut attributes = Vec::with_capacity(2);
        let has_attributes = self.properties.arch >= 90;
        if has_attributes && !self.is_after_other_code.swap(false, Ordering::Relaxed) {
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
                sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
            ));
        }
        if has_attributes && grid.cluster > 1 {
            let cluster =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: 1, y: grid.cluster as u32, z: 1 };
            attributes.push(attribute(
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                sys::CUlaunchAttributeValue { clusterDim: cluster },
            ));
        }
        let config = sys::CUlaunchConfig {
            gridDimX: x as u32,
            gridDimY: y as u32,
            gridDimZ: z as u32,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut params = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameter before it returns; the rest is the caller's promise.
        let code = unsafe { sys::cuLaunchKernelEx(&config, kernel.0, params.as_mut_ptr(), null_mut()) };
        self.count();
        check(op, code)
    }

    /// Device memory; `None` if there is not enough.
    pub(crate) fn allocate(&self, n_bytes: usize) -> Result<u64> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: the pointer is to a local.
        match unsafe { sys::cuMemAlloc_v2(&mut at, n_bytes.max(1)) } {
            CUresult::CUDA_SUCCESS => Ok(at),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: the pointers are to locals.
                let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
                Err(unavailable(format!(
                    "{} has {} MB free, and {} MB more are needed: take a smaller model, or end what else uses the GPU",
                    self.properties.name,
                    free / 1_000_000,
                    n_bytes / 1_000_000
                )))
            }
            code => Err(fault("cuMemAlloc", code)),
        }
    }

    /// # Safety
    /// `at` came from [`Driver::allocate`] and nothing uses it any more.
    pub(crate) unsafe fn free(&self, at: u64) {
        if self.bind().is_ok() {
            // SAFETY: the caller's promise. An error would be one of an earlier kernel, which has been or will be reported.
            let _ = unsafe { sys::cuMemFree_v2(at) };
        }
    }

    /// Host memory that the GPU copies from and to at full speed.
    pub(crate) fn allocate_host(&self, n_bytes: usize) -> Result<*mut u8> {
        self.bind()?;
        let mut at = null_mut();
        // SAFETY: the pointer is to a local.
        check("cuMemAllocHost", unsafe { sys::cuMemAllocHost_v2(&mut at, n_bytes.max(1)) })?;
        Ok(at.cast())
    }

    /// # Safety
    /// `at` came from [`Driver::allocate_host`] and nothing uses it any more.
    pub(crate) unsafe fn free_host(&self, at: *mut u8) {
        if self.bind().is_ok() {
            // SAFETY: the caller's promise.
            let _ = unsafe { sys::cuMemFreeHost(at.cast()) };
        }
    }

    /// Copies from host memory; with pinned memory, returns before it is done.
    ///
    /// # Safety
    /// Both ranges are valid, and pinned memory stays unchanged until the stream has come past this.
    pub(crate) unsafe fn copy_in(&self, to: u64, from: *const u8, n_bytes: usize) -> Result<()> {
        if n_bytes == 0 {
            return Ok(());
        }
        self.count();
        // SAFETY: the caller's promise.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from.cast(), n_bytes, self.stream)
        })
    }

    /// Copies to host memory and waits for it.
    ///
    /// # Safety
    /// Both ranges are valid.
    pub(crate) unsafe fn copy_out(&self, to: *mut u8, from: u64, n_bytes: usize) -> Result<()> {
        if n_bytes > 0 {
            self.count();
            // SAFETY: the caller's promise.
            check("cuMemcpyDtoHAsync", unsafe {
                sys::cuMemcpyDtoHAsync_v2(to.cast(), from, n_bytes, self.stream)
            })?;
        }
        self.synchronize()
    }

    /// Copies to pinned memory on the stream of results, behind the mark `ready`; puts the mark `done` behind the copy.
    ///
    /// # Safety
    /// Both ranges are valid, and stay so until `done` has been waited for.
    pub(crate) unsafe fn copy_out_beside(
        &self,
        to: *mut u8,
        from: u64,
        n_bytes: usize,
        (ready, done): (&Event, &Event),
    ) -> Result<()> {
        // SAFETY: streams and marks are alive; the ranges are the caller's promise.
        unsafe {
            check("cuStreamWaitEvent", sys::cuStreamWaitEvent(self.copies, ready.0, 0))?;
            check("cuMemcpyDtoHAsync", sys::cuMemcpyDtoHAsync_v2(to.cast(), from, n_bytes, self.copies))?;
            check("cuEventRecord", sys::cuEventRecord(done.0, self.copies))
        }
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges are valid.
    pub(crate) unsafe fn copy_within(&self, to: u64, from: u64, n_bytes: usize) -> Result<()> {
        if n_bytes == 0 {
            return Ok(());
        }
        self.count();
        // SAFETY: the caller's promise.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, n_bytes, self.stream) })
    }

    /// Copies rows of `n_bytes` within the device; `to` and `from` have the distance of their rows besides.
    ///
    /// # Safety
    /// All rows are valid.
    pub(crate) unsafe fn copy_rows(
        &self,
        (to, to_pitch): (u64, usize),
        (from, from_pitch): (u64, usize),
        n_bytes: usize,
        n_rows: usize,
    ) -> Result<()> {
        if n_bytes == 0 || n_rows == 0 {
            return Ok(());
        }
        self.count();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null_mut(),
            srcDevice: from,
            srcArray: null_mut(),
            srcPitch: from_pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: to,
            dstArray: null_mut(),
            dstPitch: to_pitch,
            WidthInBytes: n_bytes,
            Height: n_rows,
        };
        // SAFETY: the caller's promise.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream) })
    }

    /// The stream, on which NCCL puts an op now.
    pub(crate) fn stream_for_other_code(&self) -> *mut c_void {
        self.count();
        self.is_after_other_code.store(true, Ordering::Relaxed);
        self.stream.cast()
    }

    /// What another process opens an allocation with.
    pub(crate) fn share(&self, at: u64) -> Result<[u8; IPC_HANDLE_BYTES]> {
        self.bind()?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; IPC_HANDLE_BYTES] };
        // SAFETY: the pointer is to a local; an address that is no allocation's is refused.
        check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&mut handle, at) })?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }

    /// Opens an allocation of another process on this machine, which stays open as long as the context.
    pub(crate) fn open_shared(&self, handle: &[u8; IPC_HANDLE_BYTES]) -> Result<u64> {
        self.bind()?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut at = 0;
        // SAFETY: the pointer is to a local; a handle that the driver did not make is refused.
        check("cuIpcOpenMemHandle", unsafe { sys::cuIpcOpenMemHandle_v2(&mut at, handle, flags) })?;
        Ok(at)
    }

    /// Sets bytes of the device.
    ///
    /// # Safety
    /// The range is valid.
    pub(crate) unsafe fn fill(&self, at: u64, value: u8, n_bytes: usize) -> Result<()> {
        if n_bytes == 0 {
            return Ok(());
        }
        self.count();
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, value, n_bytes, self.stream) })
    }

    /// A mark that can be put on the stream and waited for.
    pub(crate) fn event(&self) -> Result<Event> {
        let mut event = null_mut();
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the pointer is to a local.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
        Ok(Event(event))
    }

    /// Puts the mark on the stream, behind everything so far.
    pub(crate) fn mark(&self, event: &Event) -> Result<()> {
        // SAFETY: event and stream are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(event.0, self.stream) })
    }

    /// Waits until the stream has come past the mark; not at all if it never was put there.
    pub(crate) fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event.0) })
    }

    /// Waits for everything that was put on the stream.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Records what `body` puts on the stream, without running it.
    pub(crate) fn record<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<(GraphExec, T)> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and records nothing yet: the caller holds the lock of graphs.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) })?;
        let result = body();
        let (mut graph, mut exec) = (null_mut(), null_mut());
        // SAFETY: the stream records; the pointer is to a local. Ends the recording also where the body failed.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) });
        let value = result?;
        ended?;
        // SAFETY: the graph was just made and is destroyed once.
        unsafe {
            let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
            let _ = sys::cuGraphDestroy(graph);
            made?;
        }
        Ok((GraphExec(exec), value))
    }

    /// Runs what was recorded.
    ///
    /// # Safety
    /// All memory that the recorded launches touch is still theirs.
    pub(crate) unsafe fn replay(&self, graph: &GraphExec) -> Result<()> {
        self.count();
        // SAFETY: the graph is alive; the rest is the caller's promise.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.0, self.stream) })
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // SAFETY: made by `record`, dropped once.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: the stream was made by `open` and ends here with its context.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuStreamDestroy_v2(self.copies);
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

fn properties(device: sys::CUdevice, driver: i32) -> Result<Properties> {
    let attribute = |kind: Attribute| {
        let mut value = 0;
        // SAFETY: the device exists; the pointer is to a local.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, kind, device) })?;
        Ok::<u32, Error>(value.max(0) as u32)
    };
    let mut name = [0u8; 128];
    let mut total_bytes = 0;
    // SAFETY: the device exists; the buffer is as long as said, the pointer is to a local.
    unsafe {
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device))?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut total_bytes, device))?;
    }
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Ok(Properties {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        arch: 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        n_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_bytes,
        driver,
    })
}

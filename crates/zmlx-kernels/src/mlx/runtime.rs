//! Starting MLX, and its failures as this crate's errors.

use std::ffi::CStr;

use mlx_rs::error::Exception;
use mlx_rs::{Device, Stream};

use super::dispatches;
use crate::{Error, Result};

/// The name of this backend in errors and on the command line.
pub(crate) const NAME: &str = "mlx";

/// What MLX reaches a GPU through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gpu {
    /// Metal, on Apple's systems.
    Metal,
    /// CUDA, with MLX's build for it.
    Cuda,
}

impl Gpu {
    /// Its name: `Metal` or `CUDA`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metal => "Metal",
            Self::Cuda => "CUDA",
        }
    }
}

/// MLX, started: the proof that its functions may be called, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    version: String,
    gpu: Option<Gpu>,
}

impl Runtime {
    /// Starts MLX and asks it for a GPU. Cheap, may be called any number of times.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if MLX has no device to run on.
    pub fn start() -> Result<Self> {
        // First of all, for its side effect too: mlx-rs installs its error handler here, and without it a failure
        // within MLX ends the process.
        Device::try_default().map_err(|e| unavailable(format!("MLX does not start: {}", e.what())))?;
        let (mut has_metal, mut has_cuda) = (false, false);
        // SAFETY: each call writes one bool through a pointer to a live one.
        let status = unsafe {
            mlx_sys::mlx_metal_is_available(&mut has_metal) | mlx_sys::mlx_cuda_is_available(&mut has_cuda)
        };
        if status != 0 {
            return Err(unavailable("MLX does not tell whether there is a GPU".to_owned()));
        }
        let gpu = has_metal.then_some(Gpu::Metal).or(has_cuda.then_some(Gpu::Cuda));
        let version = version().ok_or_else(|| unavailable("MLX does not tell its version".to_owned()))?;
        Ok(Self { version, gpu })
    }

    /// The version of MLX: `0.32.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The GPU that MLX can use. Without one mlx-rs panics wherever a scope asks for it, and a custom kernel fails: everything
    /// runs on MLX's CPU device then.
    pub fn gpu(&self) -> Option<Gpu> {
        self.gpu
    }

    /// Bytes that the GPU's working set should not exceed, if MLX has a GPU and its system tells.
    pub(super) fn recommended_bytes(&self) -> Option<usize> {
        // SAFETY: makes handles, which are freed below on every path.
        let (device, mut info) = unsafe {
            (
                mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0),
                mlx_sys::mlx_device_info_new(),
            )
        };
        let (mut is_known, mut bytes) = (false, 0);
        let key = c"max_recommended_working_set_size".as_ptr();
        // SAFETY: all handles are live, the key ends in zero, and the calls write through pointers to live values; the second
        // and third run only once the first has filled `info`.
        let found = unsafe {
            mlx_sys::mlx_device_info_get(&mut info, device) == 0
                && mlx_sys::mlx_device_info_has_key(&mut is_known, info, key) == 0
                && is_known
                && mlx_sys::mlx_device_info_get_size(&mut bytes, info, key) == 0
        };
        // SAFETY: the handles were made above and are freed once.
        unsafe {
            mlx_sys::mlx_device_info_free(info);
            mlx_sys::mlx_device_free(device);
        }
        found.then_some(bytes)
    }

    /// Whether functions are compiled, as mlx-lm does: where the next op of this thread runs on a GPU.
    pub(crate) fn compiles(&self) -> bool {
        dispatches::is_recording() || device_of_next_op() == Some(mlx_sys::mlx_device_type__MLX_GPU)
    }

    /// The GPU that the next op of this thread would run on, so that a kernel can be launched: there may be a GPU, and yet a
    /// scope or the default device that asks for the CPU.
    pub(crate) fn launches(&self) -> Option<Gpu> {
        if dispatches::is_recording() {
            return Some(Gpu::Metal);
        }
        self.gpu.filter(|_| device_of_next_op() == Some(mlx_sys::mlx_device_type__MLX_GPU))
    }

    /// Whether the next op of this thread would run on a GPU through Metal.
    pub(crate) fn launches_metal(&self) -> bool {
        self.launches() == Some(Gpu::Metal)
    }
}

fn device_of_next_op() -> Option<mlx_sys::mlx_device_type> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: makes an empty handle, which is freed below on every path.
    let mut device = unsafe { mlx_sys::mlx_device_new() };
    let mut kind = mlx_sys::mlx_device_type__MLX_CPU;
    // SAFETY: both handles are live, and the first call fills the device's; the second writes through a pointer to a live value.
    let found = unsafe {
        mlx_sys::mlx_stream_get_device(&mut device, stream.as_ptr()) == 0
            && mlx_sys::mlx_device_get_type(&mut kind, device) == 0
    };
    // SAFETY: the handle was made above and is freed once.
    unsafe { mlx_sys::mlx_device_free(device) };
    found.then_some(kind)
}

fn unavailable(why: String) -> Error {
    Error::Unavailable { backend: NAME, why }
}

fn version() -> Option<String> {
    // SAFETY: makes an empty handle, which is freed below on every path.
    let mut text = unsafe { mlx_sys::mlx_string_new() };
    // SAFETY: `text` is a live handle, which the call fills.
    let status = unsafe { mlx_sys::mlx_version(&mut text) };
    // SAFETY: `text` is a live handle; its text is null or ends in zero, and lives until the handle is freed.
    let data = unsafe { mlx_sys::mlx_string_data(text) };
    let version = (status == 0 && !data.is_null()).then(|| {
        // SAFETY: as said above; it is copied before the handle is freed.
        unsafe { CStr::from_ptr(data) }.to_string_lossy().into_owned()
    });
    // SAFETY: the handle was made above and is freed once.
    unsafe { mlx_sys::mlx_string_free(text) };
    version
}

/// Turns MLX's exception within `op` into [`Error::Fault`]: `array.eval().map_err(fault("read"))?`.
pub(crate) fn fault(op: &'static str) -> impl Fn(Exception) -> Error {
    move |e| Error::Fault { op, backend: NAME, why: e.what().to_owned() }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Array;

    use super::*;

    #[test]
    fn it_starts_and_names_its_version() {
        let runtime = Runtime::start().unwrap();
        assert_eq!(runtime.version(), "0.32.2", "the version that the goldens were recorded with");
        assert!(cfg!(target_os = "macos") || runtime.gpu() != Some(Gpu::Metal));
        assert_eq!(Runtime::start().unwrap(), runtime);
    }

    #[test]
    fn an_exception_becomes_a_fault_that_names_the_op() {
        Runtime::start().unwrap();
        let a = Array::from_slice(&[1.0_f32, 2.0], &[2]);
        let b = Array::from_slice(&[1.0_f32, 2.0, 3.0], &[3]);
        let error = a.add(&b).map_err(fault("add")).unwrap_err();
        assert!(
            matches!(&error, Error::Fault { op: "add", backend: NAME, why } if why.contains("broadcast")),
            "{error}"
        );
    }
}

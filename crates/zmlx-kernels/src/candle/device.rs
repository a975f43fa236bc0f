//! Launches through candle's command encoder.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::metal_backend::DeviceId;
use candle_core::{DType, Layout, MetalDevice, MetalError, MetalStorage, Result};
use candle_metal_kernels::metal::{Buffer, CommandsGuard, ComputePipeline};
use objc2_metal::{MTLCompileOptions, MTLSize};

use super::{dtype, refused};
use crate::metal::{Encode, Launch, Operand};

/// The pipelines of all devices by the names of their kernels.
static PIPELINES: LazyLock<Mutex<HashMap<(DeviceId, String), ComputePipeline>>> =
    LazyLock::new(Mutex::default);

/// candle's command encoder, to itself until it is dropped.
struct Encoder<'a> {
    device: &'a MetalDevice,
    commands: CommandsGuard<'a>,
}

impl Encode for Encoder<'_> {
    type Buffer = Buffer;
    type Error = candle_core::Error;

    fn set_pipeline(&mut self, name: &str, source: &dyn Fn() -> String) -> Result<()> {
        let key = (self.device.id(), name.to_owned());
        let mut pipelines = PIPELINES.lock().unwrap_or_else(PoisonError::into_inner);
        let pipeline = match pipelines.get(&key) {
            Some(pipeline) => pipeline,
            None => {
                let pipeline = compile(self.device, name, &source())?;
                pipelines.entry(key).or_insert(pipeline)
            }
        };
        self.commands.set_compute_pipeline_state(pipeline);
        Ok(())
    }

    fn set_input(&mut self, index: usize, buffer: &Buffer, offset_bytes: usize) {
        self.commands.as_ref().set_input_buffer(index, Some(buffer), offset_bytes);
    }

    fn set_output(&mut self, index: usize, buffer: &Buffer) {
        self.commands.as_ref().set_output_buffer(index, Some(buffer), 0);
    }

    fn set_bytes(&mut self, index: usize, bytes: &[u8]) {
        self.commands.as_ref().set_bytes_directly(index, bytes.len(), bytes.as_ptr().cast());
    }

    fn dispatch_threads(&mut self, threads: [usize; 3], threadgroup: [usize; 3]) {
        let size = |[width, height, depth]: [usize; 3]| MTLSize { width, height, depth };
        self.commands.as_ref().dispatch_threads(size(threads), size(threadgroup));
    }
}

fn compile(device: &MetalDevice, name: &str, source: &str) -> Result<ComputePipeline> {
    let options = MTLCompileOptions::new();
    #[expect(deprecated, reason = "its successor needs macOS 15")]
    options.setFastMathEnabled(false);
    let device = device.metal_device();
    let library = device.new_library_with_source(source, Some(&options)).map_err(MetalError::from)?;
    let function = library.get_function(name, None).map_err(MetalError::from)?;
    Ok(device.new_compute_pipeline_state_with_function(&function).map_err(MetalError::from)?)
}

/// A contiguous tensor as an input of a kernel.
pub(super) fn operand<'a>(
    op: &'static str,
    what: &'static str,
    storage: &'a MetalStorage,
    layout: &Layout,
) -> Result<Operand<'a, Buffer>> {
    if !layout.is_contiguous() {
        return Err(refused(op, what, "a contiguous tensor", layout.stride()));
    }
    let offset_bytes = layout.start_offset() * storage.dtype().size_in_bytes();
    let dtype = dtype(op, what, storage.dtype())?;
    Ok(Operand { buffer: storage.buffer(), offset_bytes, dtype, shape: layout.dims().to_vec() })
}

/// Encodes the launch; its result is a new buffer.
pub(super) fn run(device: &MetalDevice, launch: &Launch<'_, Buffer>) -> Result<MetalStorage> {
    let output = &launch.spec().outputs[0];
    let n_elements = output.shape.iter().product();
    let dtype = match output.dtype {
        crate::DType::F16 => DType::F16,
        crate::DType::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let buffer = device.new_buffer_builder().with_size_for(n_elements, dtype);
    let buffer = buffer.with_label(launch.spec().name).build()?;
    let mut encoder = Encoder { device, commands: device.command_encoder()? };
    launch.encode(&mut encoder, &buffer)?;
    drop(encoder);
    Ok(MetalStorage::new(buffer, device.clone(), n_elements, dtype))
}

//! MLX functions that mlx-rs leaves out, restricts to affine weights, or leaves unsafe: custom kernels.
//!
//! The callers check shapes first: where MLX refuses all the same, its own text is not at hand here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::CStr;
use std::slice::from_ref;

use mlx_rs::fast::{
    self, MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput,
    ScaledDotProductAttentionMask as Mask, TemplateArg,
};
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_optional_dtype, mlx_optional_int};

use super::runtime::{Gpu, NAME, fault};
use super::{cuda, dispatches};
use crate::metal::{KernelSpec, Output, Template};
use crate::{DType, Error, QuantMode, QuantSpec, Result};

/// A quantised matrix or bank of matrices, in MLX's own arrays.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    pub(crate) weight: &'a Array,
    pub(crate) scales: &'a Array,
    pub(crate) biases: Option<&'a Array>,
    pub(crate) spec: QuantSpec,
}

/// Which side of a stored matrix the product runs over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// `x · Wᵀ`: the rows of W are results.
    Transposed,
    /// `x · W`: the rows of W are summed over.
    Plain,
}

/// Whether the chosen matrices come in ascending order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Any.
    Unsorted,
    /// Ascending: MLX may then read each matrix once.
    Sorted,
}

/// `mx.quantized_matmul` in every mode.
pub(crate) fn quantized_matmul(
    op: &'static str,
    x: &Array,
    w: Packed<'_>,
    product: Product,
) -> Result<Array> {
    call(op, |result, stream| {
        // SAFETY: all handles are live for the call; `result` is an empty handle that the call fills; an absent array
        // is the null handle, as mlx-c asks; the mode is a constant text that ends in zero.
        unsafe {
            mlx_sys::mlx_quantized_matmul(
                result,
                x.as_ptr(),
                w.weight.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                product == Product::Transposed,
                some(w.spec.group_size()),
                some(w.spec.bits()),
                mode(w.spec).as_ptr(),
                stream,
            )
        }
    })
}

/// `mx.gather_qmm(transpose=True)` in every mode, with one matrix of `w` per entry of `experts` and one batch entry of `x`
/// per entry of `rows`; without `rows`, all in order.
pub(crate) fn gather_qmm(
    op: &'static str,
    x: &Array,
    w: Packed<'_>,
    [rows, experts]: [Option<&Array>; 2],
    order: Order,
) -> Result<Array> {
    call(op, |result, stream| {
        // SAFETY: as in `quantized_matmul`.
        unsafe {
            mlx_sys::mlx_gather_qmm(
                result,
                x.as_ptr(),
                w.weight.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                handle(rows),
                handle(experts),
                true,
                some(w.spec.group_size()),
                some(w.spec.bits()),
                mode(w.spec).as_ptr(),
                order == Order::Sorted,
                stream,
            )
        }
    })
}

/// `mx.dequantize` in every mode: in the type of affine scales, in bf16 for the floating-point modes.
pub(crate) fn dequantize(op: &'static str, w: Packed<'_>) -> Result<Array> {
    let y = call(op, |result, stream| {
        let dtype = mlx_optional_dtype { value: mlx_sys::mlx_dtype__MLX_FLOAT32, has_value: false };
        // SAFETY: as in `quantized_matmul`; no global scale, no other type.
        unsafe {
            mlx_sys::mlx_dequantize(
                result,
                w.weight.as_ptr(),
                w.scales.as_ptr(),
                handle(w.biases),
                some(w.spec.group_size()),
                some(w.spec.bits()),
                mode(w.spec).as_ptr(),
                handle(None),
                dtype,
                stream,
            )
        }
    })?;
    let inputs: Vec<&Array> = [w.weight, w.scales].into_iter().chain(w.biases).collect();
    dispatches::note("dequantize", &inputs, from_ref(&y));
    Ok(y)
}

/// `x[start..stop]` in every dimension.
pub(crate) fn slice(op: &'static str, x: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let n = x.ndim();
    assert!(start.len() == n && stop.len() == n, "one bound per dimension");
    let strides = vec![1; n];
    call(op, |result, stream| {
        // SAFETY: as in `quantized_matmul`; the three lists have the lengths that are given, and outlive the call.
        unsafe {
            mlx_sys::mlx_slice(
                result,
                x.as_ptr(),
                start.as_ptr(),
                n,
                stop.as_ptr(),
                n,
                strides.as_ptr(),
                n,
                stream,
            )
        }
    })
}

/// `x` with `x[start..stop] = update`. Where nothing else holds the memory of `x`, MLX writes into it.
pub(crate) fn slice_update(
    op: &'static str,
    x: &Array,
    update: &Array,
    start: &[i32],
    stop: &[i32],
) -> Result<Array> {
    let n = x.ndim();
    assert!(start.len() == n && stop.len() == n, "one bound per dimension");
    let strides = vec![1; n];
    call(op, |result, stream| {
        // SAFETY: as in `slice`.
        unsafe {
            mlx_sys::mlx_slice_update(
                result,
                x.as_ptr(),
                update.as_ptr(),
                start.as_ptr(),
                n,
                stop.as_ptr(),
                n,
                strides.as_ptr(),
                n,
                stream,
            )
        }
    })
}

/// `mx.fast.rms_norm`.
pub(crate) fn rms_norm(op: &'static str, x: &Array, weight: Option<&Array>, eps: f32) -> Result<Array> {
    let y = fast::rms_norm(x, weight, eps).map_err(fault(op))?;
    dispatches::note("rms_norm", &[&[x], &weight.into_iter().collect::<Vec<_>>()[..]].concat(), from_ref(&y));
    Ok(y)
}

/// `mx.fast.rope`.
pub(crate) fn rope(
    op: &'static str,
    x: &Array,
    rope: &crate::Rope,
    (base, scale, periods): (Option<f32>, f32, Option<&Array>),
    offset: i32,
) -> Result<Array> {
    let traditional = rope.pairing == crate::RopePairing::Interleaved;
    let y = fast::rope(x, rope.dims as i32, traditional, base, scale, offset, periods).map_err(fault(op))?;
    dispatches::note("rope", &[x], from_ref(&y));
    Ok(y)
}

/// `mx.fast.scaled_dot_product_attention` with q `[1, heads, n, width]`.
pub(crate) fn attention(
    op: &'static str,
    [q, keys, values]: [&Array; 3],
    scale: f32,
    mask: Option<Mask<'_>>,
    sinks: Option<&Array>,
) -> Result<Array> {
    let of_mask = match &mask {
        Some(Mask::Array(mask)) => Some((*mask).clone()),
        _ => None,
    };
    let y = fast::scaled_dot_product_attention(q, keys, values, scale, mask, sinks).map_err(fault(op))?;
    // Others are taken apart on Metal, too.
    let width = |x: &Array| x.shape()[3];
    if matches!(width(q), 64 | 96 | 128 | 256) && width(values) == width(q) && q.shape()[2] <= 8 {
        let inputs = [Some(q), Some(keys), Some(values), of_mask.as_ref(), sinks];
        let inputs: Vec<&Array> = inputs.into_iter().flatten().collect();
        dispatches::note("scaled_dot_product_attention", &inputs, from_ref(&y));
    }
    Ok(y)
}

thread_local! {
    /// The Metal kernels that this thread has launched, by name: a name has one text.
    static METAL_KERNELS: RefCell<HashMap<&'static str, MetalKernel>> = RefCell::default();
    /// Launches of this thread, by op.
    static LAUNCHES: RefCell<HashMap<&'static str, u64>> = RefCell::default();
}

/// How often this thread has launched a kernel for the op.
pub(crate) fn n_launches(op: &str) -> u64 {
    LAUNCHES.with_borrow(|launches| launches.get(op).copied().unwrap_or(0))
}

/// Launches a kernel of that GPU on `inputs`, which stand in the order of `spec.inputs`. Its text is compiled, and its faults
/// come to light, when the results are computed.
pub(crate) fn launch<const N: usize>(
    op: &'static str,
    gpu: Gpu,
    spec: &KernelSpec,
    inputs: &[&Array],
) -> Result<[Array; N]> {
    assert_eq!((inputs.len(), N), (spec.inputs.len(), spec.outputs.len()), "{}: arrays", spec.name);
    if dispatches::is_recording() {
        let zeros = |o: &Output| {
            let shape: Vec<i32> = o.shape.iter().map(|n| *n as i32).collect();
            mlx_rs::ops::zeros_dtype(&shape, mlx_dtype(o.dtype)).map_err(fault(op))
        };
        let results = spec.outputs.iter().map(zeros).collect::<Result<Vec<_>>>()?;
        dispatches::note(spec.name, inputs, &results);
        return as_many(op, spec, results);
    }
    let results = match gpu {
        Gpu::Metal => launch_metal(op, spec, inputs)?,
        Gpu::Cuda => cuda::launch(op, spec, inputs)?,
    };
    LAUNCHES.with_borrow_mut(|launches| *launches.entry(op).or_default() += 1);
    as_many(op, spec, results)
}

fn launch_metal(op: &'static str, spec: &KernelSpec, inputs: &[&Array]) -> Result<Vec<Array>> {
    let size = |[x, y, z]: [usize; 3]| (x as i32, y as i32, z as i32);
    let outputs: Vec<_> = spec
        .outputs
        .iter()
        .map(|o| MetalKernelOutput {
            shape: o.shape.iter().map(|n| *n as i32).collect(),
            dtype: mlx_dtype(o.dtype),
        })
        .collect();
    let argument = |t: Template| match t {
        Template::Type(dtype) => TemplateArg::Dtype(mlx_dtype(dtype)),
        Template::Int(value) => TemplateArg::Int(value),
        Template::Bool(value) => TemplateArg::Bool(value),
    };
    let template_args = spec.template.iter().map(|(name, t)| ((*name).to_owned(), argument(*t))).collect();
    let options = MetalKernelApplyOptions { template_args, ..Default::default() };
    let results = METAL_KERNELS.with_borrow_mut(|kernels| {
        let kernel = match kernels.entry(spec.name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let names: Vec<_> = spec.outputs.iter().map(|o| o.name).collect();
                let options = MetalKernelOptions {
                    header: spec.header.to_owned(),
                    ensure_row_contiguous: true,
                    atomic_outputs: false,
                };
                new.insert(MetalKernel::new(spec.name, spec.inputs, &names, spec.body, options)?)
            }
        };
        // SAFETY: the specification was made for these shapes and types: its kernel reads within the inputs and writes
        // every element of the outputs and nothing else, which the simulator's tests show for each kernel.
        unsafe { kernel.apply(inputs, &outputs, size(spec.grid), size(spec.threadgroup), options) }
    });
    results.map_err(fault(op))
}

/// The results of a kernel as its caller wants them.
fn as_many<const N: usize>(op: &'static str, spec: &KernelSpec, results: Vec<Array>) -> Result<[Array; N]> {
    results.try_into().map_err(|results: Vec<Array>| Error::Fault {
        op,
        backend: NAME,
        why: format!("{} gave {} results", spec.name, results.len()),
    })
}

/// The type as MLX names it.
pub(crate) fn mlx_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::Float32,
        DType::F16 => Dtype::Float16,
        DType::BF16 => Dtype::Bfloat16,
        DType::U8 => Dtype::Uint8,
        DType::U32 => Dtype::Uint32,
    }
}

/// Calls a function that fills a handle on the thread's stream.
fn call(op: &'static str, f: impl FnOnce(*mut mlx_array, mlx_sys::mlx_stream) -> i32) -> Result<Array> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: makes an empty handle.
    let mut result = unsafe { mlx_sys::mlx_array_new() };
    let status = f(&mut result, stream.as_ptr());
    // SAFETY: a live handle that nothing else owns: filled if the call succeeded, empty if not. The array frees it.
    let array = unsafe { Array::from_ptr(result) };
    if status == 0 {
        return Ok(array);
    }
    Err(Error::Fault { op, backend: NAME, why: "MLX refuses the arguments".to_owned() })
}

fn handle(array: Option<&Array>) -> mlx_array {
    array.map_or(mlx_array { ctx: std::ptr::null_mut() }, Array::as_ptr)
}

fn some(value: usize) -> mlx_optional_int {
    mlx_optional_int { value: value as i32, has_value: true }
}

fn mode(spec: QuantSpec) -> &'static CStr {
    match spec.mode() {
        QuantMode::Affine => c"affine",
        QuantMode::Mxfp4 => c"mxfp4",
        QuantMode::Mxfp8 => c"mxfp8",
        QuantMode::Nvfp4 => c"nvfp4",
    }
}

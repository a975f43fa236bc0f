//! The fused kernel for MLX's CUDA backend: its source, geometry and launch.
//!
//! MLX compiles the source at run time. Like [`crate::metal`] in exact numerics, the kernel repeats the order of sums of the stock
//! kernel that would serve the shape, so its results have the bits of the composition of stock MLX 0.32.2 ops. MLX's CUDA backend
//! has two such stock kernels: one for fewer than 8 pairs, and one on tensor cores for 8 or more. Whether the bits are equal on a
//! card is found out there, by the self-check when a model is loaded.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use mlx_rs::{Array, Stream};
use mlx_sys::{
    mlx_array, mlx_fast_cuda_kernel, mlx_fast_cuda_kernel_config, mlx_vector_array, mlx_vector_string,
};

use super::raw::mlx_dtype;
use super::runtime::NAME;
use crate::metal::{
    GATE_UP_INPUTS, KernelSpec, NotFused, Numerics, Output, SwigluShape, Template, need, stripped,
};
use crate::{DType, Error, QuantMode, QuantSpec, Result};

static HEADER: LazyLock<String> = LazyLock::new(|| stripped(include_str!("../shaders/cuda/swiglu.cuh")));
static VECTOR: LazyLock<String> =
    LazyLock::new(|| stripped(include_str!("../shaders/cuda/gather_qmm_swiglu_vector.cu")));
static TILE: LazyLock<String> =
    LazyLock::new(|| stripped(include_str!("../shaders/cuda/gather_qmm_swiglu_tile.cu")));

/// Pairs from which stock MLX uses tensor cores.
const TENSOR_CORE_PAIRS: usize = 8;
/// The widest row that the kernel for tensor cores holds in shared memory.
const MAX_TILE_IN: usize = 4096;

/// [`crate::metal::gather_qmm_swiglu`] for CUDA: the same shapes, inputs and result.
///
/// # Errors
/// [`NotFused`] if the shape has no kernel: the two kernels know exact numerics, affine weights of 4 bits, activations of 16 bits
/// and one row per pair.
pub(super) fn gather_qmm_swiglu(
    dtype: DType,
    format: QuantSpec,
    shape: &SwigluShape,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let SwigluShape { n_pairs, x_batch, n_rows, n_out, n_in, sorted, .. } = *shape;
    need(numerics == Numerics::Exact, "the kernels for CUDA have exact numerics only")?;
    need(matches!(dtype, DType::BF16 | DType::F16), "activations must be f16 or bf16")?;
    need(format.mode() == QuantMode::Affine && format.bits() == 4, "weights must be affine, of 4 bits")?;
    need(
        n_pairs > 0 && n_out > 0 && n_rows == 1 && !sorted,
        "one row per pair in any order, and at least one pair",
    )?;
    need(x_batch > 0 && n_pairs.is_multiple_of(x_batch), "the pairs do not take the rows of x in order")?;
    need(n_in.is_multiple_of(128), "rows are not whole 128s")?;
    let is_tile = n_pairs >= TENSOR_CORE_PAIRS;
    let fits_tile = n_out.is_multiple_of(128) && n_in <= MAX_TILE_IN;
    need(!is_tile || fits_tile, "the stock kernel for this shape sums in another order")?;
    let (name, body, rows) = match is_tile {
        true => ("zmlx_gather_qmm_swiglu_tile", &TILE, 32),
        false => ("zmlx_gather_qmm_swiglu_vector", &VECTOR, 8),
    };
    const WARPS: usize = 8;
    Ok(KernelSpec {
        name,
        header: HEADER.as_str(),
        body: body.as_str(),
        inputs: GATE_UP_INPUTS,
        outputs: vec![Output { name: "out", dtype, shape: vec![n_pairs, n_rows, n_out] }],
        template: vec![("T", Template::Type(dtype)), ("GROUP", Template::Int(format.group_size() as i32))],
        grid: [32 * n_out.div_ceil(rows), WARPS, n_pairs],
        threadgroup: [32, WARPS, 1],
    })
}

thread_local! {
    /// The kernels that this thread has launched, by name: a name has one text.
    static KERNELS: RefCell<HashMap<&'static str, CudaKernel>> = RefCell::default();
}

/// A kernel as MLX knows it.
struct CudaKernel(mlx_fast_cuda_kernel);

impl CudaKernel {
    fn new(spec: &KernelSpec) -> Self {
        let outputs: Vec<_> = spec.outputs.iter().map(|o| o.name).collect();
        let (inputs, outputs) = (Texts::new(spec.inputs), Texts::new(&outputs));
        let (name, body, header) = (text(spec.name), text(spec.body), text(spec.header));
        let (name, body, header) = (name.as_ptr(), body.as_ptr(), header.as_ptr());
        // SAFETY: all handles and texts are live for the call, which copies them; arrays are made row-contiguous, and the kernel
        // uses no dynamic shared memory.
        Self(unsafe { mlx_sys::mlx_fast_cuda_kernel_new(name, inputs.0, outputs.0, body, header, true, 0) })
    }
}

impl Drop for CudaKernel {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.0) }
    }
}

/// Launches a CUDA kernel on `inputs`, which stand in the order of `spec.inputs`. Its text is compiled, and its faults come to
/// light, when the results are computed.
pub(super) fn launch(op: &'static str, spec: &KernelSpec, inputs: &[&Array]) -> Result<Vec<Array>> {
    let stream = Stream::thread_local_or_default();
    let config = Config::new(spec);
    let handles: Vec<mlx_array> = inputs.iter().map(|a| a.as_ptr()).collect();
    let mut results = Arrays::new();
    let status = KERNELS.with_borrow_mut(|kernels| {
        let kernel = kernels.entry(spec.name).or_insert_with(|| CudaKernel::new(spec));
        let inputs = Arrays::of(&handles);
        // SAFETY: all handles are live for the call. The specification was made for these shapes and types: its kernel reads within
        // the inputs, and writes every element of the outputs and nothing else.
        unsafe {
            mlx_sys::mlx_fast_cuda_kernel_apply(&mut results.0, kernel.0, inputs.0, config.0, stream.as_ptr())
        }
    });
    let fault = || Error::Fault { op, backend: NAME, why: format!("MLX refuses the kernel {}", spec.name) };
    if status != 0 {
        return Err(fault());
    }
    (0..spec.outputs.len()).map(|idx| results.get(idx).ok_or_else(fault)).collect()
}

/// The arguments of a launch.
struct Config(mlx_fast_cuda_kernel_config);

impl Config {
    fn new(spec: &KernelSpec) -> Self {
        let dtype = |dtype| -> u32 { mlx_dtype(dtype).into() };
        let size = |[x, y, z]: [usize; 3]| (x as i32, y as i32, z as i32);
        let ((gx, gy, gz), (tx, ty, tz)) = (size(spec.grid), size(spec.threadgroup));
        // SAFETY: the handle is live, and every list and text outlives the call that copies it.
        unsafe {
            let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
            for output in &spec.outputs {
                let shape: Vec<i32> = output.shape.iter().map(|n| *n as i32).collect();
                let dtype = dtype(output.dtype);
                mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                    config,
                    shape.as_ptr(),
                    shape.len(),
                    dtype,
                );
            }
            for (name, value) in &spec.template {
                let name = text(name);
                let name = name.as_ptr();
                match *value {
                    Template::Type(t) => {
                        mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(config, name, dtype(t))
                    }
                    Template::Int(i) => {
                        mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(config, name, i)
                    }
                    Template::Bool(b) => {
                        mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_bool(config, name, b)
                    }
                };
            }
            mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, gx, gy, gz);
            mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, tx, ty, tz);
            Self(config)
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_config_free(self.0) }
    }
}

/// A list of arrays.
struct Arrays(mlx_vector_array);

impl Arrays {
    fn new() -> Self {
        // SAFETY: makes an empty list.
        Self(unsafe { mlx_sys::mlx_vector_array_new() })
    }

    fn of(handles: &[mlx_array]) -> Self {
        // SAFETY: the list has that length; MLX counts a reference to each array.
        Self(unsafe { mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len()) })
    }

    fn get(&self, idx: usize) -> Option<Array> {
        // SAFETY: `array` is an empty handle, which the call fills if there is such an array, and the result frees it.
        unsafe {
            let mut array = mlx_sys::mlx_array_new();
            let status = mlx_sys::mlx_vector_array_get(&mut array, self.0, idx);
            let array = Array::from_ptr(array);
            (status == 0).then_some(array)
        }
    }
}

impl Drop for Arrays {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { mlx_sys::mlx_vector_array_free(self.0) };
    }
}

/// A list of texts.
struct Texts(mlx_vector_string);

impl Texts {
    fn new(names: &[&str]) -> Self {
        let texts: Vec<CString> = names.iter().map(|name| text(name)).collect();
        let mut pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        // SAFETY: the list has that length, and the texts are live for the call, which copies them.
        Self(unsafe { mlx_sys::mlx_vector_string_new_data(pointers.as_mut_ptr(), pointers.len()) })
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { mlx_sys::mlx_vector_string_free(self.0) };
    }
}

fn text(s: &str) -> CString {
    CString::new(s).expect("sources and names have no zero byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_pairs: usize, n_out: usize, n_in: usize) -> SwigluShape {
        SwigluShape { n_pairs, x_batch: 1, n_rows: 1, n_experts: 16, n_out, n_in, sorted: false }
    }

    #[test]
    fn the_kernel_is_the_one_whose_order_stock_mlx_has() {
        let format = QuantSpec::new(QuantMode::Affine, 4, 64).unwrap();
        let name =
            |shape| gather_qmm_swiglu(DType::BF16, format, &shape, Numerics::Exact).map(|spec| spec.name);
        assert_eq!(name(shape(4, 1536, 2048)), Ok("zmlx_gather_qmm_swiglu_vector"));
        assert_eq!(name(shape(7, 100, 128)), Ok("zmlx_gather_qmm_swiglu_vector"));
        assert_eq!(name(shape(8, 768, 2048)), Ok("zmlx_gather_qmm_swiglu_tile"));
        for none in [shape(8, 100, 128), shape(8, 128, 4224), shape(4, 64, 192), shape(0, 64, 128)] {
            assert!(name(none).is_err(), "{none:?}");
        }
        for none in [
            SwigluShape { n_rows: 2, ..shape(4, 64, 128) },
            SwigluShape { sorted: true, ..shape(4, 64, 128) },
        ] {
            assert!(name(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn other_formats_types_and_numerics_have_no_kernel() {
        let affine = |bits| QuantSpec::new(QuantMode::Affine, bits, 64).unwrap();
        let spec = |dtype, format, numerics| gather_qmm_swiglu(dtype, format, &shape(4, 64, 128), numerics);
        assert!(spec(DType::F16, affine(4), Numerics::Exact).is_ok());
        assert!(spec(DType::F32, affine(4), Numerics::Exact).is_err());
        assert!(spec(DType::BF16, affine(8), Numerics::Exact).is_err());
        assert!(spec(DType::BF16, affine(4), Numerics::Accurate).is_err());
    }

    #[test]
    fn every_row_has_a_warp() {
        let format = QuantSpec::new(QuantMode::Affine, 4, 32).unwrap();
        for (n_pairs, n_out) in [(1, 1), (7, 9), (8, 128), (64, 768)] {
            let spec =
                gather_qmm_swiglu(DType::BF16, format, &shape(n_pairs, n_out, 128), Numerics::Exact).unwrap();
            // Rows of a block: a warp of the vector kernel has one, two warps of the other have 8.
            let rows = if spec.name.ends_with("tile") { 32 } else { 8 };
            assert!(spec.grid[0] / spec.threadgroup[0] * rows >= n_out);
            assert_eq!((spec.grid[1], spec.grid[2]), (spec.threadgroup[1], n_pairs));
        }
    }
}

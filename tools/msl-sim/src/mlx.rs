//! Bodies of kernels that MLX compiles at run time (`mx.fast.metal_kernel`, `mlx_rs::fast::MetalKernel`).
//!
//! The signature follows the rules of MLX 0.32 (`mlx/backend/common/metal_kernel.cpp` and
//! `mlx/backend/metal/custom_kernel.cpp`):
//!
//! - Template parameters come in order: `typename`, `int` or `bool`.
//! - Inputs come in order: `const constant T*` for fewer than eight elements, otherwise `const device T*`. An input
//!   without dimensions is a reference. An input with dimensions is followed by `NAME_shape` (int), `NAME_strides`
//!   (int64_t) and `NAME_ndim`, each only if the body contains that word anywhere.
//! - Outputs come in order: `device T*`, or `device atomic<T>*`.
//! - The attributes that the body names follow, in the alphabetical order of MLX's own list.
//! - The grid is counted in threads. The threadgroup is cut to the grid, and groups at the edges are smaller.
//! - Outputs are undefined at first, or filled with an initial value. Inputs are made contiguous first, unless a flag
//!   forbids it.

mod call;
mod signature;

pub use call::{MlxCall, Outputs};

use crate::Error;
use crate::compiler::Mode;
use crate::msl::{Library, Msl};

/// The element types of MLX arrays that kernels can take here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `bool`, one byte.
    Bool,
    /// `uint8_t`.
    Uint8,
    /// `uint16_t`.
    Uint16,
    /// `uint32_t`.
    Uint32,
    /// `uint64_t`.
    Uint64,
    /// `int8_t`.
    Int8,
    /// `int16_t`.
    Int16,
    /// `int32_t`.
    Int32,
    /// `int64_t`.
    Int64,
    /// `float16_t`, Metal's `half`.
    Float16,
    /// `bfloat16_t`, Metal's `bfloat`.
    Bfloat16,
    /// `float`.
    Float32,
}

impl Dtype {
    /// The name of the type in MLX's kernels.
    pub fn metal(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Uint8 => "uint8_t",
            Self::Uint16 => "uint16_t",
            Self::Uint32 => "uint32_t",
            Self::Uint64 => "uint64_t",
            Self::Int8 => "int8_t",
            Self::Int16 => "int16_t",
            Self::Int32 => "int32_t",
            Self::Int64 => "int64_t",
            Self::Float16 => "float16_t",
            Self::Bfloat16 => "bfloat16_t",
            Self::Float32 => "float",
        }
    }

    /// The size of one element in bytes.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Uint32 | Self::Int32 | Self::Float32 => 4,
            Self::Uint64 | Self::Int64 => 8,
        }
    }
}

/// A template argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateArg {
    /// A `typename`.
    Dtype(Dtype),
    /// An `int`.
    Int(i32),
    /// A `bool`.
    Bool(bool),
}

impl From<Dtype> for TemplateArg {
    fn from(value: Dtype) -> Self {
        Self::Dtype(value)
    }
}

impl From<i32> for TemplateArg {
    fn from(value: i32) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for TemplateArg {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// The address space of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The address space of inputs with fewer than eight elements, by MLX's rule.
    Constant,
    /// The address space of larger inputs, by MLX's rule.
    Device,
}

#[derive(Clone, Debug)]
struct Input {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The strides in elements. `None` means those of a contiguous array.
    strides: Option<Vec<i64>>,
    space: Option<Space>,
}

impl Input {
    fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

#[derive(Clone, Debug)]
struct Output {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// A kernel body with the declarations from which MLX derives its signature.
#[derive(Clone, Debug)]
pub struct MlxBody {
    name: String,
    body: String,
    header: String,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    template: Vec<(String, TemplateArg)>,
    atomic_outputs: bool,
    keep_layout: bool,
    contract: bool,
}

impl MlxBody {
    /// Creates a body from its text and the name that is given to MLX.
    pub fn new(name: impl Into<String>, body: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            body: body.into(),
            header: String::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            template: Vec::new(),
            atomic_outputs: false,
            keep_layout: false,
            contract: false,
        }
    }

    /// Text before the kernel, such as helper functions.
    pub fn header(mut self, header: impl Into<String>) -> Self {
        self.header = header.into();
        self
    }

    /// Declares the next input. An empty shape is a scalar, passed by reference.
    pub fn input(mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        let shape = shape.to_vec();
        self.inputs.push(Input { name: name.into(), dtype, shape, strides: None, space: None });
        self
    }

    /// Declares the next output.
    pub fn output(mut self, name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        self.outputs.push(Output { name: name.into(), dtype, shape: shape.to_vec() });
        self
    }

    /// Adds a template parameter and its argument.
    pub fn template(mut self, name: impl Into<String>, value: impl Into<TemplateArg>) -> Self {
        self.template.push((name.into(), value.into()));
        self
    }

    /// Declares the outputs as pointers to atomics.
    pub fn atomic_outputs(mut self) -> Self {
        self.atomic_outputs = true;
        self
    }

    /// Passes inputs in their own layout (`ensure_row_contiguous` is false).
    pub fn keep_layout(mut self) -> Self {
        self.keep_layout = true;
        self
    }

    /// Sets the strides, in elements, of an input that is already declared. Its data is then the storage that the
    /// strides refer to.
    pub fn strides(mut self, input: &str, strides: &[i64]) -> Self {
        for declared in self.inputs.iter_mut().filter(|i| i.name == input) {
            declared.strides = Some(strides.to_vec());
        }
        self
    }

    /// Sets the address space of an input that is already declared, against MLX's rule of eight elements, so that a
    /// test can check a body with both.
    pub fn space(mut self, input: &str, space: Space) -> Self {
        for declared in self.inputs.iter_mut().filter(|i| i.name == input) {
            declared.space = Some(space);
        }
        self
    }

    /// Like [`Msl::contract_fma`].
    pub fn contract_fma(mut self) -> Self {
        self.contract = true;
        self
    }

    /// The kernel's source as MLX generates it, without its preamble.
    pub fn source(&self) -> String {
        signature::source(self, false)
    }

    /// The kernel's source after a preamble that replaces MLX's own: a complete file for Metal's own compiler.
    pub fn source_with_preamble(&self) -> String {
        signature::source(self, true)
    }

    /// Translates and compiles the kernel, or takes the compiled kernel from the cache.
    pub fn build(&self, mode: Mode) -> Result<MlxKernel, Error> {
        self.validate()?;
        let library = self.msl().build(mode)?;
        Ok(MlxKernel { host_name: signature::host_name(self), body: self.clone(), library })
    }

    pub(crate) fn msl(&self) -> Msl {
        let msl = Msl::source(self.name.clone(), self.source_with_preamble());
        if self.contract { msl.contract_fma() } else { msl }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |message: String| Err(Error::Call { kernel: self.name.clone(), message });
        if self.outputs.is_empty() {
            return refuse("MLX requires at least one output".to_owned());
        }
        for input in &self.inputs {
            let Some(strides) = &input.strides else { continue };
            if strides.len() != input.shape.len() {
                let (strides, shape) = (strides.len(), input.shape.len());
                return refuse(format!("input {} has {strides} strides for {shape} dimensions", input.name));
            }
            if strides.iter().any(|&s| s < 0) {
                return refuse(format!(
                    "input {} has a negative stride, which is not supported here",
                    input.name
                ));
            }
        }
        Ok(())
    }
}

/// A compiled body.
#[derive(Debug)]
pub struct MlxKernel {
    body: MlxBody,
    host_name: String,
    library: Library,
}

impl MlxKernel {
    /// The kernel's source as MLX generates it, without its preamble.
    pub fn source(&self) -> String {
        self.body.source()
    }

    /// Starts a call. The data of the inputs is then added in the order of their declaration.
    pub fn call(&self) -> MlxCall<'_> {
        MlxCall::new(self)
    }
}

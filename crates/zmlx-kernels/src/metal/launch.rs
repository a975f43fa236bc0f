//! A launch of a kernel by a program that talks to Metal itself: the complete source text, and what a command encoder is told.
//!
//! MLX writes a kernel's signature itself. Here a [`KernelSpec`] gets one by the same rules: each input is followed by its
//! dimensions if the body names them, then come the outputs, then the thread's positions that the body names.

use std::fmt::Write;

use super::{CombineShape, KernelSpec, NotFused, Numerics, SwigluShape, Template};
use super::{gather_qmm_combine, gather_qmm_swiglu, quantized_matmul};
use crate::check::ensure;
use crate::{DType, Error, QuantSpec, Result};

/// What a launch tells a command encoder: the seam between these kernels and Metal. A test records the same calls.
pub trait Encode {
    /// A buffer of the device.
    type Buffer;
    /// Why a pipeline cannot be made.
    type Error;

    /// The kernel `name` of `source` runs next. The name stands for the source: equal names have equal sources.
    ///
    /// # Errors
    /// If the source cannot be compiled.
    fn set_pipeline(
        &mut self,
        name: &str,
        source: &dyn Fn() -> String,
    ) -> std::result::Result<(), Self::Error>;

    /// Binds a buffer that the kernel reads, from the byte `offset_bytes` on.
    fn set_input(&mut self, index: usize, buffer: &Self::Buffer, offset_bytes: usize);

    /// Binds a buffer that the kernel writes.
    fn set_output(&mut self, index: usize, buffer: &Self::Buffer);

    /// Binds a copy of these bytes.
    fn set_bytes(&mut self, index: usize, bytes: &[u8]);

    /// Runs as many threads, in groups of that size.
    fn dispatch_threads(&mut self, threads: [usize; 3], threadgroup: [usize; 3]);
}

/// A row-major array in a buffer, as an input of a kernel.
#[derive(Debug)]
pub struct Operand<'a, B> {
    /// Where its elements are.
    pub buffer: &'a B,
    /// Where they begin in the buffer.
    pub offset_bytes: usize,
    /// Their type.
    pub dtype: DType,
    /// The array's dimensions.
    pub shape: Vec<usize>,
}

impl<B> Clone for Operand<'_, B> {
    fn clone(&self) -> Self {
        Self { shape: self.shape.clone(), ..*self }
    }
}

impl<B> Operand<'_, B> {
    fn with_shape(self, shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), ..self }
    }

    /// The dimensions, if there are as many as asked for.
    fn dims<const N: usize>(&self, op: &'static str, what: &'static str, want: &str) -> Result<[usize; N]> {
        let dims = <[usize; N]>::try_from(&self.shape[..]).ok();
        ensure(dims.is_some(), op, what, want, &self.shape)?;
        Ok(dims.unwrap_or([0; N]))
    }
}

/// Weight `[E, N, words]`, scales and biases `[E, N, groups]`: the arrays of a bank of quantised matrices. A format without
/// biases has its scales in their place.
pub type BankOperands<'a, B> = [Operand<'a, B>; 3];

/// A kernel and its inputs. Numerics are accurate: sums in f32, one rounding.
#[derive(Debug)]
pub struct Launch<'a, B> {
    spec: KernelSpec,
    operands: Vec<Operand<'a, B>>,
}

impl<'a, B> Launch<'a, B> {
    /// [`quantized_matmul`] of x `[M, K]` with the only matrix of a bank: `[M, N]`.
    ///
    /// # Errors
    /// [`Error::Precondition`] naming the array, what it needs and what it got; [`Error::Unsupported`] if there is no kernel.
    pub fn quantized_matmul(
        format: QuantSpec,
        x: Operand<'a, B>,
        weight: BankOperands<'a, B>,
    ) -> Result<Self> {
        const OP: &str = "quantized_matmul";
        let [n_mats, n_out, n_in] = bank(OP, format, &weight)?;
        ensure(n_mats == 1, OP, "weight", "one matrix", n_mats)?;
        let [n_rows, width] = x.dims(OP, "x", "[M, K]")?;
        ensure(width == n_in, OP, "x", format_args!("[M, {n_in}]"), &x.shape)?;
        check_int(OP, "x", &[n_rows])?;
        let spec = spec(OP, quantized_matmul(x.dtype, format, [n_rows, n_out, n_in]))?;
        let matrix = weight.map(|a| {
            let shape = a.shape[1..].to_vec();
            a.with_shape(&shape)
        });
        Ok(Self { spec, operands: [x].into_iter().chain(matrix).collect() })
    }

    /// [`gather_qmm_swiglu`] of x `[n, K]` and experts u32 `[n, top_k]`: `[n, top_k, N]`, stored as `[n · top_k, 1, N]`.
    ///
    /// # Errors
    /// As [`Self::quantized_matmul`].
    pub fn gather_qmm_swiglu(
        format: QuantSpec,
        x: Operand<'a, B>,
        [gate, up]: [BankOperands<'a, B>; 2],
        experts: Operand<'a, B>,
    ) -> Result<Self> {
        const OP: &str = "gather_qmm_swiglu";
        let [n_experts, n_out, n_in] = bank(OP, format, &gate)?;
        let up_sizes = bank(OP, format, &up)?;
        let sizes = [n_experts, n_out, n_in];
        ensure(up_sizes == sizes, OP, "up", format_args!("{sizes:?}, as gate"), up_sizes)?;
        let [n, width] = x.dims(OP, "x", "[n, K]")?;
        ensure(width == n_in, OP, "x", format_args!("[n, {n_in}]"), &x.shape)?;
        let n_pairs = n * choices(OP, n, &experts)?;
        let shape = SwigluShape { n_pairs, x_batch: n, n_rows: 1, n_experts, n_out, n_in, sorted: false };
        let spec = spec(OP, gather_qmm_swiglu(x.dtype, format, &shape, Numerics::Accurate))?;
        let mut operands = vec![x.with_shape(&[n, 1, n_in])];
        operands.extend(gate.into_iter().chain(up));
        operands.push(experts.with_shape(&[n_pairs]));
        Ok(Self { spec, operands })
    }

    /// [`gather_qmm_combine`] of x `[n, top_k, K]`, experts u32 and weights `[n, top_k]`: `[n, N]`.
    ///
    /// # Errors
    /// As [`Self::quantized_matmul`].
    pub fn gather_qmm_combine(
        format: QuantSpec,
        x: Operand<'a, B>,
        down: BankOperands<'a, B>,
        experts: Operand<'a, B>,
        weights: Operand<'a, B>,
    ) -> Result<Self> {
        const OP: &str = "gather_qmm_combine";
        let [n_experts, n_out, n_in] = bank(OP, format, &down)?;
        let [n_tokens, top_k, width] = x.dims(OP, "x", "[n, top_k, K]")?;
        ensure(width == n_in, OP, "x", format_args!("[n, top_k, {n_in}]"), &x.shape)?;
        let n_choices = choices(OP, n_tokens, &experts)?;
        ensure(n_choices == top_k, OP, "experts", format_args!("[{n_tokens}, {top_k}]"), &experts.shape)?;
        let fits = weights.shape == experts.shape;
        ensure(fits, OP, "weights", format_args!("[{n_tokens}, {top_k}]"), &weights.shape)?;
        let shape = CombineShape { n_tokens, top_k, n_experts, n_out, n_in };
        let spec = gather_qmm_combine(x.dtype, weights.dtype, format, &shape, Numerics::Accurate);
        let mut operands = vec![x];
        operands.extend(down);
        operands.extend([experts, weights]);
        Ok(Self { spec: self::spec(OP, spec)?, operands })
    }

    /// The kernel; its only output is what [`Self::encode`] writes.
    pub fn spec(&self) -> &KernelSpec {
        &self.spec
    }

    /// The kernel's name, which is another one for other template arguments and types.
    pub fn name(&self) -> String {
        let template = self.spec.template.iter().map(|(_, value)| argument(*value));
        let types = self.operands.iter().map(|a| metal_type(a.dtype).to_owned());
        let words: Vec<String> =
            [self.spec.name.to_owned()].into_iter().chain(template).chain(types).collect();
        words.join("_")
    }

    /// The complete source: what `newLibraryWithSource` takes. It has to be compiled without fast math.
    pub fn source(&self) -> String {
        let spec = &self.spec;
        let parameters: Vec<String> =
            spec.template.iter().map(|(name, value)| parameter(name, *value)).collect();
        let mut arguments = Vec::new();
        for (index, binding) in self.bindings().enumerate() {
            arguments.push(match binding {
                Binding::Input { name, operand } => {
                    format!("const device {}* {name} [[buffer({index})]]", metal_type(operand.dtype))
                }
                Binding::Dimensions { name, .. } => {
                    format!("const constant int* {name}_shape [[buffer({index})]]")
                }
                Binding::Output { name, dtype } => {
                    format!("device {}* {name} [[buffer({index})]]", metal_type(dtype))
                }
            });
        }
        let named = POSITIONS.iter().filter(|(name, _)| spec.body.contains(name));
        arguments.extend(named.map(|(name, ty)| format!("{ty} {name} [[{name}]]")));
        let (template, arguments) = (parameters.join(", "), arguments.join(",\n"));
        let values: Vec<String> = spec.template.iter().map(|(_, value)| argument(*value)).collect();
        let instance = format!("{}<{}>", spec.name, values.join(", "));
        let mut text = String::from("#include <metal_stdlib>\nusing namespace metal;\n");
        text += spec.header;
        // Writing to a string does not fail.
        let _ = write!(text, "template <{template}>\n[[kernel]] void {}(\n{arguments}) {{\n", spec.name);
        text += spec.body;
        let _ = write!(
            text,
            "}}\ntemplate [[host_name(\"{}\")]] [[kernel]] decltype({instance}) {instance};\n",
            self.name()
        );
        text
    }

    /// Tells `encoder` all of it: the pipeline, the inputs with their dimensions, the output, and the threads.
    ///
    /// # Errors
    /// Those of [`Encode::set_pipeline`].
    pub fn encode<E: Encode<Buffer = B>>(
        &self,
        encoder: &mut E,
        output: &B,
    ) -> std::result::Result<(), E::Error> {
        encoder.set_pipeline(&self.name(), &|| self.source())?;
        for (index, binding) in self.bindings().enumerate() {
            match binding {
                Binding::Input { operand, .. } => {
                    encoder.set_input(index, operand.buffer, operand.offset_bytes)
                }
                Binding::Dimensions { shape, .. } => {
                    // Kernels count in int: `bank` and `choices` have checked the sizes.
                    let bytes: Vec<u8> = shape.iter().flat_map(|&n| (n as i32).to_le_bytes()).collect();
                    encoder.set_bytes(index, &bytes);
                }
                Binding::Output { .. } => encoder.set_output(index, output),
            }
        }
        encoder.dispatch_threads(self.spec.grid, self.spec.threadgroup);
        Ok(())
    }

    /// What is bound, in the order of the indices.
    fn bindings(&self) -> impl Iterator<Item = Binding<'_, 'a, B>> {
        let inputs = self.spec.inputs.iter().zip(&self.operands).flat_map(|(&name, operand)| {
            let is_named = self.spec.body.contains(&format!("{name}_shape"));
            let dimensions = Binding::Dimensions { name, shape: &operand.shape };
            [Some(Binding::Input { name, operand }), is_named.then_some(dimensions)]
        });
        let outputs =
            self.spec.outputs.iter().map(|o| Some(Binding::Output { name: o.name, dtype: o.dtype }));
        inputs.chain(outputs).flatten()
    }
}

/// What stands at an index.
enum Binding<'s, 'a, B> {
    Input { name: &'static str, operand: &'s Operand<'a, B> },
    Dimensions { name: &'static str, shape: &'s [usize] },
    Output { name: &'static str, dtype: DType },
}

/// The attributes of a thread that bodies of this crate name.
const POSITIONS: [(&str, &str); 5] = [
    ("simdgroup_index_in_threadgroup", "uint"),
    ("thread_index_in_simdgroup", "uint"),
    ("thread_position_in_threadgroup", "uint3"),
    ("threadgroup_position_in_grid", "uint3"),
    ("threads_per_threadgroup", "uint3"),
];

fn metal_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "half",
        DType::BF16 => "bfloat",
        DType::U8 => "uchar",
        DType::U32 => "uint",
    }
}

fn parameter(name: &str, value: Template) -> String {
    match value {
        Template::Type(_) => format!("typename {name}"),
        Template::Int(_) => format!("int {name}"),
        Template::Bool(_) => format!("bool {name}"),
    }
}

fn argument(value: Template) -> String {
    match value {
        Template::Type(dtype) => metal_type(dtype).to_owned(),
        Template::Int(n) => n.to_string(),
        Template::Bool(b) => b.to_string(),
    }
}

fn spec(op: &'static str, spec: std::result::Result<KernelSpec, NotFused>) -> Result<KernelSpec> {
    spec.map_err(|why| Error::Unsupported { op, backend: "metal", why: why.to_string() })
}

/// Checks a bank's arrays against each other and the format: `[n_experts, n_out, n_in]`.
fn bank<B>(
    op: &'static str,
    format: QuantSpec,
    [weight, scales, biases]: &BankOperands<'_, B>,
) -> Result<[usize; 3]> {
    let [n_experts, n_out, words] = weight.dims(op, "weight", "[n_experts, n_out, words]")?;
    ensure(weight.dtype == DType::U32, op, "weight", "u32", weight.dtype)?;
    let [_, _, n_groups] = scales.dims(op, "scales", "[n_experts, n_out, groups]")?;
    check_int(op, "weight", &weight.shape)?;
    check_int(op, "scales", &scales.shape)?;
    let n_in = n_groups * format.group_size();
    let is_whole = words * 4 == format.packed_bytes(n_in);
    let want = format_args!("{} bytes in a row, as scales have {n_groups} groups", format.packed_bytes(n_in));
    ensure(is_whole, op, "weight", want, words * 4)?;
    let want = [n_experts, n_out, n_groups];
    ensure(scales.shape == want, op, "scales", format_args!("{want:?}"), &scales.shape)?;
    let is_as_scales = biases.shape == want && biases.dtype == scales.dtype;
    ensure(is_as_scales, op, "biases", format_args!("{want:?} of {:?}", scales.dtype), &biases.shape)?;
    let fits = if format.has_biases() { scales.dtype.is_float() } else { scales.dtype == DType::U8 };
    ensure(fits, op, "scales", "floats in affine formats, otherwise u8", scales.dtype)?;
    Ok([n_experts, n_out, n_in])
}

/// Checks the choices of `n` tokens: how many each has.
fn choices<B>(op: &'static str, n: usize, experts: &Operand<'_, B>) -> Result<usize> {
    let [n_tokens, top_k] = experts.dims(op, "experts", "[n, top_k]")?;
    ensure(n_tokens == n, op, "experts", format_args!("[{n}, top_k]"), &experts.shape)?;
    ensure(experts.dtype == DType::U32, op, "experts", "u32", experts.dtype)?;
    check_int(op, "experts", &[n.saturating_mul(top_k)])?;
    Ok(top_k)
}

/// Kernels count in int.
fn check_int(op: &'static str, what: &'static str, sizes: &[usize]) -> Result<()> {
    let fits = sizes.iter().all(|&n| i32::try_from(n).is_ok());
    ensure(fits, op, what, "dimensions below 2^31", sizes)
}

//! The kernels as custom ops on candle's tensors: [`QuantizedMatmul`], [`GatherQmmSwiglu`], [`GatherQmmCombine`].
//!
//! Each op holds its weights as [`QuantizedBank`]s on one device and takes activations on the same device.
//!
//! | device | what runs |
//! |---|---|
//! | CPU | the kernels of [`crate::cpu`] with one team of threads for all ops of the process |
//! | Metal | the kernels of [`crate::metal`] through candle's command encoder, on macOS |
//! | CUDA | nothing: an error says so. [`zmlx-cuda`](https://docs.rs/zmlx-cuda) has its own tensors |
//!
//! **Dtypes** activations and results are f32, f16 or bf16, experts are u32. **Numerics** accurate: sums in f32, and the result is
//! rounded once to the type of x. On the CPU, activations are first rounded as [`crate::cpu`] says. No op has a gradient.
//! **Layouts** `forward` copies arguments that are not contiguous. The ops refuse them if they are called through candle's `apply_op`.

mod bank;
mod cpu;
#[cfg(target_os = "macos")]
mod device;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Error, Layout, Module, Result, Shape,
    Tensor,
};
#[cfg(target_os = "macos")]
use candle_core::{MetalStorage, backend::BackendStorage};

use crate::check::ensure;
#[cfg(target_os = "macos")]
use crate::metal::Launch;
use crate::{Backend, Down, GateUp};
pub use bank::QuantizedBank;

const MATMUL: &str = "quantized_matmul";
const SWIGLU: &str = "gather_qmm_swiglu";
const COMBINE: &str = "gather_qmm_combine";

/// `y = x · Wᵀ` with one quantised matrix.
///
/// **Shapes** x `[.., K]`, W `1 × [N, K]` → `[.., N]`. **Work** the matrix is read once on the CPU, and once for every 4 rows of x
/// on Metal; 2·N·K FLOPs for each row. **Source** `mx.quantized_matmul(transpose=True)`.
#[derive(Clone, Debug)]
pub struct QuantizedMatmul {
    weight: QuantizedBank,
}

impl QuantizedMatmul {
    /// Products with `weight`.
    ///
    /// # Errors
    /// If it has more than one matrix.
    pub fn new(weight: QuantizedBank) -> Result<Self> {
        ensure(weight.n_mats() == 1, MATMUL, "weight", "one matrix", weight.n_mats()).map_err(Error::wrap)?;
        Ok(Self { weight })
    }

    /// The shape of the result for x of this shape.
    fn result(&self, x: &Layout) -> Result<Shape> {
        let [n_out, n_in] = [self.weight.n_out(), self.weight.n_in()];
        match x.dims().split_last() {
            Some((&width, leading)) if width == n_in => Ok(Shape::from([leading, &[n_out]].concat())),
            _ => Err(refused(MATMUL, "x", &format!("[.., {n_in}]"), x.dims())),
        }
    }
}

impl Module for QuantizedMatmul {
    /// # Errors
    /// If the widths, types or devices do not fit.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for QuantizedMatmul {
    fn name(&self) -> &'static str {
        MATMUL
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.result(x_layout)?;
        let b = cpu::backend()?;
        let x = cpu::Argument::new(MATMUL, "x", x, x_layout)?;
        let rows = x.tensor(b, &[x.len() / self.weight.n_in(), self.weight.n_in()])?;
        let y = b.linear(&rows, self.weight.on_cpu(MATMUL)?).map_err(Error::wrap)?;
        Ok((cpu::result(b, &y, x.dtype())?, shape))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        no_cuda(MATMUL)
    }

    #[cfg(target_os = "macos")]
    fn metal_fwd(&self, x: &MetalStorage, x_layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let shape = self.result(x_layout)?;
        let weight = self.weight.on_metal(MATMUL, x.device())?;
        let mut rows = device::operand(MATMUL, "x", x, x_layout)?;
        let n_in = self.weight.n_in();
        rows.shape = vec![x_layout.shape().elem_count() / n_in, n_in];
        let launch = Launch::quantized_matmul(self.weight.spec(), rows, weight.operands()?);
        Ok((device::run(x.device(), &launch.map_err(Error::wrap)?)?, shape))
    }
}

/// `y[t, s] = silu(x[t] · gate[e]ᵀ) · (x[t] · up[e]ᵀ)` with `e = experts[t, s]`.
///
/// **Shapes** x `[n, K]`, gate and up `n_experts × [N, K]`, experts `[n, top_k]` → `[n, top_k, N]`. **Work** as
/// [`Backend::gather_qmm_swiglu`] on the CPU, and as [`crate::metal::gather_qmm_swiglu`] on Metal.
#[derive(Clone, Debug)]
pub struct GatherQmmSwiglu {
    gate: QuantizedBank,
    up: QuantizedBank,
}

impl GatherQmmSwiglu {
    /// The gated projections of a bank of experts.
    ///
    /// # Errors
    /// If the banks differ in size.
    pub fn new(gate: QuantizedBank, up: QuantizedBank) -> Result<Self> {
        let want = format!("{:?}, as gate", gate.sizes());
        ensure(up.sizes() == gate.sizes(), SWIGLU, "up", want, up.sizes()).map_err(Error::wrap)?;
        Ok(Self { gate, up })
    }

    /// The projections of `x` for the chosen `experts`.
    ///
    /// # Errors
    /// If shapes, types or devices do not fit. On the CPU also if an expert does not exist; on Metal its results are NaN.
    pub fn forward(&self, x: &Tensor, experts: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(&experts.contiguous()?, self)
    }

    /// The shape of the result.
    fn result(&self, x: &Layout, experts: &Layout) -> Result<Shape> {
        let ([n, n_in], [n_tokens, top_k]) = (dims(SWIGLU, "x", x)?, dims(SWIGLU, "experts", experts)?);
        if n_in != self.gate.n_in() {
            return Err(refused(SWIGLU, "x", &format!("[n, {}]", self.gate.n_in()), x.dims()));
        }
        if n_tokens != n {
            return Err(refused(SWIGLU, "experts", &format!("[{n}, top_k]"), experts.dims()));
        }
        Ok(Shape::from((n, top_k, self.gate.n_out())))
    }
}

impl CustomOp2 for GatherQmmSwiglu {
    fn name(&self) -> &'static str {
        SWIGLU
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        experts: &CpuStorage,
        experts_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.result(x_layout, experts_layout)?;
        let b = cpu::backend()?;
        let x = cpu::Argument::new(SWIGLU, "x", x, x_layout)?;
        let experts = cpu::Argument::new(SWIGLU, "experts", experts, experts_layout)?.indices(b)?;
        let weights = GateUp::swiglu(self.gate.on_cpu(SWIGLU)?, self.up.on_cpu(SWIGLU)?);
        let y =
            b.gather_qmm_swiglu(&x.tensor(b, x_layout.dims())?, weights, &experts).map_err(Error::wrap)?;
        Ok((cpu::result(b, &y, x.dtype())?, shape))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        no_cuda(SWIGLU)
    }

    #[cfg(target_os = "macos")]
    fn metal_fwd(
        &self,
        x: &MetalStorage,
        x_layout: &Layout,
        experts: &MetalStorage,
        experts_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let shape = self.result(x_layout, experts_layout)?;
        let (gate, up) = (self.gate.on_metal(SWIGLU, x.device())?, self.up.on_metal(SWIGLU, x.device())?);
        let rows = device::operand(SWIGLU, "x", x, x_layout)?;
        let experts = device::operand(SWIGLU, "experts", experts, experts_layout)?;
        let banks = [gate.operands()?, up.operands()?];
        let launch = Launch::gather_qmm_swiglu(self.gate.spec(), rows, banks, experts);
        Ok((device::run(x.device(), &launch.map_err(Error::wrap)?)?, shape))
    }
}

/// `y[t] = Σ_s weights[t, s] · (x[t, s] · down[experts[t, s]]ᵀ)`.
///
/// **Shapes** x `[n, top_k, K]`, down `n_experts × [N, K]`, experts and weights `[n, top_k]` → `[n, N]`. **Dtypes** weights are
/// f32, f16 or bf16; on Metal of the type of x, or f32. **Work** as [`Backend::gather_qmm_combine`] on the CPU, and as
/// [`crate::metal::gather_qmm_combine`] on Metal, where a token has at most 16 experts.
#[derive(Clone, Debug)]
pub struct GatherQmmCombine {
    down: QuantizedBank,
}

impl GatherQmmCombine {
    /// The projections that end a bank of experts.
    pub fn new(down: QuantizedBank) -> Self {
        Self { down }
    }

    /// The weighted sum of each token's projections.
    ///
    /// # Errors
    /// As [`GatherQmmSwiglu::forward`].
    pub fn forward(&self, x: &Tensor, experts: &Tensor, weights: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op3_no_bwd(&experts.contiguous()?, &weights.contiguous()?, self)
    }

    /// The shape of the result.
    fn result(&self, x: &Layout, experts: &Layout, weights: &Layout) -> Result<Shape> {
        let [n, top_k, n_in] = dims(COMBINE, "x", x)?;
        if n_in != self.down.n_in() {
            return Err(refused(COMBINE, "x", &format!("[n, top_k, {}]", self.down.n_in()), x.dims()));
        }
        for (what, layout) in [("experts", experts), ("weights", weights)] {
            if layout.dims() != [n, top_k] {
                return Err(refused(COMBINE, what, &format!("[{n}, {top_k}]"), layout.dims()));
            }
        }
        Ok(Shape::from((n, self.down.n_out())))
    }
}

impl CustomOp3 for GatherQmmCombine {
    fn name(&self) -> &'static str {
        COMBINE
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        experts: &CpuStorage,
        experts_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.result(x_layout, experts_layout, weights_layout)?;
        let b = cpu::backend()?;
        let x = cpu::Argument::new(COMBINE, "x", x, x_layout)?;
        let experts = cpu::Argument::new(COMBINE, "experts", experts, experts_layout)?.indices(b)?;
        let weights = cpu::Argument::new(COMBINE, "weights", weights, weights_layout)?;
        let weights = weights.tensor(b, weights_layout.dims())?;
        let (rows, down) = (x.tensor(b, x_layout.dims())?, Down::plain(self.down.on_cpu(COMBINE)?));
        let y = b.gather_qmm_combine(&rows, down, &experts, &weights).map_err(Error::wrap)?;
        Ok((cpu::result(b, &y, x.dtype())?, shape))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        no_cuda(COMBINE)
    }

    #[cfg(target_os = "macos")]
    fn metal_fwd(
        &self,
        x: &MetalStorage,
        x_layout: &Layout,
        experts: &MetalStorage,
        experts_layout: &Layout,
        weights: &MetalStorage,
        weights_layout: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let shape = self.result(x_layout, experts_layout, weights_layout)?;
        let down = self.down.on_metal(COMBINE, x.device())?;
        let rows = device::operand(COMBINE, "x", x, x_layout)?;
        let experts = device::operand(COMBINE, "experts", experts, experts_layout)?;
        let weights = device::operand(COMBINE, "weights", weights, weights_layout)?;
        let launch = Launch::gather_qmm_combine(self.down.spec(), rows, down.operands()?, experts, weights);
        Ok((device::run(x.device(), &launch.map_err(Error::wrap)?)?, shape))
    }
}

fn no_cuda(op: &str) -> Result<(CudaStorage, Shape)> {
    let why = format!(
        "{op}: there is no kernel for candle's CUDA tensors: move them to the CPU, or use zmlx-cuda's own"
    );
    Err(Error::Cuda(why.into()))
}

/// An argument that does not fit.
fn refused(op: &'static str, what: &'static str, want: &str, got: impl std::fmt::Debug) -> Error {
    Error::wrap(crate::Error::Precondition { op, what, want: want.to_owned(), got: format!("{got:?}") })
}

/// The dimensions, if there are as many as asked for.
fn dims<const N: usize>(op: &'static str, what: &'static str, layout: &Layout) -> Result<[usize; N]> {
    let got = layout.dims();
    got.try_into().map_err(|_| refused(op, what, &format!("{N} dimensions"), got))
}

/// The type as this crate names it.
fn dtype(op: &'static str, what: &'static str, dtype: DType) -> Result<crate::DType> {
    match dtype {
        DType::F32 => Ok(crate::DType::F32),
        DType::F16 => Ok(crate::DType::F16),
        DType::BF16 => Ok(crate::DType::BF16),
        DType::U8 => Ok(crate::DType::U8),
        DType::U32 => Ok(crate::DType::U32),
        _ => Err(refused(op, what, "f32, f16, bf16, u8 or u32", dtype)),
    }
}

//! The fused ops on the arrays of an mlx-rs program, for banks that it already has in MLX's memory.
//!
//! Each function launches a kernel of [`crate::metal`] where MLX would run its ops on a GPU through Metal and there is a
//! kernel for the shapes; everywhere else it composes MLX's own ops, with the same result. Nothing is computed before its
//! result is asked for. A kernel's text is compiled when it first runs: what fails then fails in `eval`, not here;
//! [`self_check`] asks beforehand.
//!
//! # Numerics
//!
//! [`Numerics::Exact`] has the bits of the composition of MLX's ops on the same device. [`Numerics::Accurate`] is f32
//! throughout and rounds once, to the type of x; where it has to be composed it converts x and the banks' scales to f32 in
//! every call.
//!
//! # Indices
//!
//! They may have any integer type. Their values are not read here, which would wait for the device. MLX would read memory that
//! is not the bank's for one that names no expert or no row: the device takes the last one instead.

mod combine;
mod route;
pub mod self_check;
mod swiglu;

use mlx_rs::{Array, Dtype};

use super::backend::below;
use super::runtime::fault;
use super::{MlxBackend, QuantizedExperts};
use crate::check::ensure;
use crate::metal::Numerics;
use crate::{NoauxTc, Result, SoftmaxTopK};
use combine::Combine;
use route::{NoauxTcRoute, SoftmaxRoute};
use swiglu::{Dense, Gather};

/// How [`gather_qmm_swiglu`] pairs rows and experts, and rounds. The default is that of `mx.gather_qmm`, exact.
#[derive(Clone, Copy, Debug)]
pub struct GatherOptions<'a> {
    /// The batch entry of x for each pair; `None` stands for all in order, in the shape of x without its last two dimensions.
    pub lhs_indices: Option<&'a Array>,
    /// Whether the experts ascend over the pairs: MLX may then read each once. Indices that do not ascend all the same give
    /// wrong results.
    pub sorted_indices: bool,
    /// What the result is equal to.
    pub numerics: Numerics,
}

impl Default for GatherOptions<'_> {
    fn default() -> Self {
        Self { lhs_indices: None, sorted_indices: false, numerics: Numerics::Exact }
    }
}

/// `silu(x[l] · gate[e]ᵀ) · (x[l] · up[e]ᵀ)` for each pair (l, e) of `lhs_indices` and `rhs_indices`: two
/// `mx.gather_qmm(transpose=True)` and a SwiGLU.
///
/// **Shapes** x `(…, M, K)`, gate and up E matrices `[N, K]`, indices broadcast against each other to `(…)` → `(…, M, N)`. Up to
/// 16 rows M are fused; of more, MLX's tile kernels read the weights fewer times.
/// **Dtypes** x f32, f16 or bf16; affine scales of the same type, else MLX's promotion holds and nothing is fused.
/// **Numerics** see the module. **Source** `SwitchGLU` of mlx-lm.
///
/// # Errors
/// [`crate::Error::Precondition`] naming the field, what it needs and what it got: another K, gate and up of different
/// shapes or formats, an empty array, indices that are no integers or do not broadcast. Values of indices are not checked:
/// see the module. [`crate::Error::Fault`] with what MLX says.
pub fn gather_qmm_swiglu(
    x: &Array,
    gate: &QuantizedExperts,
    up: &QuantizedExperts,
    rhs_indices: &Array,
    options: &GatherOptions<'_>,
) -> Result<Array> {
    let [y] = run(&Gather::new(x, gate, up, rhs_indices, options)?)?;
    Ok(y)
}

/// `Σ_s weights[s] · (x[s] · down[rhs_indices[s]]ᵀ)`: the experts' results of a token, weighted and summed.
///
/// **Shapes** x `(…, top_k, K)`, down E matrices `[N, K]`, indices and weights `(…, top_k)` → `(…, N)`.
/// **Dtypes** as [`gather_qmm_swiglu`]; weights f32, f16 or bf16. **Numerics** exact: products and sum in the wider type of
/// both, from the first slot to the last, then the type of x. From 64 choices on they are sorted by expert, as mlx-lm does,
/// and MLX's own ops compute them. **Source** the MoE blocks of mlx-lm.
///
/// # Errors
/// As [`gather_qmm_swiglu`].
pub fn gather_qmm_combine(
    x: &Array,
    down: &QuantizedExperts,
    rhs_indices: &Array,
    weights: &Array,
    numerics: Numerics,
) -> Result<Array> {
    let [y] = run(&Combine::new(x, down, rhs_indices, weights, numerics)?)?;
    Ok(y)
}

/// `silu(x · gateᵀ) · (x · upᵀ)` with one matrix each: dense MLPs and shared experts.
///
/// **Shapes** x `(…, K)`, gate and up one matrix `[N, K]` → `(…, N)`. **Dtypes** as [`gather_qmm_swiglu`]. **Source** the MLP of
/// mlx-lm's models.
///
/// # Errors
/// As [`gather_qmm_swiglu`].
pub fn qmm_swiglu(
    x: &Array,
    gate: &QuantizedExperts,
    up: &QuantizedExperts,
    numerics: Numerics,
) -> Result<Array> {
    let [y] = run(&Dense::new(x, gate, up, numerics)?)?;
    Ok(y)
}

/// The `top_k` most probable experts and their probabilities.
///
/// **Shapes** logits `(…, E)` → experts u32 and weights, both `(…, top_k)`. **Numerics** exact: weights in the logits' type, by
/// ascending probability, of equal ones the higher index, as MLX's partition leaves them. Accurate: f32, descending, of equal
/// ones the lower index first. **Source** `qwen3_moe` of mlx-lm.
///
/// # Errors
/// As [`gather_qmm_swiglu`]; also if `top_k` is not within 1 and E.
pub fn route_softmax_top_k(
    logits: &Array,
    settings: &SoftmaxTopK,
    numerics: Numerics,
) -> Result<(Array, Array)> {
    let [experts, weights] = run(&SoftmaxRoute::new(logits, settings, numerics)?)?;
    Ok((experts, weights))
}

/// The `top_k` experts with the largest `sigmoid(logit) + bias`, and their weights without the bias.
///
/// **Shapes** logits `(…, E)`, bias `(E)` → experts u32 and weights f32, both `(…, top_k)`, by descending score, of equal ones
/// the lower index first. **Source** `group_expert_select` of mlx-lm.
///
/// # Errors
/// As [`gather_qmm_swiglu`]; also if `top_k` or the groups do not fit E.
pub fn route_noaux_tc(
    logits: &Array,
    bias: &Array,
    settings: &NoauxTc,
    numerics: Numerics,
) -> Result<(Array, Array)> {
    let [experts, weights] = run(&NoauxTcRoute::new(logits, bias, settings, numerics)?)?;
    Ok((experts, weights))
}

/// A call whose arguments were checked.
trait Call<const N: usize> {
    /// The kernel's name.
    const KERNEL: &'static str;

    fn backend(&self) -> &MlxBackend;

    /// None where there is no kernel.
    fn fused(&self) -> Result<Option<[Array; N]>>;

    fn composed(&self) -> Result<[Array; N]>;
}

fn run<const N: usize>(call: &impl Call<N>) -> Result<[Array; N]> {
    // Nothing is built for a kernel that cannot be launched.
    let fused = if call.backend().runtime().launches().is_some() { call.fused()? } else { None };
    fused.map_or_else(|| call.composed(), Ok)
}

fn check_float(op: &'static str, what: &'static str, x: &Array) -> Result<()> {
    let float = matches!(x.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
    ensure(float, op, what, "f32, f16 or bf16", x.dtype())?;
    ensure(x.size() > 0, op, what, "no empty dimension", x.shape())
}

/// The indices as u32.
/// The indices as u32 below `n`: MLX reads wherever they point, so what is beyond becomes the last.
fn check_indices(op: &'static str, what: &'static str, indices: &Array, n: usize) -> Result<Array> {
    use Dtype::{Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    let integer = matches!(indices.dtype(), Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64);
    ensure(integer, op, what, "an integer type", indices.dtype())?;
    ensure(indices.size() > 0, op, what, "no empty dimension", indices.shape())?;
    below(&indices.as_dtype(Uint32).map_err(fault(op))?, n).map_err(fault(op))
}

fn check_width(op: &'static str, x: &Array, n_in: usize, dims: usize) -> Result<()> {
    let fits = x.ndim() >= dims && x.shape().last() == Some(&(n_in as i32));
    ensure(fits, op, "x", format_args!("{dims} dimensions or more, the last {n_in}"), x.shape())?;
    check_float(op, "x", x)
}

fn check_pair(op: &'static str, gate: &QuantizedExperts, up: &QuantizedExperts) -> Result<()> {
    let shape = |w: &QuantizedExperts| [w.n_experts(), w.n_out(), w.n_in()];
    ensure(shape(gate) == shape(up), op, "up", format_args!("{:?}, as gate", shape(gate)), shape(up))?;
    ensure(gate.spec() == up.spec(), op, "up", format_args!("{}, as gate", gate.spec()), up.spec())
}

fn f32_of(op: &'static str, x: &Array) -> Result<Array> {
    x.as_dtype(Dtype::Float32).map_err(fault(op))
}

/// The bank with f32 scales, which makes MLX compute in f32.
fn f32_bank(op: &'static str, bank: &QuantizedExperts) -> Result<QuantizedExperts> {
    let Some(biases) = bank.biases() else { return Ok(bank.clone()) };
    let (scales, biases) = (f32_of(op, bank.scales())?, f32_of(op, biases)?);
    QuantizedExperts::new(bank.weight().clone(), scales, Some(biases), bank.spec())
}

/// All dimensions but the last made one.
fn rows(op: &'static str, x: &Array) -> Result<Array> {
    let width = x.shape().last().copied().unwrap_or(1);
    x.reshape(&[-1, width]).map_err(fault(op))
}

/// The dimensions of `like` without its last `dropped`, then `tail`.
fn shape_of(like: &Array, dropped: usize, tail: &[usize]) -> Vec<i32> {
    let kept = &like.shape()[..like.ndim() - dropped];
    kept.iter().copied().chain(tail.iter().map(|n| *n as i32)).collect()
}

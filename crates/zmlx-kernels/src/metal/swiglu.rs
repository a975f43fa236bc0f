//! Gate, up and SwiGLU in one kernel.

use super::{
    KernelSpec, LANES, NotFused, Numerics, Output, ROWS, SIMDGROUPS, Template, check_bank, check_scales,
    format_template, need, stock, text,
};
use crate::{DType, QuantSpec};

/// The most rows per pair that a kernel takes; above, tile kernels read the weights fewer times.
const MAX_ROWS: usize = 16;

/// The inputs of [`gather_qmm_swiglu`], in order.
pub(crate) const GATE_UP_INPUTS: &[&str] =
    &["x", "gate_w", "gate_scales", "gate_biases", "up_w", "up_scales", "up_biases", "rhs"];

/// The inputs of [`gather_qmm_swiglu_shared`], in order.
const WITH_SHARED: &[&str] = &[
    "x",
    "gate_w",
    "gate_scales",
    "gate_biases",
    "up_w",
    "up_scales",
    "up_biases",
    "shared_gate_w",
    "shared_gate_scales",
    "shared_gate_biases",
    "shared_up_w",
    "shared_up_scales",
    "shared_up_biases",
    "rhs",
];

/// The sizes of [`gather_qmm_swiglu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwigluShape {
    /// Pairs of a batch entry of x and an expert.
    pub n_pairs: usize,
    /// Batch entries of x: pair p takes entry `p / (n_pairs / x_batch)`.
    pub x_batch: usize,
    /// M: rows of a batch entry.
    pub n_rows: usize,
    /// E.
    pub n_experts: usize,
    /// N: rows of a matrix.
    pub n_out: usize,
    /// K: columns of a matrix.
    pub n_in: usize,
    /// True if the experts of the pairs ascend, which lets stock MLX choose another kernel.
    pub sorted: bool,
}

/// `out[p, m] = silu(x[l, m] · gate[e]ᵀ) · (x[l, m] · up[e]ᵀ)` for the pairs p, with `e = rhs[p]`, `l = p / (n_pairs / x_batch)`.
///
/// **Shapes** inputs x `[L, M, K]`, then weight `[E, N, words]`, scales and biases `[E, N, groups]` of gate and of up, rhs u32
/// `[P]` → out `[P, M, N]`. A format without biases passes its scales in their place. **Dtypes** x, out and affine scales of
/// one float type. **Numerics** see [`super`]; a pair whose expert does not exist gets NaN.
/// **Work** gate and up of each pair are read once: 2·N·K·bits/8 bytes and their scales and biases; 4·M·N·K FLOPs.
///
/// | | launches | bytes per pair beside the weights, 16 bits |
/// |---|---|---|
/// | fused | 1 | x once per threadgroup, from cache; M·N results written |
/// | stock, `silu` and `multiply` joined by `mx.compile` | 3 | x twice as often; gate and up written and read: 8·M·N more |
/// | stock op by op | 4 | also silu's result written and read: 12·M·N more |
///
/// For a token of Qwen3-30B-A3B (K 2048, N 768, top 8, 4 bits) the weights are 14.2 MB per layer and the 12·M·N are 74 kB:
/// what fusion saves is dependent launches, not bytes. **Source** `SwitchGLU` of mlx-lm.
///
/// # Errors
/// [`NotFused`] if the shape has no kernel, or in exact mode no stock kernel to equal.
pub fn gather_qmm_swiglu(
    dtype: DType,
    format: QuantSpec,
    shape: &SwigluShape,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let sizes = [shape.n_experts, shape.n_out, shape.n_in];
    let sorted_pairs = shape.sorted.then_some(shape.n_pairs);
    let order = stock::gather(format, shape.n_rows, sizes, sorted_pairs);
    spec(dtype, format, shape, numerics, order)
}

/// `silu(x · gateᵀ) · (x · upᵀ)` with one matrix each: [`gather_qmm_swiglu`] with one pair and one expert, 0.
///
/// **Source** the MLP and shared-expert blocks of mlx-lm. **Work** as there, per call.
///
/// # Errors
/// As there.
pub fn qmm_swiglu(
    dtype: DType,
    format: QuantSpec,
    [n_rows, n_out, n_in]: [usize; 3],
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let shape = SwigluShape { n_pairs: 1, x_batch: 1, n_rows, n_experts: 1, n_out, n_in, sorted: false };
    spec(dtype, format, &shape, numerics, stock::dense(format, n_rows, n_out, n_in))
}

/// [`gather_qmm_swiglu`] of one row per token, and beside it the same with one matrix that every token meets: a shared expert of the
/// chosen experts' sizes and format.
///
/// **Shapes** inputs x `[tokens, K]`, the bank as there, the shared gate and up `[1, N, ..]`, rhs `[pairs]` → out `[pairs, N]`,
/// shared_out `[tokens, N]`. **Numerics** exact: the bits of `gather_qmm` and of `quantized_matmul`, which several tokens do not
/// share. **Work** one launch instead of two.
/// **Source** the MoE block of mlx-lm `glm4_moe_lite`.
///
/// # Errors
/// As [`gather_qmm_swiglu`] and, in exact mode, [`qmm_swiglu`].
pub fn gather_qmm_swiglu_shared(
    dtype: DType,
    format: QuantSpec,
    shape: &SwigluShape,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let SwigluShape { n_pairs, x_batch, n_rows, n_out, n_in, .. } = *shape;
    need(n_rows == 1, "more than one row per pair")?;
    check_bank(dtype, format, [1, n_out, n_in])?;
    check_scales(format, n_out, n_in)?;
    if numerics == Numerics::Exact {
        let order = stock::dense(format, x_batch, n_out, n_in);
        need(order.is_some(), "the stock kernel for the shared expert has another order of sums")?;
    }
    let mut spec = gather_qmm_swiglu(dtype, format, shape, numerics)?;
    spec.name = "zmlx_gather_qmm_swiglu_shared";
    spec.body = text!("gather_qmm_swiglu_shared.metal");
    spec.inputs = WITH_SHARED;
    spec.outputs = vec![
        Output { name: "out", dtype, shape: vec![n_pairs, n_out] },
        Output { name: "shared_out", dtype, shape: vec![x_batch, n_out] },
    ];
    spec.template.retain(|(name, _)| *name != "TILE");
    spec.grid[2] = n_pairs + x_batch;
    Ok(spec)
}

fn spec(
    dtype: DType,
    format: QuantSpec,
    shape: &SwigluShape,
    numerics: Numerics,
    order: Option<usize>,
) -> std::result::Result<KernelSpec, NotFused> {
    let SwigluShape { n_pairs, x_batch, n_rows, n_experts, n_out, n_in, .. } = *shape;
    check_bank(dtype, format, [n_experts, n_out, n_in])?;
    need(n_pairs > 0 && n_rows > 0 && n_out > 0, "nothing to compute")?;
    need(x_batch > 0 && n_pairs.is_multiple_of(x_batch), "the pairs do not take the rows of x in order")?;
    need(n_rows <= MAX_ROWS, "more than 16 rows per pair")?;
    let values = match numerics {
        Numerics::Accurate => stock::wide(format),
        Numerics::Exact => order.ok_or(NotFused("the stock kernel for this shape sums in tiles"))?,
    };
    let tile = match n_rows {
        1 | 2 => n_rows,
        _ => 4,
    };
    let mut template = vec![("T", Template::Type(dtype))];
    template.extend(format_template(format, values, n_in));
    template.push(("SIMDGROUPS", Template::Int(SIMDGROUPS as i32)));
    template.push(("TILE", Template::Int(tile as i32)));
    template.push(("EXACT", Template::Bool(numerics == Numerics::Exact)));
    Ok(KernelSpec {
        name: "zmlx_gather_qmm_swiglu",
        header: text!("quantized.h", "activation.h", "gate_up.h"),
        body: text!("gather_qmm_swiglu.metal"),
        inputs: GATE_UP_INPUTS,
        outputs: vec![Output { name: "out", dtype, shape: vec![n_pairs, n_rows, n_out] }],
        template,
        grid: [LANES * n_rows.div_ceil(tile), SIMDGROUPS * n_out.div_ceil(SIMDGROUPS * ROWS), n_pairs],
        threadgroup: [LANES, SIMDGROUPS, 1],
    })
}

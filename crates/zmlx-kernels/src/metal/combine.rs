//! Down projection, routing weights and the sum over slots in one kernel.

use super::{
    KernelSpec, LANES, NotFused, Numerics, Output, ROWS, Template, check_bank, check_scales, format_template,
    need, stock, text,
};
use crate::{DType, QuantSpec};

/// The most slots of a token: a simdgroup each.
const MAX_TOP_K: usize = 16;

/// The sizes of [`gather_qmm_combine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CombineShape {
    /// Tokens.
    pub n_tokens: usize,
    /// Experts per token.
    pub top_k: usize,
    /// E.
    pub n_experts: usize,
    /// N: rows of a matrix.
    pub n_out: usize,
    /// K: columns of a matrix.
    pub n_in: usize,
}

/// `out[t] = Σ_s weights[t, s] · (x[t, s] · w[rhs[t, s]]ᵀ)`.
///
/// **Shapes** inputs x `[tokens, top_k, K]`, w `[E, N, words]`, scales and biases `[E, N, groups]`, rhs u32 and weights
/// `[tokens, top_k]` → out `[tokens, N]`. A format without biases passes its scales in their place.
/// **Dtypes** x, out and affine scales of one float type; weights of that type (Qwen) or f32 (GLM).
/// **Numerics** exact: each expert's result is rounded to the type of x, its product with the weight to the type that
/// MLX gives it (that of x, or f32 if the weights are f32), the sum goes from the first slot to the last in that type
/// and is cast once. The order of the slots is the caller's. Accurate: f32, one rounding. An expert that does not exist gives NaN.
/// **Work** one launch instead of three (`gather_qmm`, `multiply`, `sum`; four with GLM's cast). Each chosen matrix is read
/// once; top_k·N results per token are neither written nor read back twice. **Source** the MoE blocks of mlx-lm.
///
/// # Errors
/// [`NotFused`] if there is no kernel for the shape or types.
pub fn gather_qmm_combine(
    dtype: DType,
    weights: DType,
    format: QuantSpec,
    shape: &CombineShape,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let CombineShape { n_tokens, top_k, n_experts, n_out, n_in } = *shape;
    check_bank(dtype, format, [n_experts, n_out, n_in])?;
    need(n_tokens > 0 && n_out > 0, "nothing to compute")?;
    need((1..=MAX_TOP_K).contains(&top_k), "more than 16 slots per token")?;
    need(
        weights == dtype || weights == DType::F32,
        "routing weights neither in the activations' type nor f32",
    )?;
    let values = match numerics {
        Numerics::Accurate => stock::wide(format),
        Numerics::Exact => {
            // A reduction over a last dimension of 1 is another kernel.
            need(n_out > 1, "one column is summed by another stock kernel")?;
            stock::matrix_vector(format, n_out, n_in)
        }
    };
    let mut template = vec![("T", Template::Type(dtype)), ("W", Template::Type(weights))];
    template.extend(format_template(format, values, n_in));
    template.push(("EXACT", Template::Bool(numerics == Numerics::Exact)));
    Ok(KernelSpec {
        name: "zmlx_gather_qmm_combine",
        header: text!("quantized.h", "one_row.h"),
        body: text!("gather_qmm_combine.metal"),
        inputs: &["x", "w", "scales", "biases", "rhs", "weights"],
        outputs: vec![Output { name: "out", dtype, shape: vec![n_tokens, n_out] }],
        template,
        grid: [LANES, top_k * n_out.div_ceil(ROWS), n_tokens],
        threadgroup: [LANES, top_k, 1],
    })
}

/// [`gather_qmm_combine`] plus the product of a row of each token with one matrix of the experts' sizes and format: that of a shared
/// expert.
///
/// **Shapes** inputs x `[tokens, top_k, K]`, shared_x `[tokens, K]`, the bank as there, the shared matrix `[1, N, ..]`, rhs and weights
/// `[tokens, top_k]` → out `[tokens, N]`. **Numerics** exact: the sum over the slots and the shared product are rounded to the type of x,
/// then their sum is. Accurate: f32, one rounding. **Work** one launch instead of three. **Source** the MoE block of mlx-lm
/// `glm4_moe_lite`.
///
/// # Errors
/// As [`gather_qmm_combine`]; in exact mode also for several tokens, whose product with one matrix is another stock kernel.
pub fn gather_qmm_combine_shared(
    dtype: DType,
    weights: DType,
    format: QuantSpec,
    shape: &CombineShape,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    let CombineShape { n_tokens, top_k, n_out, n_in, .. } = *shape;
    check_bank(dtype, format, [1, n_out, n_in])?;
    check_scales(format, n_out, n_in)?;
    if numerics == Numerics::Exact {
        let order = stock::dense(format, n_tokens, n_out, n_in);
        need(order.is_some(), "the stock kernel for the shared expert has another order of sums")?;
    }
    let mut spec = gather_qmm_combine(dtype, weights, format, shape, numerics)?;
    spec.name = "zmlx_gather_qmm_combine_shared";
    spec.body = text!("gather_qmm_combine_shared.metal");
    spec.inputs = &[
        "x",
        "shared_x",
        "w",
        "scales",
        "biases",
        "shared_w",
        "shared_scales",
        "shared_biases",
        "rhs",
        "weights",
    ];
    spec.grid[1] = (top_k + 1) * n_out.div_ceil(ROWS);
    spec.threadgroup[1] = top_k + 1;
    Ok(spec)
}

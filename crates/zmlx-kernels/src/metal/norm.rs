//! Norms in one kernel with what is beside them: the residual sum before, the rotation of queries and keys behind.

use super::{KernelSpec, LANES, NotFused, Output, Template, need, text};
use crate::{DType, Rope, RopeFrequencies, RopePairing};

/// Values of a row that a thread owns.
const READS: usize = 4;
/// The widest row that MLX's norm takes with one value per register: wider ones have another order of sums.
const MAX_WIDTH: usize = 4096;

/// `total = x + residual` and `normed = w · (total / sqrt(mean(total²) + eps))`, row by row.
///
/// **Shapes** inputs x and residual `[rows, width]`, w `[width]` → total and normed `[rows, width]`. **Dtypes** all of one float
/// type. **Numerics** as `add` and `rms_norm` of stock MLX: the sum is rounded to the type, squares are summed in f32, four to a
/// thread, lanes and simdgroups by `simd_sum`; the quotient is rounded before it meets w. In f32 this is accurate, too.
/// **Work** one launch instead of two; the sum is written once and not read back. **Source** mlx-lm's decoder layers.
///
/// # Errors
/// [`NotFused`] for rows of more than 4096 values, or none.
pub fn add_rms_norm(
    dtype: DType,
    [n_rows, width]: [usize; 2],
    eps: f32,
) -> std::result::Result<KernelSpec, NotFused> {
    need(dtype.is_float(), "activations must be f32, f16 or bf16")?;
    need(n_rows > 0 && width > 0, "nothing to compute")?;
    need(width <= MAX_WIDTH, "rows of more than 4096 values are summed by another stock kernel")?;
    let threads = width.div_ceil(READS).next_multiple_of(LANES);
    let output = |name| Output { name, dtype, shape: vec![n_rows, width] };
    Ok(KernelSpec {
        name: "zmlx_add_rms_norm",
        header: "",
        body: text!("add_rms_norm.metal"),
        inputs: &["x", "residual", "w"],
        outputs: vec![output("total"), output("normed")],
        template: vec![("T", Template::Type(dtype)), ("EPS", Template::Int(eps.to_bits().cast_signed()))],
        grid: [threads, n_rows, 1],
        threadgroup: [threads, 1, 1],
    })
}

/// The widest head, of which one threadgroup holds the normed values.
const MAX_HEAD: usize = 1024;

/// `rope(w · (x / sqrt(mean(x²) + eps)))` of each head of queries and keys.
///
/// **Shapes** inputs q `[n, heads, d]`, k `[n, kv_heads, d]`, q_norm and k_norm `[d]`, positions u32 `[n]`, periods f32
/// `[dims / 2]` (one value if the frequencies are powers) → rotated_q and rotated_k as q and k. **Dtypes** all others of one float
/// type. **Numerics** as `rms_norm` and `rope` of stock MLX: see [`add_rms_norm`]; the normed value is rounded to the type before it
/// turns. Angles are in f32, with MLX's fast sine and cosine. **Work** one launch instead of four, and with several sequences
/// instead of two and two per sequence. **Source** mlx-lm `qwen3_moe`.
///
/// # Errors
/// [`NotFused`] for heads of more than 1024 values, or a rope with a scale of its own.
pub fn norm_rope(
    dtype: DType,
    [n, n_heads, n_kv_heads, head_dim]: [usize; 4],
    eps: f32,
    rope: &Rope,
) -> std::result::Result<KernelSpec, NotFused> {
    need(dtype.is_float(), "activations must be f32, f16 or bf16")?;
    need(n * n_heads * n_kv_heads > 0, "nothing to compute")?;
    need((1..=MAX_HEAD).contains(&head_dim), "heads of more than 1024 values")?;
    let mut template = vec![("T", Template::Type(dtype))];
    template.extend(rope_template(head_dim, eps, rope)?);
    let threads = head_dim.div_ceil(READS).next_multiple_of(LANES);
    let output = |name, n_heads| Output { name, dtype, shape: vec![n, n_heads, head_dim] };
    Ok(KernelSpec {
        name: "zmlx_norm_rope",
        header: "",
        body: text!("norm_rope.metal"),
        inputs: &["q", "k", "q_norm", "k_norm", "positions", "periods"],
        outputs: vec![output("rotated_q", n_heads), output("rotated_k", n_kv_heads)],
        template,
        grid: [threads, n_heads + n_kv_heads, n],
        threadgroup: [threads, 1, 1],
    })
}

/// The template arguments of a norm and a rope, which turns heads of `head_dim` values.
pub(super) fn rope_template(
    head_dim: usize,
    eps: f32,
    rope: &Rope,
) -> std::result::Result<[(&'static str, Template); 6], NotFused> {
    need(
        rope.dims <= head_dim && rope.dims.is_multiple_of(2) && rope.dims > 0,
        "dimensions that are no pairs",
    )?;
    need(rope.scale == 1.0, "a rope that scales what it turns")?;
    let (base, scale, is_given) = match &rope.frequencies {
        RopeFrequencies::Powers { theta, position_scale } => (theta.log2(), *position_scale, false),
        RopeFrequencies::Given(_) => (0.0, 1.0, true),
    };
    let bits = |v: f32| Template::Int(v.to_bits().cast_signed());
    Ok([
        ("DIMS", Template::Int(rope.dims as i32)),
        ("INTERLEAVED", Template::Bool(rope.pairing == RopePairing::Interleaved)),
        ("GIVEN", Template::Bool(is_given)),
        ("EPS", bits(eps)),
        ("BASE", bits(base)),
        ("SCALE", bits(scale)),
    ])
}

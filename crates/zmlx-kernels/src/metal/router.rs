//! The routers in one kernel each.

use super::{KernelSpec, LANES, NotFused, Numerics, Output, Template, need, text};
use crate::{DType, NoauxTc, Renormalize, SoftmaxTopK};

/// Scores of a row that a thread owns.
const READS: usize = 4;
const MAX_EXPERTS: usize = 1024;
const MAX_TOP_K: usize = 32;

/// The `top_k` most probable experts of each row and their probabilities.
///
/// **Shapes** input logits `[rows, E]` → indices u32 and weights `[rows, top_k]`. **Dtypes** weights in the type of the
/// logits (exact) or f32 (accurate). **Numerics** exact: as `softmax(precise=True)`, `argpartition`, `take_along_axis`, `sum`,
/// `divide` of stock MLX, with its order: ascending probability, and among equal ones the higher index is chosen and stands
/// last. Accurate: f32, descending probability, of equal ones the lower index first. **Work** one launch instead of six,
/// rows·E logits read. **Source** mlx-lm `qwen3_moe`.
///
/// # Errors
/// [`NotFused`] above 1024 experts or 32 choices.
pub fn route_softmax_top_k(
    dtype: DType,
    [n_rows, n_experts]: [usize; 2],
    settings: &SoftmaxTopK,
    numerics: Numerics,
) -> std::result::Result<KernelSpec, NotFused> {
    check(dtype, n_rows, n_experts, settings.top_k)?;
    let exact = numerics == Numerics::Exact;
    let weights = if exact { dtype } else { DType::F32 };
    let (grid, threadgroup) = geometry(n_rows, n_experts);
    let template = vec![
        ("T", Template::Type(dtype)),
        ("W", Template::Type(weights)),
        ("TOP_K", Template::Int(settings.top_k as i32)),
        ("PER_LANE", per_lane(n_experts)),
        ("NORMALIZE", Template::Bool(settings.renormalize == Renormalize::Yes)),
        ("EXACT", Template::Bool(exact)),
    ];
    Ok(KernelSpec {
        name: "zmlx_route_softmax_top_k",
        header: text!("routing.h"),
        body: text!("route_softmax_top_k.metal"),
        inputs: &["logits"],
        outputs: outputs(weights, n_rows, settings.top_k),
        template,
        grid,
        threadgroup,
    })
}

/// The `top_k` experts of each row with the largest `sigmoid(logit) + bias`, and their weights.
///
/// **Shapes** inputs logits `[rows, E]`, bias `[E]` of any float type, factors (of the weights, and eps) f32 `[2]` → indices u32 and weights f32 `[rows, top_k]`, by
/// descending score, of equal ones the lower index first: the order of stock MLX, in both modes. **Numerics** f32 in the
/// order of the stock ops; exact and accurate are the same. **Work** one launch instead of eight, rows·E logits read.
/// **Source** mlx-lm `group_expert_select`.
///
/// # Errors
/// [`NotFused`] above 1024 experts or 32 choices, or with several groups of experts.
pub fn route_noaux_tc(
    dtype: DType,
    [n_rows, n_experts]: [usize; 2],
    settings: &NoauxTc,
) -> std::result::Result<KernelSpec, NotFused> {
    check(dtype, n_rows, n_experts, settings.top_k)?;
    need(settings.n_group == 1, "experts in several groups")?;
    let (grid, threadgroup) = geometry(n_rows, n_experts);
    // The reference renormalises only if there is more than one choice.
    let normalize = settings.renormalize == Renormalize::Yes && settings.top_k > 1;
    Ok(KernelSpec {
        name: "zmlx_route_noaux_tc",
        header: text!("activation.h", "routing.h"),
        body: text!("route_noaux_tc.metal"),
        inputs: &["logits", "bias", "factors"],
        outputs: outputs(DType::F32, n_rows, settings.top_k),
        template: vec![
            ("T", Template::Type(dtype)),
            ("TOP_K", Template::Int(settings.top_k as i32)),
            ("PER_LANE", per_lane(n_experts)),
            ("NORMALIZE", Template::Bool(normalize)),
        ],
        grid,
        threadgroup,
    })
}

/// Scores for each lane of the simdgroup that chooses.
fn per_lane(n_experts: usize) -> Template {
    Template::Int(n_experts.div_ceil(LANES) as i32)
}

fn check(dtype: DType, n_rows: usize, n_experts: usize, top_k: usize) -> std::result::Result<(), NotFused> {
    need(dtype.is_float(), "logits must be f32, f16 or bf16")?;
    need(n_rows > 0, "nothing to compute")?;
    need(n_experts <= MAX_EXPERTS, "more than 1024 experts")?;
    need((1..=MAX_TOP_K.min(n_experts)).contains(&top_k), "top_k is not within 1 to 32 and the experts")
}

fn outputs(weights: DType, n_rows: usize, top_k: usize) -> Vec<Output> {
    let shape = vec![n_rows, top_k];
    vec![
        Output { name: "indices", dtype: DType::U32, shape: shape.clone() },
        Output { name: "weights", dtype: weights, shape },
    ]
}

/// A threadgroup per row with a thread per [`READS`] scores, whole simdgroups.
fn geometry(n_rows: usize, n_experts: usize) -> ([usize; 3], [usize; 3]) {
    let threads = n_experts.div_ceil(READS).next_multiple_of(LANES);
    ([threads, n_rows, 1], [threads, 1, 1])
}

//! Latent attention of few tokens: what comes before it in one kernel, and attention in two.

use super::norm::rope_template;
use super::{KernelSpec, LANES, NotFused, Output, Template, need, text};
use crate::{DType, Rope};

/// Values of a row that a thread owns.
const READS: usize = 4;
/// The widest latent and shared key whose values a simdgroup holds in registers.
const MAX_RANK: usize = 512;
const MAX_KEY: usize = 128;
/// Heads of a simdgroup, and the most simdgroups of a threadgroup. Not measured on an Apple GPU.
const HEADS: usize = 2;
const SIMDGROUPS: usize = 16;
/// Keys of a part, as long as there are not more than [`MAX_SPLITS`] parts. Not measured on an Apple GPU.
const SPLIT: usize = 64;
const MAX_SPLITS: usize = 64;
/// The most sequences of a launch.
pub const MAX_SEQUENCES: usize = 8;

/// The sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// New tokens.
    pub n_tokens: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Values of a query that meet the latent, before they are taken into latent space.
    pub nope_dim: usize,
    /// Values of a latent.
    pub rank: usize,
    /// Values of the shared key.
    pub rope_dim: usize,
}

/// Queries in two parts, of which the second is turned, the normed latent, and the turned shared key.
///
/// **Shapes** inputs q `[n, heads, nope + rope]`, kv_a `[n, rank + rope]`, kv_norm `[rank]`, positions u32 `[n]`, periods f32 `[rope / 2]`
/// (one value if the frequencies are powers) → q_nope `[heads, n, nope]`, q_pe `[heads, n, rope]`, latents `[n, rank + rope]`.
/// **Dtypes** all others of one float type. **Numerics** as `rms_norm` and `rope` of stock MLX: see [`super::add_rms_norm`] and
/// [`super::norm_rope`]. **Work** one launch instead of three, and with several sequences instead of one and two per sequence; heads come
/// first in the results, so that products with a matrix per head need no copy. **Source** mlx-lm `glm4_moe_lite`.
///
/// # Errors
/// [`NotFused`] for latents of more than 512 values, or a rope with a scale of its own or on a part of the key.
pub fn latent_norm_rope(
    dtype: DType,
    shape: &LatentShape,
    eps: f32,
    rope: &Rope,
) -> std::result::Result<KernelSpec, NotFused> {
    check(dtype, shape)?;
    let LatentShape { n_tokens, n_heads, nope_dim, rank, rope_dim } = *shape;
    need(rope.dims == rope_dim, "a rope on a part of the key")?;
    let mut template = vec![("T", Template::Type(dtype))];
    template.extend(rope_template(rope_dim, eps, rope)?);
    let threads = rank.div_ceil(READS).next_multiple_of(LANES);
    let output = |name, shape: &[usize]| Output { name, dtype, shape: shape.to_vec() };
    Ok(KernelSpec {
        name: "zmlx_latent_norm_rope",
        header: "",
        body: text!("latent_norm_rope.metal"),
        inputs: &["q", "kv_a", "kv_norm", "positions", "periods"],
        outputs: vec![
            output("q_nope", &[n_heads, n_tokens, nope_dim]),
            output("q_pe", &[n_heads, n_tokens, rope_dim]),
            output("latents", &[n_tokens, rank + rope_dim]),
        ],
        template,
        grid: [threads, n_heads + 1, n_tokens],
        threadgroup: [threads, 1, 1],
    })
}

/// The first half of latent attention in its absorbed form: each head's query with a part of what its token sees.
///
/// **Shapes** inputs q `[heads, n, rank]` in latent space, q_pe `[heads, n, rope]`, the caches `[.., rank + rope]` of `n_sequences`
/// sequences, sequences u32 `[n]`, the sequence of each token, positions u32 `[n]` → parts
/// `[n, heads, splits, rank]` and stats `[n, heads, splits, 2]` in f32 for [`latent_attention_sum`]. The caches must hold each token's
/// latent at its position and all before it. Caches are 1 for one sequence, and [`MAX_SEQUENCES`] for more, some of them repeated.
/// **Dtypes** all others of one float type. **Numerics** accurate in both modes: f32. Stock MLX computes scores in a product of
/// matrices, whose order of sums depends on the GPU, and rounds scores and probabilities to the type.
/// **Work** together two launches instead of seven per sequence; a simdgroup reads its latents once for two heads; beside the
/// latents, 8·heads·rank bytes per part are written and read: a part has 64 keys, or a 64th of them.
/// **Source** mlx-lm `glm4_moe_lite`.
///
/// # Errors
/// [`NotFused`] for latents of more than 512 values, keys of more than 128, or more than 8 sequences.
pub fn latent_attention_parts(
    dtype: DType,
    shape: &LatentShape,
    [n_sequences, n_seen]: [usize; 2],
    scale: f32,
) -> std::result::Result<KernelSpec, NotFused> {
    check(dtype, shape)?;
    let LatentShape { n_tokens, n_heads, rank, rope_dim, .. } = *shape;
    need((1..=MAX_SEQUENCES).contains(&n_sequences), "more than 8 sequences")?;
    need(rank + rope_dim >= super::DEVICE_WORDS, "latents and keys of fewer than 8 values")?;
    let splits = n_seen.div_ceil(SPLIT).clamp(1, MAX_SPLITS);
    let blocks = n_heads.div_ceil(HEADS);
    let simdgroups = blocks.min(SIMDGROUPS);
    let (name, header, inputs): (_, _, &[&str]) = if n_sequences == 1 {
        let inputs = &["q", "q_pe", "cache0", "sequences", "positions"];
        ("zmlx_latent_attention_parts", text!("latents_of_one.h"), inputs)
    } else {
        let inputs = &[
            "q",
            "q_pe",
            "cache0",
            "cache1",
            "cache2",
            "cache3",
            "cache4",
            "cache5",
            "cache6",
            "cache7",
            "sequences",
            "positions",
        ];
        ("zmlx_latent_attention_parts_of_8", text!("latents_of_eight.h"), inputs)
    };
    let output =
        |name, width| Output { name, dtype: DType::F32, shape: vec![n_tokens, n_heads, splits, width] };
    Ok(KernelSpec {
        name,
        header,
        body: text!("latent_attention_parts.metal"),
        inputs,
        outputs: vec![output("parts", rank), output("stats", 2)],
        template: vec![
            ("T", Template::Type(dtype)),
            ("RANK", Template::Int(rank as i32)),
            ("DIMS", Template::Int(rope_dim as i32)),
            ("HEADS", Template::Int(HEADS as i32)),
            ("SCALE", Template::Int(scale.to_bits().cast_signed())),
        ],
        grid: [LANES * splits, blocks.next_multiple_of(simdgroups), n_tokens],
        threadgroup: [LANES, simdgroups, 1],
    })
}

/// The second half of latent attention: the parts of [`latent_attention_parts`] as one average of latents.
///
/// **Shapes** inputs parts `[n, heads, splits, rank]` and stats `[n, heads, splits, 2]` in f32 → out `[heads, n, rank]`. **Numerics** f32,
/// one rounding. **Work** see there.
///
/// # Errors
/// [`NotFused`] as there.
pub fn latent_attention_sum(dtype: DType, shape: &LatentShape) -> std::result::Result<KernelSpec, NotFused> {
    check(dtype, shape)?;
    let LatentShape { n_tokens, n_heads, rank, .. } = *shape;
    let threads = rank.div_ceil(READS).next_multiple_of(LANES);
    Ok(KernelSpec {
        name: "zmlx_latent_attention_sum",
        header: "",
        body: text!("latent_attention_sum.metal"),
        inputs: &["parts", "stats"],
        outputs: vec![Output { name: "out", dtype, shape: vec![n_heads, n_tokens, rank] }],
        template: vec![("T", Template::Type(dtype))],
        grid: [threads, n_heads, n_tokens],
        threadgroup: [threads, 1, 1],
    })
}

fn check(dtype: DType, shape: &LatentShape) -> std::result::Result<(), NotFused> {
    let LatentShape { n_tokens, n_heads, nope_dim, rank, rope_dim } = *shape;
    need(dtype.is_float(), "activations must be f32, f16 or bf16")?;
    need(n_tokens * n_heads * nope_dim > 0, "nothing to compute")?;
    need((1..=MAX_RANK).contains(&rank), "latents of more than 512 values")?;
    need((1..=MAX_KEY).contains(&rope_dim), "keys of more than 128 values")
}

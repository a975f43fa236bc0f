//! The Metal kernels as data: source text, template arguments and launch geometry, computed from shapes and formats.
//!
//! Nothing here talks to a device. The MLX backend hands a [`KernelSpec`] to MLX, which compiles it when it first runs;
//! the tests hand the same value to a simulator. So what is tested is what is launched.
//!
//! # Numerics
//!
//! [`Numerics::Exact`] gives the bits of the composition of stock MLX 0.32.2 ops on the same device. For that it repeats
//! the order of sums of the stock kernel that would serve the shape ([`stock`] says which) and rounds where the ops round:
//! gate and up to the activations' type, each step of the sigmoid, both products. Where a stock kernel of another kind
//! serves the shape, exact mode is not offered ([`NotFused`]) and the caller composes stock ops; it is never silently
//! wrong. [`Numerics::Accurate`] sums in f32 throughout and rounds once. Latent attention is the exception: see
//! [`latent_attention_parts`], which is accurate in both modes.
//!
//! Bits are equal in a simulator, where both sides use the same sums across lanes. On a device they also need the Metal
//! compiler to contract the same expressions into fused multiply-adds here and there; only a Mac can show that, and the
//! self-check of the MLX backend does.

mod combine;
mod latent;
mod launch;
mod matmul;
mod norm;
mod router;
pub mod stock;
mod swiglu;

pub use combine::{CombineShape, gather_qmm_combine, gather_qmm_combine_shared};
pub use latent::{
    LatentShape, MAX_SEQUENCES, latent_attention_parts, latent_attention_sum, latent_norm_rope,
};
pub use launch::{BankOperands, Encode, Launch, Operand};
pub use matmul::quantized_matmul;
pub use norm::{add_rms_norm, norm_rope};
pub use router::{route_noaux_tc, route_softmax_top_k};
#[cfg(feature = "mlx")]
pub(crate) use swiglu::GATE_UP_INPUTS;
pub use swiglu::{SwigluShape, gather_qmm_swiglu, gather_qmm_swiglu_shared, qmm_swiglu};

use crate::{DType, QuantMode, QuantSpec};

/// Which rounding a fused kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// The bits of the composition of stock ops.
    Exact,
    /// f32 throughout, one rounding at the end.
    Accurate,
}

/// A template argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Template {
    /// `typename`.
    Type(DType),
    /// `int`.
    Int(i32),
    /// `bool`.
    Bool(bool),
}

/// An array that a kernel writes; every element is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name in the body.
    pub name: &'static str,
    /// Its element type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// One launch of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSpec {
    /// The kernel's name.
    pub name: &'static str,
    /// What stands before the kernel.
    pub header: &'static str,
    /// The kernel's body. It finds each input `a` as a pointer and its dimensions as `a_shape`.
    pub body: &'static str,
    /// The inputs' names, in order; each is row-contiguous.
    pub inputs: &'static [&'static str],
    /// The outputs.
    pub outputs: Vec<Output>,
    /// The template arguments, in order.
    pub template: Vec<(&'static str, Template)>,
    /// Threads in each dimension, whole threadgroups.
    pub grid: [usize; 3],
    /// Threads of a threadgroup in each dimension.
    pub threadgroup: [usize; 3],
}

/// Why a call has no fused kernel: it is composed of stock ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotFused(pub &'static str);

/// The text of some files of `shaders/metal`, one after the other, as [`stripped`] leaves it.
macro_rules! text {
    ($($file:literal),+) => {{
        static TEXT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
            $crate::metal::stripped(concat!($(include_str!(concat!("../shaders/metal/", $file))),+))
        });
        TEXT.as_str()
    }};
}
use text;

/// A source without comments, indentation and empty lines.
///
/// In every launch MLX writes a kernel's header and body into one string, hashes or compares it and keeps it in the graph. So
/// the host pays for each byte of them with every token.
pub(crate) fn stripped(source: &str) -> String {
    let code = |line: &'_ str| line.split_once("//").map_or(line, |(code, _)| code).trim().to_owned();
    let lines = source.lines().map(code).filter(|line| !line.is_empty());
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

/// Lanes of a simdgroup.
const LANES: usize = 32;

/// MLX passes arrays below this length in `constant` memory. Packed weights are read by words and bytes, which needs to
/// know the address space, so weights this small are left to stock ops. So are scales this few, where a kernel reads either of
/// two matrices.
const DEVICE_WORDS: usize = 8;

/// `Ok` if `ok`.
pub(crate) fn need(ok: bool, why: &'static str) -> std::result::Result<(), NotFused> {
    if ok { Ok(()) } else { Err(NotFused(why)) }
}

/// Checks what all kernels ask of the types and of a bank's size.
fn check_bank(
    dtype: DType,
    format: QuantSpec,
    [n_experts, n_out, n_in]: [usize; 3],
) -> std::result::Result<(), NotFused> {
    need(dtype.is_float(), "activations must be f32, f16 or bf16")?;
    need(n_in.is_multiple_of(format.group_size()), "rows are not whole groups")?;
    let bytes = n_out.saturating_mul(format.packed_bytes(n_in));
    need(n_experts * bytes / 4 >= DEVICE_WORDS, "the weight has fewer than 8 words")?;
    // Kernels count in int: bytes of an expert, and bits of a row.
    need(n_in.saturating_mul(format.bits()) <= i32::MAX as usize, "a row is larger than 256 MiB")?;
    need(bytes <= i32::MAX as usize, "an expert is larger than 2 GiB")
}

/// Checks that a matrix's scales are where those of a bank are.
fn check_scales(format: QuantSpec, n_out: usize, n_in: usize) -> std::result::Result<(), NotFused> {
    need(n_out * n_in / format.group_size() >= DEVICE_WORDS, "the shared matrix has fewer than 8 scales")
}

/// Rows of a matrix that a simdgroup computes: as in MLX's matrix-vector kernels. Results do not depend on it. Kernels also take 8;
/// neither has been measured on an Apple GPU.
const ROWS: usize = 4;
/// Simdgroups of a threadgroup that share nothing: as [`ROWS`]. Kernels also take 1.
const SIMDGROUPS: usize = 2;

/// The template arguments that say how a weight of rows of `n_in` is read.
fn format_template(format: QuantSpec, values: usize, n_in: usize) -> [(&'static str, Template); 6] {
    let mode = match format.mode() {
        QuantMode::Affine => 0,
        QuantMode::Mxfp4 => 1,
        QuantMode::Mxfp8 => 2,
        QuantMode::Nvfp4 => 3,
    };
    [
        ("MODE", Template::Int(mode)),
        ("BITS", Template::Int(format.bits() as i32)),
        ("GROUP", Template::Int(format.group_size() as i32)),
        ("VALUES", Template::Int(values as i32)),
        ("N_IN", Template::Int(n_in as i32)),
        ("ROWS", Template::Int(ROWS as i32)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoauxTc, SoftmaxTopK};

    #[test]
    fn a_stripped_source_keeps_its_code_line_by_line() {
        let source = "// What it is.\n#define A \\\n  1\n\n  int b = 2; // Why.\n\treturn b;\n";
        assert_eq!(stripped(source), "#define A \\\n1\nint b = 2;\nreturn b;\n");
    }

    /// One of each kernel.
    fn specs() -> [KernelSpec; 13] {
        let format = QuantSpec::new(QuantMode::Affine, 4, 64).unwrap();
        let swiglu = SwigluShape {
            n_pairs: 8,
            x_batch: 1,
            n_rows: 1,
            n_experts: 128,
            n_out: 768,
            n_in: 2048,
            sorted: false,
        };
        let combine = CombineShape { n_tokens: 1, top_k: 8, n_experts: 128, n_out: 2048, n_in: 768 };
        let softmax = SoftmaxTopK { top_k: 8, renormalize: crate::Renormalize::Yes };
        let noaux = NoauxTc {
            top_k: 4,
            n_group: 1,
            topk_group: 1,
            renormalize: crate::Renormalize::Yes,
            routed_scaling_factor: 1.8,
            eps: 1e-20,
        };
        let rope = crate::Rope::plain(128, 1e6, crate::RopePairing::HalfSplit);
        let latent = LatentShape { n_tokens: 1, n_heads: 20, nope_dim: 192, rank: 512, rope_dim: 64 };
        let of_latent = crate::Rope::plain(64, 1e6, crate::RopePairing::Interleaved);
        let exact = Numerics::Exact;
        [
            gather_qmm_swiglu(DType::BF16, format, &swiglu, exact).unwrap(),
            gather_qmm_combine(DType::BF16, DType::BF16, format, &combine, exact).unwrap(),
            gather_qmm_swiglu_shared(DType::BF16, format, &swiglu, exact).unwrap(),
            gather_qmm_combine_shared(DType::BF16, DType::BF16, format, &combine, exact).unwrap(),
            quantized_matmul(DType::BF16, format, [1, 2048, 768]).unwrap(),
            route_softmax_top_k(DType::BF16, [1, 128], &softmax, exact).unwrap(),
            route_noaux_tc(DType::BF16, [1, 64], &noaux).unwrap(),
            add_rms_norm(DType::BF16, [1, 2048], 1e-6).unwrap(),
            norm_rope(DType::BF16, [1, 32, 4, 128], 1e-6, &rope).unwrap(),
            latent_norm_rope(DType::BF16, &latent, 1e-6, &of_latent).unwrap(),
            latent_attention_parts(DType::BF16, &latent, [1, 100], 0.1).unwrap(),
            latent_attention_parts(DType::BF16, &latent, [2, 100], 0.1).unwrap(),
            latent_attention_sum(DType::BF16, &latent).unwrap(),
        ]
    }

    #[test]
    fn a_launch_carries_only_code_that_it_needs() {
        for spec in specs() {
            let text = [spec.header, spec.body].concat();
            assert!(!text.contains("//") && !text.contains("\n\n") && !text.contains("\n "), "{text}");
            for (part, kernels) in [
                (
                    "add_products",
                    &["zmlx_gather_qmm_swiglu", "zmlx_gather_qmm_combine", "zmlx_quantized_matmul"][..],
                ),
                ("sum_of_slots", &["zmlx_gather_qmm_combine"]),
                ("my_swiglu", &["zmlx_gather_qmm_swiglu"]),
                ("order_of", &["zmlx_route_softmax_top_k", "zmlx_route_noaux_tc"]),
                ("inline T sigmoid", &["zmlx_gather_qmm_swiglu", "zmlx_route_noaux_tc"]),
            ] {
                let name = spec.name.trim_end_matches("_shared");
                assert_eq!(spec.header.contains(part), kernels.contains(&name), "{name}: {part}");
            }
            // A text is made once, not with every launch.
            let again = specs().into_iter().find(|s| s.name == spec.name).unwrap();
            assert!(std::ptr::eq(spec.header, again.header) && std::ptr::eq(spec.body, again.body));
        }
    }
}

//! Which kernel of MLX 0.32.2 on Metal is the reference of exact mode.
//!
//! `mx.gather_qmm(transpose=True)` with x `[.., M, K]`, E experts `[N, K]` and B pairs of indices runs:
//!
//! | condition, the first that holds | stock kernel | exact mode |
//! |---|---|---|
//! | M = 1, sorted indices, B ≥ 16, B / E ≥ 4 | `gather_qmm_rhs` (tiles) | no |
//! | M ≥ limit | `gather_qmm_t` (tiles) | no |
//! | N % 8 = 0 and K % (32 · wide) = 0 | `gather_qmv_fast`: a lane takes `wide` values per step | yes |
//! | else | `gather_qmv`: a lane takes `narrow` values per step | yes |
//!
//! The limit depends on the GPU; exact mode is offered below the smallest one: 13 if K and N ≤ 2048, 10 if ≤ 4096, else 6.
//!
//! `mx.quantized_matmul(transpose=True)` of one row runs the same two orders (`qmv_fast`, `qmv`), but `qmv_quad` if K is 64
//! or 128 and the bits a power of two; of more rows, `qmv_wide` or tiles, by GPU. Exact mode is offered for the two.
//!
//! Both orders: lane l adds, for its values of block b = 0, 1, …, `scale · Σ code·x + bias · Σx` to its sum in f32; `Σx` is
//! summed in chunks of 4 (2, 4, 6 bits), 8 (3, 5 bits) or 1 (8 bits) in the type of x, the chunks in f32. The 32 lanes meet in
//! `simd_sum`. The result is rounded to the type of x.
//!
//! Other ops: `sigmoid(v)` is `y = 1 / (1 + exp(|v|))`, then `y` or `1 - y`, each step rounded to the type; `silu` is a
//! product with it, SwiGLU one more. A sum over fewer than 32 slots (axis -2) adds from the first to the last in the type
//! of the products, from the ninth on in eight partial sums. `softmax(precise=True)` is in f32 with `fast::exp`, its result rounded.
//! `argpartition` is a stable ascending sort, NaN last. A sum of at most 64 neighbours adds from the first to the last.

use crate::{QuantMode, QuantSpec};

/// Weights of a row that a lane takes per step in the wide order: also that of accurate mode.
pub const fn wide(format: QuantSpec) -> usize {
    match (format.mode(), format.bits()) {
        (_, 6) => 8,
        (_, 8) => 8,
        _ => 16,
    }
}

/// Weights of a row that a lane takes per step in the order for any shape.
pub const fn narrow(format: QuantSpec) -> usize {
    match (format.mode(), format.bits()) {
        (QuantMode::Affine, 2) => 16,
        (_, 6) => 4,
        (_, 8) => 4,
        _ => 8,
    }
}

/// Values per lane and step of the matrix-vector kernel for a matrix `[n_out, n_in]`.
pub const fn matrix_vector(format: QuantSpec, n_out: usize, n_in: usize) -> usize {
    if n_out.is_multiple_of(8) && n_in.is_multiple_of(32 * wide(format)) {
        wide(format)
    } else {
        narrow(format)
    }
}

/// As [`matrix_vector`], or `None` if on some GPU another kernel serves `n_rows` rows per pair.
pub const fn gather(
    format: QuantSpec,
    n_rows: usize,
    [n_experts, n_out, n_in]: [usize; 3],
    sorted_pairs: Option<usize>,
) -> Option<usize> {
    let limit = match () {
        () if n_in <= 2048 && n_out <= 2048 => 13,
        () if n_in <= 4096 && n_out <= 4096 => 10,
        () => 6,
    };
    let tiles_of_sorted = match sorted_pairs {
        Some(pairs) => n_rows == 1 && pairs >= 16 && pairs / n_experts >= 4,
        None => false,
    };
    if n_rows < limit && !tiles_of_sorted { Some(matrix_vector(format, n_out, n_in)) } else { None }
}

/// As [`matrix_vector`] for a product with one matrix, or `None` if another kernel may serve it.
pub const fn dense(format: QuantSpec, n_rows: usize, n_out: usize, n_in: usize) -> Option<usize> {
    let quad = matches!(n_in, 64 | 128) && format.bits().is_power_of_two();
    if n_rows == 1 && !quad { Some(matrix_vector(format, n_out, n_in)) } else { None }
}

//! The product with one quantised matrix. MLX has its own; this one is for hosts that have none for MLX's formats.

use super::{
    KernelSpec, LANES, NotFused, Output, ROWS, SIMDGROUPS, Template, check_bank, format_template, need,
    stock, text,
};
use crate::{DType, QuantSpec};

/// `out[m] = x[m] · wᵀ`.
///
/// **Shapes** inputs x `[M, K]`, w `[N, words]`, scales and biases `[N, groups]` → out `[M, N]`. A format without biases passes
/// its scales in their place. **Dtypes** x and out of one float type, affine scales of any. **Numerics** accurate: f32, one rounding.
/// **Work** the matrix is read once for every 4 rows of x; 2·M·N·K FLOPs. **Source** `mx.quantized_matmul(transpose=True)`.
///
/// # Errors
/// [`NotFused`] if there is no kernel for the shape or types.
pub fn quantized_matmul(
    dtype: DType,
    format: QuantSpec,
    [n_rows, n_out, n_in]: [usize; 3],
) -> std::result::Result<KernelSpec, NotFused> {
    check_bank(dtype, format, [1, n_out, n_in])?;
    need(n_rows > 0 && n_out > 0, "nothing to compute")?;
    let tile = match n_rows {
        1 | 2 => n_rows,
        _ => 4,
    };
    let mut template = vec![("T", Template::Type(dtype))];
    template.extend(format_template(format, stock::wide(format), n_in));
    template.push(("SIMDGROUPS", Template::Int(SIMDGROUPS as i32)));
    template.push(("TILE", Template::Int(tile as i32)));
    Ok(KernelSpec {
        name: "zmlx_quantized_matmul",
        header: text!("quantized.h"),
        body: text!("quantized_matmul.metal"),
        inputs: &["x", "w", "scales", "biases"],
        outputs: vec![Output { name: "out", dtype, shape: vec![n_rows, n_out] }],
        template,
        grid: [LANES * n_rows.div_ceil(tile), SIMDGROUPS * n_out.div_ceil(SIMDGROUPS * ROWS), 1],
        threadgroup: [LANES, SIMDGROUPS, 1],
    })
}

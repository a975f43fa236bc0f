//! Runs MLX's own kernels unchanged, from the headers of its release.
//!
//! The headers exist after `cargo xtask setup-mlx`. Without them this test prints a notice and passes.

use std::path::{Path, PathBuf};

use half::bf16;
use msl_sim::{Error, Mode, Msl};

use crate::common::{MODES, ORDERS};

const SOURCE: &str = "
#include \"mlx/backend/metal/kernels/utils.h\"
#include \"mlx/backend/metal/kernels/steel/gemm/gemm.h\"
#include \"mlx/backend/metal/kernels/quantized_utils.h\"
#include \"mlx/backend/metal/kernels/quantized.h\"
instantiate_kernel(\"qmv_fast\", affine_qmv_fast, bfloat16_t, 64, 4, false)
instantiate_kernel(\"qmv\", affine_qmv, bfloat16_t, 64, 4, false)
";

/// The headers of the MLX that `cargo xtask setup-mlx` installed.
fn headers() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    let folder = root.join(".mlx/wheel/mlx/include");
    folder.join("mlx/backend/metal/kernels/quantized.h").exists().then_some(folder)
}

#[test]
fn quantised_vector_products() -> Result<(), Error> {
    let Some(headers) = headers() else {
        eprintln!("NOTICE: no MLX headers here (cargo xtask setup-mlx); this test proves nothing");
        return Ok(());
    };
    if !msl_sim::available() {
        return Ok(());
    }
    let mut state = 7u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    // If n is not a multiple of four, the last simdgroups of qmv overlap and write the same values twice. The detector
    // correctly reports a race.
    for (kernel, n, k) in [("qmv_fast", 16usize, 512usize), ("qmv", 12, 256)] {
        let weights: Vec<u32> = (0..n * k / 8).map(|_| random() ^ random() << 16).collect();
        let mut small = |scale: f32| bf16::from_f32((random() % 2001) as f32 / 1000.0 * scale - scale);
        let scales: Vec<bf16> = (0..n * k / 64).map(|_| small(0.1)).collect();
        let biases: Vec<bf16> = (0..n * k / 64).map(|_| small(0.5)).collect();
        let x: Vec<bf16> = (0..k).map(|_| small(1.0)).collect();
        let mut first: Option<Vec<bf16>> = None;
        for mode in MODES {
            let library = Msl::source("stock.metal", SOURCE).include_dir(&headers).build(mode)?;
            for order in ORDERS {
                let mut y = vec![bf16::NAN; n];
                let call = library.kernel(kernel)?.buffer(0, &weights).buffer(1, &scales).buffer(2, &biases);
                let mut call =
                    call.buffer(3, &x).buffer_mut(4, &mut y).value(5, &(k as i32)).value(6, &(n as i32));
                for index in 7..15 {
                    call = call.value(index, &0i64); // for batches, but there are none
                }
                call.order(order).dispatch_groups([1, n.div_ceil(8) as u32, 1], [32, 2, 1])?;
                assert_eq!(first.get_or_insert_with(|| y.clone()), &y, "{kernel} {mode:?} {order:?}");
            }
        }
        for (row, got) in first.unwrap().iter().enumerate() {
            let (mut want, mut size, mut offsets) = (0.0, 0.0, 0.0);
            for (j, x) in x.iter().enumerate() {
                let i = row * k + j;
                let code = f64::from(weights[i / 8] >> (4 * (i % 8)) & 15);
                let (scaled, offset) = (code * scales[i / 64].to_f64(), biases[i / 64].to_f64());
                want += (scaled + offset) * x.to_f64();
                size += ((scaled + offset) * x.to_f64()).abs();
                offsets += (offset * x.to_f64()).abs();
            }
            // The bound: one rounding of the result to bfloat (2^-9), at most k roundings of the sum in float, and
            // three roundings in bfloat where the kernel adds four values of x before it multiplies them by the bias.
            let bound = want.abs() / 512.0 + size * k as f64 / f64::from(1 << 24) + offsets * 3.0 / 512.0;
            assert!((got.to_f64() - want).abs() <= bound, "{kernel} row {row}: {got} {want}");
        }
    }
    Ok(())
}

#[test]
fn a_projection_of_real_width_takes_moments() -> Result<(), Error> {
    let Some(headers) = headers().filter(|_| msl_sim::available()) else {
        eprintln!("NOTICE: no MLX headers or no compiler here; this test proves nothing");
        return Ok(());
    };
    let (n, k) = (1536usize, 2048usize);
    let (weights, scales) = (vec![0x1234_5678u32; n * k / 8], vec![bf16::ONE; n * k / 64]);
    let (x, mut y) = (vec![bf16::ONE; k], vec![bf16::NAN; n]);
    let library = Msl::source("stock.metal", SOURCE).include_dir(&headers).build(Mode::Plain)?;
    let start = std::time::Instant::now();
    let call =
        library.kernel("qmv_fast")?.buffer(0, &weights).buffer(1, &scales).buffer(2, &scales).buffer(3, &x);
    let mut call = call.buffer_mut(4, &mut y).value(5, &(k as i32)).value(6, &(n as i32));
    for index in 7..15 {
        call = call.value(index, &0i64);
    }
    call.dispatch_groups([1, n as u32 / 8, 1], [32, 2, 1])?;
    println!("{k} to {n} in {:?}", start.elapsed());
    // Every eight codes add up to 36, and every weight is its code plus one.
    let want = bf16::from_f32(k as f32 / 8.0 * 36.0 + k as f32);
    assert!(y.iter().all(|&v| v == want), "{} {want}", y[0]);
    Ok(())
}

//! Bodies as MLX compiles them: signatures, shapes, strides, scalars, grids and initial values.

use crate::common::{MODES, ORDERS};
use half::{bf16, f16};
use msl_sim::{Dtype, Error, FaultKind, MlxBody, Mode, Space};

type Test = Result<(), Error>;

/// One threadgroup per row: y = x / sqrt(mean(x²) + eps) * w.
const RMS_NORM: &str = "
  uint row = threadgroup_position_in_grid.x, t = thread_position_in_threadgroup.x;
  threadgroup float part[32];
  float s = 0;
  for (int i = t; i < D; i += threads_per_threadgroup.x) s += square(float(x[row * x_shape[1] + i]));
  s = simd_sum(s);
  if (thread_index_in_simdgroup == 0) part[simdgroup_index_in_threadgroup] = s;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  s = thread_index_in_simdgroup < simdgroups_per_threadgroup ? part[thread_index_in_simdgroup] : 0.0;
  s = simd_sum(s);
  float r = metal::precise::rsqrt(s / D + eps);
  for (int i = t; i < D; i += threads_per_threadgroup.x) y[row * D + i] = T(float(x[row * D + i]) * r) * T(w[i]);
";

fn rms_norm(rows: usize, d: usize) -> MlxBody {
    MlxBody::new("rms_norm", RMS_NORM)
        .header("inline float square(float v) { return v * v; }")
        .input("x", Dtype::Bfloat16, &[rows, d])
        .input("w", Dtype::Bfloat16, &[d])
        .input("eps", Dtype::Float32, &[])
        .output("y", Dtype::Bfloat16, &[rows, d])
        .template("T", Dtype::Bfloat16)
        .template("D", d as i32)
}

#[test]
fn a_reduction_over_rows() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    for (rows, d) in [(3, 200), (1, 5)] {
        let x: Vec<bf16> = (0..rows * d).map(|i| bf16::from_f32((i as f32 * 0.37).sin())).collect();
        let w: Vec<bf16> = (0..d).map(|i| bf16::from_f32(1.0 + i as f32 / d as f32)).collect();
        let mut first: Option<Vec<bf16>> = None;
        for mode in MODES {
            let kernel = rms_norm(rows, d).build(mode)?;
            for order in ORDERS {
                let call = kernel.call().input(&x).input(&w).input(&[1e-5f32]).order(order);
                let y: Vec<bf16> = call.dispatch([96 * rows as u32, 1, 1], [96, 1, 1])?.get(0)?;
                assert_eq!(first.get_or_insert_with(|| y.clone()), &y, "{mode:?} {order:?}");
            }
        }
        let y = first.expect("there are modes and orders");
        for (y, x) in y.chunks(d).zip(x.chunks(d)) {
            let mean = x.iter().map(|v| v.to_f64().powi(2)).sum::<f64>() / d as f64;
            for i in 0..d {
                let scaled = bf16::from_f64(x[i].to_f64() / (mean + 1e-5).sqrt());
                let want = (scaled * w[i]).to_f32();
                // The sum in float may change one rounding to bfloat, and then that of the product: two units of 2^-8.
                assert!((y[i].to_f32() - want).abs() <= want.abs() / 128.0, "{i}: {} {want}", y[i]);
            }
        }
    }
    Ok(())
}

#[test]
fn both_address_spaces_give_the_same() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let body = |space| {
        MlxBody::new("gather", "uint i = thread_position_in_grid.x; y[i] = x[rhs[i]];")
            .input("x", Dtype::Float16, &[12])
            .input("rhs", Dtype::Uint32, &[4])
            .output("y", Dtype::Float16, &[4])
            .space("rhs", space)
    };
    let x: Vec<f16> = (0..12).map(|i| f16::from_f32(i as f32)).collect();
    let rhs = [3u32, 0, 11, 7];
    for space in [Space::Constant, Space::Device] {
        let out =
            body(space).build(Mode::Detect)?.call().input(&x).input(&rhs).dispatch([4, 1, 1], [32, 1, 1])?;
        assert_eq!(out.get::<f16>(0)?, rhs.map(|i| x[i as usize]), "{space:?}");
    }
    Ok(())
}

#[test]
fn shapes_strides_and_several_outputs() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let text = "
      uint i = thread_position_in_grid.x;
      y[i] = x[elem_to_loc(int64_t(i), x_shape, x_strides, x_ndim)];
      if (i == 0) { info[0] = x_ndim; info[1] = x_shape[0]; info[2] = x_strides[0]; info[3] = x_strides[1]; }
    ";
    let body = MlxBody::new("strided", text)
        .input("x", Dtype::Int32, &[3, 4])
        .strides("x", &[1, 3])
        .output("y", Dtype::Int32, &[3, 4])
        .output("info", Dtype::Int64, &[4]);
    let storage: Vec<i32> = (0..12).collect();
    let transposed: Vec<i32> = (0..12).map(|i| i % 4 * 3 + i / 4).collect();
    // In its own layout, and as MLX copies it if it must be contiguous.
    for (body, strides) in [(body.clone().keep_layout(), [1i64, 3]), (body, [4, 1])] {
        let out = body.build(Mode::Detect)?.call().input(&storage).dispatch([12, 1, 1], [8, 1, 1])?;
        assert_eq!(out.get::<i32>(0)?, transposed);
        assert_eq!(out.get::<i64>(1)?, [2, 3, strides[0], strides[1]]);
    }
    Ok(())
}

#[test]
fn outputs_are_undefined_or_filled() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let body = MlxBody::new(
        "half_of_it",
        "uint i = thread_position_in_grid.x; if (i % 2 == 0) y[i] = bfloat16_t(i);",
    )
    .input("x", Dtype::Float32, &[8])
    .output("y", Dtype::Bfloat16, &[8]);
    let x = [0f32; 8];
    let out = body.build(Mode::Plain)?.call().input(&x).dispatch([8, 1, 1], [8, 1, 1])?;
    assert_eq!(out.get::<bf16>(0)?.iter().filter(|v| v.is_nan()).count(), 4);
    let kernel = body.build(Mode::Detect)?;
    let error = kernel.call().input(&x).dispatch([8, 1, 1], [8, 1, 1]).expect_err("half is missing");
    assert_eq!(error.faults()[0].kind, FaultKind::Unwritten, "{error}");
    let out = kernel.call().input(&x).init_value(-1.5).dispatch([8, 1, 1], [8, 1, 1])?;
    let want = [0.0, -1.5, 2.0, -1.5, 4.0, -1.5, 6.0, -1.5].map(bf16::from_f32);
    assert_eq!(out.get::<bf16>(0)?, want);

    let reads = MlxBody::new("reads_output", "uint i = thread_position_in_grid.x; y[i] = y[i] + x[i];")
        .input("x", Dtype::Float32, &[8])
        .output("y", Dtype::Float32, &[8]);
    let error =
        reads.build(Mode::Detect)?.call().input(&x).dispatch([8, 1, 1], [8, 1, 1]).expect_err("undefined");
    assert_eq!(error.faults()[0].kind, FaultKind::Uninitialised, "{error}");
    assert_eq!(error.faults()[0].file.as_deref(), Some("reads_output.body"), "{error}");
    Ok(())
}

#[test]
fn atomic_outputs() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let text = "atomic_fetch_add_explicit(&y[x[thread_position_in_grid.x]], 1, memory_order_relaxed);";
    let body = MlxBody::new("count", text)
        .input("x", Dtype::Uint8, &[100])
        .output("y", Dtype::Uint32, &[4])
        .atomic_outputs();
    let x: Vec<u8> = (0..100u8).map(|i| i % 3).collect();
    let call = body.build(Mode::Detect)?;
    let out = call.call().input(&x).init_value(0.0).dispatch([100, 1, 1], [32, 1, 1])?;
    assert_eq!(out.get::<u32>(0)?, [34, 33, 33, 0]);
    Ok(())
}

#[test]
fn grids_are_in_threads() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let text = "uint i = thread_position_in_grid.y * threads_per_grid.x + thread_position_in_grid.x;
                y[i] = threads_per_threadgroup.x * 100 + threadgroups_per_grid.x;";
    let body = MlxBody::new("grid", text).input("n", Dtype::Int32, &[]).output("y", Dtype::Uint32, &[2, 5]);
    // The threadgroup is cut to the grid in y, and smaller at the edge in x.
    let out = body.build(Mode::Detect)?.call().input(&[1i32]).dispatch([5, 2, 1], [4, 8, 1])?;
    assert_eq!(out.get::<u32>(0)?, [402, 402, 402, 402, 102, 402, 402, 402, 402, 102]);
    Ok(())
}

#[test]
fn data_that_does_not_fit_is_refused() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let body = MlxBody::new("copy", "y[0] = x[0];").input("x", Dtype::Float32, &[8]);
    assert!(
        matches!(body.build(Mode::Plain), Err(Error::Call { message, .. }) if message.contains("output"))
    );
    let kernel = body.output("y", Dtype::Float32, &[1]).build(Mode::Plain)?;
    let x = [0f32; 9];
    let refused = |result: Result<_, Error>| matches!(result, Err(Error::Call { .. }));
    assert!(refused(kernel.call().dispatch([1, 1, 1], [1, 1, 1]).map(drop)));
    assert!(refused(kernel.call().input(&x).dispatch([1, 1, 1], [1, 1, 1]).map(drop)));
    assert!(refused(kernel.call().input(&x[..7]).dispatch([1, 1, 1], [1, 1, 1]).map(drop)));
    assert!(refused(kernel.call().input(&x[..8]).dispatch([0, 1, 1], [1, 1, 1]).map(drop)));
    let out = kernel.call().input(&x[..8]).dispatch([1, 1, 1], [1, 1, 1])?;
    assert!(refused(out.get::<f32>(1).map(drop)) && refused(out.get::<u64>(0).map(drop)));
    Ok(())
}

#[test]
fn slices_show_reads_wider_than_elements() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let kernel = |text: &str| {
        let body =
            MlxBody::new("pairs", text).input("x", Dtype::Float16, &[16]).output("y", Dtype::Float16, &[8]);
        body.build(Mode::Detect)
    };
    let x: Vec<f16> = (0..16).map(|i| f16::from_f32(i as f32)).collect();
    let sums: Vec<f16> = (0..8).map(|i| f16::from_f32(4.0 * i as f32 + 1.0)).collect();
    let narrow = kernel("uint i = thread_position_in_grid.x; y[i] = x[2 * i] + x[2 * i + 1];")?;
    let wide = kernel(
        "uint i = thread_position_in_grid.x; half2 v = ((const device half2*)x)[i]; y[i] = v.x + v.y;",
    )?;
    for kernel in [&narrow, &wide] {
        assert_eq!(kernel.call().input(&x).dispatch([8, 1, 1], [8, 1, 1])?.get::<f16>(0)?, sums);
    }
    assert_eq!(narrow.call().input(&x).sliced().dispatch([8, 1, 1], [8, 1, 1])?.get::<f16>(0)?, sums);
    let error =
        wide.call().input(&x).sliced().dispatch([8, 1, 1], [8, 1, 1]).expect_err("half2 needs four bytes");
    assert_eq!(error.faults()[0].kind, FaultKind::Undefined, "{error}");
    Ok(())
}

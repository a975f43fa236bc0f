//! First light.
use msl_sim::{Dtype, Error, MlxBody, Mode, Msl, Order};

const ROTATE: &str = "#include <metal_stdlib>
using namespace metal;
kernel void rotate_in_group(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                   uint tid [[thread_index_in_threadgroup]], uint gid [[thread_position_in_grid]]) {
  threadgroup float s[128];
  s[tid] = in[gid];
  BARRIER
  out[gid] = s[127 - tid];
}
";

#[test]
fn barrier() -> Result<(), Error> {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..256).map(|i| i as f32).collect();
    for mode in [Mode::Plain, Mode::Detect] {
        let lib = Msl::source("rotate", ROTATE)
            .define("BARRIER", "threadgroup_barrier(mem_flags::mem_threadgroup);")
            .build(mode)?;
        for order in [Order::Forward, Order::Reverse, Order::Random(3)] {
            let mut out = vec![0f32; 256];
            lib.kernel("rotate_in_group")?
                .buffer(0, &input)
                .buffer_mut(1, &mut out)
                .order(order)
                .dispatch_threads([256, 1, 1], [128, 1, 1])?;
            assert_eq!(out[0], 127.0);
            assert_eq!(out[255], 128.0);
        }
    }
    let lib = Msl::source("rotate", ROTATE).define("BARRIER", "").build(Mode::Detect)?;
    let mut out = vec![0f32; 256];
    let got = lib
        .kernel("rotate_in_group")?
        .buffer(0, &input)
        .buffer_mut(1, &mut out)
        .dispatch_threads([256, 1, 1], [128, 1, 1]);
    println!("{}", got.unwrap_err());
    Ok(())
}

#[test]
fn body() -> Result<(), Error> {
    if !msl_sim::available() {
        return Ok(());
    }
    for mode in [Mode::Plain, Mode::Detect] {
        let kernel = MlxBody::new(
            "axpy",
            "uint i = thread_position_in_grid.x; y[i] = T(float(a) * float(x[i]) + N + x_shape[0]);",
        )
        .input("x", Dtype::Bfloat16, &[16])
        .input("a", Dtype::Float32, &[])
        .output("y", Dtype::Bfloat16, &[16])
        .template("T", Dtype::Bfloat16)
        .template("N", 3)
        .build(mode)?;
        let x: Vec<half::bf16> = (0..16u8).map(half::bf16::from).collect();
        let y: Vec<half::bf16> =
            kernel.call().input(&x).input(&[2f32]).dispatch([16, 1, 1], [5, 1, 1])?.get(0)?;
        assert_eq!(y[4].to_f32(), 27.0);
    }
    Ok(())
}

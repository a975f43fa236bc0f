//! Tests of the simulator itself: tiny kernels with known results, in both modes and in every thread order.

use crate::common::{bits, everywhere};
use half::{bf16, f16};
use msl_sim::{Error, Library, Mode, Msl, Order};

type Test = Result<(), Error>;

/// Runs a kernel without inputs in a single thread.
fn alone<T: bytemuck::Pod + PartialEq + std::fmt::Debug>(
    file: &str,
    kernel: &str,
    n: usize,
) -> Result<Vec<T>, Error> {
    everywhere(file, |library, order| {
        let mut out = vec![T::zeroed(); n];
        library
            .kernel(kernel)?
            .buffer_mut(0, &mut out)
            .order(order)
            .dispatch_threads([1, 1, 1], [1, 1, 1])?;
        Ok(out)
    })
}

/// Runs a kernel over `input` (buffer 0) with one thread per element, `per` outputs each (buffer 1).
fn mapped(file: &str, kernel: &str, input: &[f32], per: usize, group: u32) -> Result<Vec<f32>, Error> {
    let out = everywhere(file, |library, order| {
        let mut out = vec![0f32; input.len() * per];
        let n = input.len() as u32;
        let call = library.kernel(kernel)?.buffer(0, input).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([n, 1, 1], [group, 1, 1])?;
        Ok(bits(&out))
    })?;
    Ok(out.into_iter().map(f32::from_bits).collect())
}

#[test]
fn vector_constructors() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let got: Vec<f32> = alone("vectors.metal", "constructors", 26)?;
    let want = [
        [1., 2., 3.].as_slice(),
        &[7., 1., 2.],
        &[5., 5., 5., 5.],
        &[1., 2., 2., 1.],
        &[1., 2., 3., 9.],
        &[-1., 2., -3., 4.],
        &[1., -1., 7.],
    ];
    assert_eq!(got[..25], want.concat());
    Ok(())
}

#[test]
fn vector_swizzles() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let got: Vec<f32> = alone("vectors.metal", "swizzles", 21)?;
    let want = [
        4., 3., 2., 1., // wzyx
        1., 2., 3., 4., // xy, zw
        10., 2.5, 30., 4.25, // assigned
        20., 5., 60., // rgb, doubled
        2., 3., 4., 1., // half, reversed in place
        24., 6.,
    ];
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn vector_operators() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let got: Vec<i32> = alone("vectors.metal", "operators", 30)?;
    let (a, b) = ([7, -7, 9, 12], [2, 2, 4, 5]);
    let each = |f: fn(i32, i32) -> i32| -> Vec<i32> { a.iter().zip(b).map(|(&a, b)| f(a, b)).collect() };
    let mut want = each(|a, b| a / b);
    want.extend(each(|a, b| a % b));
    want.extend(each(|a, _| a << 1));
    want.extend(each(|a, _| -a));
    want.extend(each(|a, b| a ^ b));
    want.extend(each(|a, b| i32::from(a < b)));
    want.extend([1, 0, 2, 34, 20, 2]);
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn vector_layout() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let words: [u32; 8] = [2.5f32.to_bits(), 1, 2, 3, 4, 5, 6, 7];
    let packed = [1f32, 2., 3., 4., 5., 6.];
    let got = everywhere("vectors.metal", |library, order| {
        let mut out = [0u32; 14];
        let call = library.kernel("layout")?.buffer_mut(0, &mut out).buffer(1, &words).buffer(2, &packed);
        call.order(order).dispatch_threads([1, 1, 1], [1, 1, 1])?;
        Ok(out)
    })?;
    let halves = u32::from(f16::from_f32(1.).to_bits()) | u32::from(f16::from_f32(-2.).to_bits()) << 16;
    assert_eq!(got, [16, 12, 8, 4, 48, 16, 2, 8, 6, 5, 3, 2, 0x0403_0201, halves]);
    Ok(())
}

#[test]
fn half_and_bfloat_round_after_every_operation() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let pairs: Vec<f32> =
        (0..64u32).flat_map(|i| [1.0 + i as f32 * 0.137, 3.0 - i as f32 * 0.0791]).collect();
    let got = everywhere("types.metal", |library, order| {
        let mut out = vec![0u16; 64 * 8];
        let call = library.kernel("rounding")?.buffer(0, &pairs).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([64, 1, 1], [32, 1, 1])?;
        Ok(out)
    })?;
    for (got, pair) in got.chunks(8).zip(pairs.chunks(2)) {
        // f32 represents products of two halves and of two bfloats exactly, so the next rounding is that of the
        // operation.
        let h = |x: f32| f16::from_f32(x).to_f32();
        let (a, b) = (h(pair[0]), h(pair[1]));
        let want = [h(a + b), h(a * b), h(a / b), h(h(a * b) + a)].map(|x| f16::from_f32(x).to_bits());
        assert_eq!(got[..4], want, "{pair:?}");
        let b16 = |x: f32| bf16::from_f32(x).to_f32();
        let (c, d) = (b16(pair[0]), b16(pair[1]));
        let want =
            [b16(c + d), b16(c * d), b16(c / d), b16(b16(c * d) + c)].map(|x| bf16::from_f32(x).to_bits());
        assert_eq!(got[4..], want, "{pair:?}");
    }
    Ok(())
}

#[test]
fn types_of_mixed_expressions() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let got: Vec<u32> = alone("types.metal", "mixed_types", 16)?;
    // bfloat has 8 significant bits: 256 + 1 gives 256. half has 11: 2048 + 1 gives 2048.
    let want = [2, 2, 4, 2, 2, 4, 4, 4, 2, (1f32 / 3.).to_bits(), 1, 1, 256, 2048, 65504, 0x7f7f];
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn integer_arithmetic() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let w = 0x8765_43f1u32;
    let words = [w];
    let got = everywhere("types.metal", |library, order| {
        let mut out = [0u32; 22];
        let call = library.kernel("integers")?.buffer(0, &words).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([1, 1, 1], [1, 1, 1])?;
        Ok(out)
    })?;
    let big = i64::from(w as i32) * 1_000_003;
    let want = [
        0xf1,
        0x43,
        1,
        big as u32,
        (big >> 32) as u32,
        ((u64::from(w) << 20) >> 32) as u32,
        -3i32 as u32,
        -1i32 as u32,
        -4i32 as u32,
        8,
        w.count_ones(),
        24,
        7,
        (w >> 4) & 0xfff,
        0x43,
        5 << 3,
        ((u64::from(w) * u64::from(w)) >> 32) as u32,
        w.rotate_left(8),
        1 << 31,
        5 + 1 + 4,
        1,
        300, // integer promotion, as in C++
    ];
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn conversions() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input = [200.9f32, -3.99, 0.1, 6e-8, f32::NAN, f32::INFINITY, 0.0];
    let got = everywhere("types.metal", |library, order| {
        let mut out = [0i32; 10];
        let call = library.kernel("conversions")?.buffer(0, &input).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([1, 1, 1], [1, 1, 1])?;
        Ok(out)
    })?;
    let want = [
        200,
        -3,
        200,
        200.9f32.to_bits() as i32,
        1,
        f16::from_f32(0.1).to_f32().to_bits() as i32,
        bf16::from_f32(0.1).to_f32().to_bits() as i32,
        1, // the smallest subnormal
        7,
        2,
    ];
    assert_eq!(got, want);
    Ok(())
}

#[test]
fn functions() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..40).map(|i| -4.75 + 0.25 * i as f32 + 0.001 * (i * i) as f32).collect();
    let got = mapped("math.metal", "functions", &input, 16, 8)?;
    for (got, &x) in got.chunks(16).zip(&input) {
        let d = f64::from(x);
        let want = [
            d.exp(),
            d.exp(),
            d.exp(),
            d.exp2(),
            d.abs().ln(),
            d.tanh(),
            1.0 / d.abs().sqrt(),
            d.abs().sqrt(),
            d.sin(),
            d.abs().powf(1.5),
            d.floor(),
            d.ceil(),
            d.round_ties_even(),
            d.round(),
            d.trunc(),
        ];
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            // Both are correctly rounded. One ulp allows for differences between the doubles of the two libraries.
            assert!(
                (got.to_bits() as i64 - (want as f32).to_bits() as i64).abs() <= 1,
                "function {i} of {x}"
            );
        }
        let sigmoid = 1.0 / (1.0 + f32::exp(-x));
        assert!(
            (got[15] - sigmoid).abs() <= 2e-7,
            "sigmoid of {x}: three roundings in float, each below 6e-8"
        );
    }
    Ok(())
}

#[test]
fn functions_of_half_and_bfloat_round_once() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..32).map(|i| -2.0 + 0.17 * i as f32).collect();
    let got = everywhere("math.metal", |library, order| {
        let mut out = vec![0u16; 4 * 32];
        let call = library.kernel("narrow_functions")?.buffer(0, &input).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([32, 1, 1], [32, 1, 1])?;
        Ok(out)
    })?;
    for (got, &x) in got.chunks(4).zip(&input) {
        let (h, b) = (f16::from_f32(x).to_f64(), bf16::from_f32(x).to_f64());
        // A double represents the exact fused result.
        assert_eq!(got[0], f16::from_f32(h.exp() as f32).to_bits(), "exp of half {x}");
        assert_eq!(got[1], bf16::from_f32(b.exp() as f32).to_bits(), "exp of bfloat {x}");
        assert_eq!(got[2], f16::from_f64(h * h + h).to_bits(), "fma of half {x}");
        assert_eq!(got[3], bf16::from_f32((b * b + b) as f32).to_bits(), "fma of bfloat {x}");
    }
    Ok(())
}

#[test]
fn products_and_sums_fuse_only_on_request() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    // a² needs 48 bits. After the rounded product is subtracted, the remainder shows whether the product was rounded.
    let a = 1.0f32 + 2f32.powi(-23);
    let input = [a, a, -(a * a)];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels/math.metal");
    for (msl, fused) in [(Msl::file(path)?, false), (Msl::file(path)?.contract_fma(), true)] {
        let mut out = [0f32; 2];
        let library = msl.build(Mode::Plain)?;
        let call = library.kernel("contraction")?.buffer(0, &input).buffer_mut(1, &mut out);
        call.dispatch_threads([1, 1, 1], [1, 1, 1])?;
        assert_eq!(out[1], 2f32.powi(-46), "fma");
        assert_eq!(out[0], if fused { 2f32.powi(-46) } else { 0.0 }, "contraction {fused}");
    }
    Ok(())
}

#[test]
fn selections() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input = [f32::NAN, 1.0, 2.0];
    let got = everywhere("math.metal", |library, order| {
        let mut out = [0f32; 16];
        let call = library.kernel("selections")?.buffer(0, &input).buffer_mut(1, &mut out).order(order);
        call.dispatch_threads([1, 1, 1], [1, 1, 1])?;
        Ok(out)
    })?;
    assert_eq!(got, [1., 1., 1., 2., 2., 1., 2., 1.25, -1., 1., 0.75, -1.5, -2., 1., 1., 8.]);
    Ok(())
}

#[test]
fn simd_reductions() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    // 66 threads: the third simdgroup has two lanes.
    let input: Vec<f32> = (0..66).map(|i| i as f32).collect();
    let got = mapped("simd.metal", "reductions", &input, 12, 66)?;
    for (i, got) in got.chunks(12).enumerate() {
        let lanes = &input[i / 32 * 32..66.min(i / 32 * 32 + 32)];
        let (sum, lane) = (lanes.iter().sum::<f32>(), i % 32);
        let before: f32 = lanes[..lane].iter().sum();
        let quad: f32 = lanes[lane / 4 * 4..lanes.len().min(lane / 4 * 4 + 4)].iter().sum();
        // Even sums up to 2048 are exact in half. The 8 bits of bfloat are not enough for all partial sums.
        let max = lanes[lanes.len() - 1];
        let even = lanes.iter().filter(|&&v| v % 2.0 == 0.0).count() as f32;
        let any = if max > 40.0 { 3.0 } else { 1.0 };
        let want = [sum, max, lanes[0], sum, sum, 1.0, before + input[i], before, quad, any, even];
        assert_eq!(got[..11], want, "thread {i}");
        let mut tree: Vec<Option<bf16>> = (0..32).map(|l| lanes.get(l).map(|&v| bf16::from_f32(v))).collect();
        for d in [16, 8, 4, 2, 1] {
            for l in 0..d {
                tree[l] = match (tree[l], tree[l + d]) {
                    (Some(a), Some(b)) => Some(bf16::from_f32(a.to_f32() + b.to_f32())),
                    (a, b) => a.or(b),
                };
            }
        }
        assert_eq!(Some(got[11]), tree[0].map(bf16::to_f32), "thread {i} in bfloat");
    }
    Ok(())
}

#[test]
fn simd_shuffles() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..64).map(|i| (i * i) as f32).collect();
    let got = mapped("simd.metal", "shuffles", &input, 8, 64)?;
    for (i, got) in got.chunks(8).enumerate() {
        let (base, lane) = (i / 32 * 32, i % 32);
        let of = |lane: usize| input[base + lane];
        let filled = if lane + 2 < 32 { of(lane + 2) } else { (lane + 2 - 32) as f32 + 0.5 };
        let down = if lane + 3 < 32 { of(lane + 3) } else { of(lane) };
        let up = if lane >= 3 { of(lane - 3) } else { of(lane) };
        let want = [of(31 - lane), of(lane ^ 5), down, up, of(7), of(0), of((lane + 1) % 32), filled];
        assert_eq!(got, want, "thread {i}");
    }
    Ok(())
}

#[test]
fn sums_of_a_simdgroup_follow_the_butterfly() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..32).map(|i| (1.0 + i as f32).sqrt() * 10f32.powi(i % 7)).collect();
    let got = mapped("simd.metal", "summation_order", &input, 1, 32)?;
    let mut tree = input.clone();
    for d in [16, 8, 4, 2, 1] {
        for l in 0..d {
            tree[l] += tree[l + d];
        }
    }
    assert_ne!(tree[0], input.iter().sum::<f32>(), "the numbers must tell orders apart");
    assert!(got.iter().all(|&v| v == tree[0]), "{got:?}");
    Ok(())
}

#[test]
fn lanes_that_returned_take_no_part() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let got = mapped("simd.metal", "early_exit", &input, 1, 64)?;
    for (i, got) in got.iter().enumerate() {
        let base = i / 32 * 32;
        let sum: f32 = input[base..base + 20].iter().sum();
        assert_eq!(*got, if i % 32 < 20 { sum } else { -1.0 }, "thread {i}");
    }
    Ok(())
}

#[test]
fn loops_with_divergent_exits() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let got = mapped("simd.metal", "divergent_loop", &input, 1, 128)?;
    for (sg, got) in got.chunks(32).enumerate() {
        let mut v: f32 = input[sg * 32..sg * 32 + 32].iter().sum::<f32>() * 0.03125 + 1.0;
        for _ in 0..3 * sg {
            v += 1.0; // the mean of 32 equal values, exact in these numbers
        }
        assert!(got.iter().all(|&x| x == v), "simdgroup {sg}: {got:?} {v}");
    }
    let got = mapped("simd.metal", "lane_loop", &input, 1, 32)?;
    let lane = |l: usize| -> f32 { (0..=l).filter(|n| n % 3 != 1).map(|n| n as f32).sum() };
    let want: f32 = (0..32).map(lane).sum();
    assert!(got.iter().all(|&v| v == want), "{got:?}");
    Ok(())
}

#[test]
fn threadgroup_memory_and_barriers() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<f32> = (0..192).map(|i| (i % 13) as f32).collect();
    let got = mapped("simd.metal", "group_reduction", &input, 1, 96)?;
    for (g, got) in got.chunks(96).enumerate() {
        let sum: f32 = input[g * 96..g * 96 + 96].iter().sum();
        let first: Vec<f32> = (0..96).map(|t| sum + (t % 4) as f32 + 3.0).collect();
        let sum: f32 = first.iter().sum();
        let want: Vec<f32> = (0..96).map(|t| sum + (t % 4) as f32 + 3.0).collect();
        assert_eq!(got, want, "group {g}");
    }
    let got = everywhere("simd.metal", |library, order| {
        let mut out = [0f32; 2];
        let call = library.kernel("tree")?.buffer(0, &input).buffer_mut(1, &mut out).threadgroup(0, 64 * 4);
        call.order(order).dispatch_groups([2, 1, 1], [64, 1, 1])?;
        Ok(out)
    })?;
    assert_eq!(got, [input[..64].iter().sum::<f32>(), input[64..128].iter().sum()]);
    Ok(())
}

#[test]
fn grids_that_do_not_fit_have_smaller_groups_at_the_edge() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let (width, height, gx, gy) = (7u32, 5u32, 4u32, 2u32);
    let got = everywhere("simd.metal", |library, order| {
        let mut out = vec![0u32; (width * height) as usize];
        let call = library.kernel("positions")?.buffer_mut(0, &mut out).order(order);
        call.dispatch_threads([width, height, 1], [gx, gy, 1])?;
        Ok(out)
    })?;
    for (i, &got) in got.iter().enumerate() {
        let (x, y) = (i as u32 % width, i as u32 / width);
        let (bx, by) = (x / gx, y / gy);
        let (nx, ny) = (gx.min(width - bx * gx), gy.min(height - by * gy));
        let (ix, iy) = (x % gx, y % gy);
        assert_eq!(
            got,
            ix + 10 * iy + 100 * bx + 1000 * by + 10000 * nx * ny + 1_000_000 * (iy * nx + ix),
            "{x},{y}"
        );
    }
    Ok(())
}

#[test]
fn barriers_order_device_memory() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let got = everywhere("simd.metal", |library, order| {
        let (mut scratch, mut out) = ([0f32; 64], [0f32; 64]);
        let call = library.kernel("through_device")?.buffer_mut(0, &mut scratch).buffer_mut(1, &mut out);
        call.order(order).dispatch_threads([64, 1, 1], [64, 1, 1])?;
        Ok(out)
    })?;
    assert!(got.iter().enumerate().all(|(i, &v)| v == ((i + 32) % 64) as f32), "{got:?}");
    Ok(())
}

#[test]
fn matrices_of_a_simdgroup() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let a: Vec<f32> = (0..64).map(|i| i as f32 - 20.0).collect();
    let b: Vec<f32> = (0..64).map(|i| (i % 11) as f32).collect();
    let got = everywhere("simd.metal", |library, order| {
        let mut out = [0f32; 64];
        let call = library.kernel("matrices")?.buffer(0, &a).buffer(1, &b).buffer_mut(2, &mut out);
        call.order(order).dispatch_threads([32, 1, 1], [32, 1, 1])?;
        Ok(out)
    })?;
    for (i, got) in got.iter().enumerate() {
        let (row, column) = (i / 8, i % 8);
        let want: f32 = 0.5 + (0..8).map(|k| a[row * 8 + k] * b[column * 8 + k]).sum::<f32>();
        assert_eq!(*got, want, "{row},{column}");
    }
    Ok(())
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    n: u32,
    scale: f32,
}
// SAFETY: the type has two fields of four bytes and no padding, and every bit pattern is valid.
unsafe impl bytemuck::NoUninit for Params {}

#[test]
fn templates_are_dispatched_by_host_name() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let params = Params { n: 5, scale: 0.0 };
    let ints = [1i32, -2, 3, -4, 5, 6];
    let halves = ints.map(|v| f16::from_f32(v as f32 / 3.0));
    let got = everywhere("language.metal", |library, order| {
        let (mut int_out, mut half_out) = ([7i32; 6], [f16::ZERO; 6]);
        let call =
            library.kernel("scaled_int_2")?.buffer(0, &ints).buffer_mut(1, &mut int_out).value(2, &params);
        call.order(order).dispatch_threads([6, 1, 1], [6, 1, 1])?;
        let call = library
            .kernel("scaled_half_3")?
            .buffer(0, &halves)
            .buffer_mut(1, &mut half_out)
            .value(2, &params);
        call.order(order).dispatch_threads([6, 1, 1], [4, 1, 1])?;
        Ok((int_out, half_out))
    })?;
    assert_eq!(got.0, [12, 16, 36, 32, 20, 7]);
    let want = halves.map(|h| f16::from_f32(h.to_f32() * 3.0));
    assert_eq!((&got.1[..5], got.1[5]), (&want[..5], f16::ZERO));
    Ok(())
}

#[test]
fn function_constants() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let run = |negate: bool, offset: i32| {
        everywhere("language.metal", |library: &Library, order: Order| {
            let mut out = [0f32; 5];
            let call = library.kernel("constants")?.buffer_mut(0, &mut out).order(order);
            call.constant(0, &u8::from(negate))
                .constant(1, &offset)
                .dispatch_threads([1, 1, 1], [1, 1, 1])?;
            Ok(out)
        })
    };
    assert_eq!(run(true, 2)?, [-1., 2., 30., 1. / 3., 1.]);
    assert_eq!(run(false, 0)?, [1., 0., 10., 1. / 3., 1.]);
    Ok(())
}

#[test]
fn atomics() -> Test {
    if !msl_sim::available() {
        return Ok(());
    }
    let input: Vec<u8> = (0..1000u32).map(|i| (i * 7 % 251 + 3) as u8).collect();
    let got = everywhere("language.metal", |library, order| {
        let (mut bins, mut low, mut sum) = ([0u32; 16], [999i32], [0f32]);
        let call =
            library.kernel("histogram")?.buffer(0, &input).buffer_mut(1, &mut bins).buffer_mut(2, &mut low);
        let call = call.buffer_mut(3, &mut sum).value(4, &1000u32).threadgroup(0, 64).order(order);
        call.dispatch_threads([1000, 1, 1], [96, 1, 1])?;
        Ok((bins, low, sum))
    })?;
    let mut bins = [0; 16];
    input.iter().for_each(|&v| bins[usize::from(v % 16)] += 1);
    // Integers below 2^24: the order of the additions does not matter.
    assert_eq!(got, (bins, [3], [input.iter().map(|&v| f32::from(v)).sum()]));
    Ok(())
}

//! Weights in MLX's memory: joined rows are stored once.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use rstest::rstest;
use zmlx_kernels::mlx::mlx_rs::{memory, ops, random};
use zmlx_kernels::mlx::{Array, MlxBackend, MlxWeight, Numerics, QuantizedExperts};
use zmlx_kernels::{Backend, Instrumented, QuantMode, QuantSpec};

const K: i32 = 2048;

fn matrix(n_out: i32, seed: u64) -> MlxWeight {
    let key = random::key(seed).unwrap();
    let values = random::normal::<f32>(&[n_out, K], None, 0.02, Some(&key)).unwrap();
    let (w, scales, biases) = ops::quantize(&values, 64, 4).unwrap();
    let spec = QuantSpec::new(QuantMode::Affine, 4, 64).unwrap();
    MlxWeight::from_experts(QuantizedExperts::new(w, scales, Some(biases), spec).unwrap()).unwrap()
}

fn values(b: &MlxBackend, x: &Array) -> Vec<u32> {
    let mut values = Vec::new();
    b.read(x, &mut values).unwrap();
    values.iter().map(|v| v.to_bits()).collect()
}

/// One test: others would change what MLX's allocator counts.
#[rstest]
fn joined_rows_are_stored_once_and_have_the_bits_of_their_parts() {
    let b = MlxBackend::new(Numerics::Exact).unwrap();
    let parts = [1024, 256, 256].map(|n| matrix(n, n as u64)).to_vec();
    let x = |n: i32| {
        let x = random::normal::<f32>(&[n, K], None, None, Some(&random::key(9).unwrap())).unwrap();
        x.eval().unwrap();
        x
    };
    let xs = [x(1), x(3)];
    let products = |x: &Array, parts: &[MlxWeight]| -> Vec<Array> {
        parts.iter().map(|w| b.linear(x, w).unwrap()).collect()
    };
    let want: Vec<Vec<Vec<u32>>> =
        xs.iter().map(|x| products(x, &parts).iter().map(|y| values(&b, y)).collect()).collect();
    let before = memory::active_memory().unwrap();
    let (whole, parts) = b.join_rows(parts).unwrap();
    let after = memory::active_memory().unwrap();
    // Each allocation is rounded up to whole pages.
    assert!(after <= before + (1 << 16), "{before} bytes became {after}");
    for (x, want) in xs.iter().zip(&want) {
        let got: Vec<Vec<u32>> = products(x, &parts).iter().map(|y| values(&b, y)).collect();
        assert!(got == *want, "other bits");
        let in_parts = b.linear_parts(x, &whole, [1024, 256, 256]).unwrap();
        assert!(in_parts.each_ref().map(|y| values(&b, y)) == want[..], "other bits in parts");
        let n = x.shape()[0] as usize;
        let (all, mut start) = (b.linear(x, &whole).unwrap(), 0);
        for want in want {
            let width = want.len() / n;
            let part = b.slice_last(&all, start..start + width).unwrap();
            assert!(values(&b, &part) == *want, "{n} rows, from {start}");
            start += width;
        }
    }
    // What was joined may be a part again.
    let more = b.concat_rows(&[&whole, &matrix(64, 5)]).unwrap();
    assert_eq!(b.shape(&b.linear(&xs[0], &more).unwrap()), [1, 1600]);
    let peak = b.peak_memory_bytes().unwrap();
    assert!(peak >= after as u64, "the peak {peak} is below {after}, which was in use");
}

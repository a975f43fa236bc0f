//! Calls that no model makes: sizes that overflow, and weights of two levels. Each is an error, never a panic.
//! `tools/fuzz-targets` tries random shapes for every op.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use bytes::Bytes;
use zmlx_core::{Backend, DType, Down, Error, HostWeight, WeightBytes, WeightFormat};
use zmlx_cpu::{Activations, CpuBackend, Level};

fn bf16(n_out: usize, n_in: usize) -> HostWeight {
    let data = Bytes::from(vec![0x80u8; n_out * n_in * 2]);
    let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
    HostWeight::new(WeightFormat::Dense(DType::BF16), [1, n_out, n_in], bytes).unwrap()
}

/// Dimensions whose product overflows, hidden by a zero or made by an op.
#[test]
fn sizes_that_wrap_are_refused() {
    let b = CpuBackend::new(Some(2)).unwrap();
    for shape in [&[1 << 62, 0, 8][..], &[0, usize::MAX], &[0, 1 << 30, 1 << 30], &[1 << 40, 0]] {
        let x = b.tensor(&[], shape);
        let indices = b.indices(&[], shape);
        // What is not refused here is refused by each op that would use it.
        if let Ok(x) = x {
            assert!(b.softmax(&x).is_err() && b.top_k(&x, 1).is_err(), "{shape:?}");
        }
        assert!(indices.is_err() || shape.len() == 2, "{shape:?}");
    }
    // 2^29 rows, times 2^20.
    let many = b.upload(bf16(1 << 20, 1)).unwrap();
    let wide = b.concat_rows(&[&many; 1 << 9]).unwrap();
    let y = b.linear(&b.tensor(&vec![1.0; 1 << 20], &[1 << 20, 1]).unwrap(), &wide);
    assert!(matches!(y.as_ref().err(), Some(Error::Precondition { .. })), "{y:?}");
    // 2^19 rows, times 2^30 tokens. None of them chose an expert.
    let down = b.upload(bf16(1 << 19, 8)).unwrap();
    let (no_experts, nothing) =
        (b.indices(&[], &[1 << 30, 0]).unwrap(), b.tensor(&[], &[1 << 30, 0]).unwrap());
    let rows = b.gather_qmm_combine(
        &b.tensor(&[], &[1 << 30, 0, 8]).unwrap(),
        Down::plain(&down),
        &no_experts,
        &nothing,
    );
    assert!(rows.is_err());
}

#[test]
fn weights_of_two_levels_are_not_joined() {
    let backends: Vec<_> =
        Level::supported().into_iter().map(|l| CpuBackend::with_level(l, Some(1)).unwrap()).collect();
    let coarse = CpuBackend::new(Some(1)).unwrap().with_activations(Activations::Int8);
    let fastest = CpuBackend::new(Some(1)).unwrap();
    assert!(
        fastest
            .concat_rows(&[&fastest.upload(bf16(2, 8)).unwrap(), &coarse.upload(bf16(2, 8)).unwrap()])
            .is_err()
    );
    for (i, a) in backends.iter().enumerate() {
        for (j, c) in backends.iter().enumerate() {
            let (wa, wc) = (a.upload(bf16(2, 8)).unwrap(), c.upload(bf16(2, 8)).unwrap());
            assert_eq!(a.concat_rows(&[&wa, &wc]).is_ok(), i == j);
        }
    }
}

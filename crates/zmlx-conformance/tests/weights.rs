//! What `HostWeight` and the formats refuse, and what they share. This needs no backend.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use bytes::Bytes;
use zmlx_conformance::inputs::TestWeight;
use zmlx_conformance::{bounds, cases};
use zmlx_core::{DType, Error, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat};

fn bytes(data: usize, scales: usize, biases: usize) -> WeightBytes {
    let zeros = |n: usize| Bytes::from(vec![0; n]);
    WeightBytes { data: zeros(data), scales: zeros(scales), biases: zeros(biases) }
}

fn affine(bits: usize, group_size: usize, scale_dtype: DType) -> WeightFormat {
    let spec = QuantSpec::new(QuantMode::Affine, bits, group_size).unwrap();
    WeightFormat::Quantized { spec, scale_dtype }
}

#[test]
fn formats_that_mlx_does_not_define() {
    for (mode, bits, group) in [
        (QuantMode::Affine, 7, 64),
        (QuantMode::Affine, 4, 16),
        (QuantMode::Affine, 0, 0),
        (QuantMode::Mxfp4, 8, 32),
        (QuantMode::Mxfp8, 8, 64),
        (QuantMode::Nvfp4, 4, 32),
    ] {
        let error = QuantSpec::new(mode, bits, group).unwrap_err();
        let named = matches!(&error, Error::Format { mode: m, bits: b, group_size: g }
            if (m.as_str(), *b, *g) == (mode.name(), bits, group));
        assert!(named, "{error}");
    }
}

#[test]
fn lengths_that_do_not_fit() {
    let format = affine(4, 32, DType::BF16);
    // 2 matrices of 3 rows of 64 weights: 192 bytes of words, 12 groups of 2 bytes.
    assert!(HostWeight::new(format, [2, 3, 64], bytes(192, 24, 24)).is_ok());
    for (sizes, want, n, want_n) in [
        (bytes(191, 24, 24), "weight", 191, 192),
        (bytes(192, 26, 24), "scales", 26, 24),
        (bytes(192, 24, 0), "biases", 0, 24),
    ] {
        let error = HostWeight::new(format, [2, 3, 64], sizes).unwrap_err();
        let named = matches!(error, Error::BufferLength { what, n_bytes, want_bytes, .. }
            if (what, n_bytes, want_bytes) == (want, n, want_n));
        assert!(named, "{error}");
    }
    let spec = QuantSpec::new(QuantMode::Mxfp4, 4, 32).unwrap();
    let format = WeightFormat::Quantized { spec, scale_dtype: DType::U8 };
    assert!(HostWeight::new(format, [1, 1, 32], bytes(16, 1, 0)).is_ok());
    let error = HostWeight::new(format, [1, 1, 32], bytes(16, 1, 1)).unwrap_err();
    assert!(matches!(error, Error::BufferLength { what: "biases", .. }), "{error}");
}

#[test]
fn shapes_and_types_that_do_not_fit() {
    let precondition = |format, shape, what_want: &str| {
        let error = HostWeight::new(format, shape, bytes(0, 0, 0)).unwrap_err();
        assert!(matches!(error, Error::Precondition { what, .. } if what == what_want), "{error}");
    };
    let format = affine(4, 64, DType::F32);
    precondition(format, [1, 1, 96], "n_in");
    precondition(format, [0, 1, 64], "shape");
    precondition(format, [1, 0, 64], "shape");
    precondition(format, [1, 1, 0], "shape");
    precondition(format, [usize::MAX, 2, 64], "shape");
    precondition(WeightFormat::Dense(DType::F32), [1, usize::MAX / 4, 1], "shape");
    precondition(affine(4, 64, DType::U8), [1, 1, 64], "scales");
    precondition(WeightFormat::Dense(DType::U32), [1, 1, 1], "dtype");
    precondition(WeightFormat::Dense(DType::U8), [1, 1, 1], "dtype");
    let spec = QuantSpec::new(QuantMode::Nvfp4, 4, 16).unwrap();
    precondition(WeightFormat::Quantized { spec, scale_dtype: DType::F32 }, [1, 1, 16], "scales");
}

#[test]
fn stacks() {
    let part = |format, seed| TestWeight::random(format, [1, 3, 128], seed).host;
    let (a, b) = (cases::quantised()[0], cases::quantised()[1]);
    let stack = HostWeight::stack(vec![part(a, 1), part(a, 2)]).unwrap();
    assert_eq!((stack.n_mats(), stack.n_out(), stack.n_in()), (2, 3, 128));
    assert_eq!(stack.to_f32_vec(), [part(a, 1).to_f32_vec(), part(a, 2).to_f32_vec()].concat());
    let wider = TestWeight::random(a, [1, 3, 256], 1).host;
    for parts in [vec![], vec![part(a, 1), part(b, 1)], vec![part(a, 1), wider]] {
        let error = HostWeight::stack(parts).unwrap_err();
        assert!(matches!(error, Error::Precondition { what: "parts", .. }), "{error}");
    }
}

/// Banks are sliced and not copied, and `to_f32_vec` agrees with the oracle.
#[test]
fn bytes_are_shared_and_values_are_right() {
    for format in cases::formats() {
        let w = TestWeight::random(format, [3, 2, 128], 1);
        let first = w.host.mat(0).data.as_ptr();
        assert_eq!(w.host.mat(1).data.as_ptr().addr() - first.addr(), w.host.mat(0).data.len());
        assert_eq!(w.host.clone().mat(0).data.as_ptr(), first);
        // The same bound as for `embed`.
        let want = bounds::Bounded::uniform(w.values.clone(), bounds::U);
        want.check(&w.host.to_f32_vec(), cases::name(format));
    }
}

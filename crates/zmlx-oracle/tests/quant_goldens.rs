//! Packing, quantising, dequantising and products with quantised weights, compared with recorded operations.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[path = "common/fixtures.rs"]
mod common;

use candle_core::{DType, Device, Tensor};
use common::ops;
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::TensorFile;
use zmlx_oracle::ops::{GatherInput, GatherMatmul, gather_matmul, matmul, swiglu};
use zmlx_oracle::quant::{Format, Mode, QuantizedMatrix, Scales, StorageDtype, dequantize, quantize};

const VERSIONS: [(&str, StorageDtype); 2] = [("f32", StorageDtype::F32), ("bf16", StorageDtype::BF16)];

/// The recorded quantised weight of the tensors whose names begin with `prefix`.
fn recorded(file: &TensorFile, prefix: &str, format: Format) -> QuantizedMatrix {
    let (scales, biases) = (format!("{prefix}scales"), format!("{prefix}biases"));
    let matrix = QuantizedMatrix {
        format,
        rows: 3 * 40,
        cols: 256,
        packed: file.bytes(&format!("{prefix}packed")).unwrap().data,
        scales: match format.mode {
            Mode::Affine => Scales::Float(file.floats(&scales).unwrap().data),
            _ => Scales::Codes(file.bytes(&scales).unwrap().data),
        },
        biases: file.contains(&biases).then(|| file.floats(&biases).unwrap().data),
    };
    matrix.check().unwrap();
    matrix
}

fn rounded(values: &[f32], dtype: StorageDtype) -> Vec<f32> {
    values.iter().map(|&x| dtype.round(x)).collect()
}

#[test]
fn quantiser_gives_the_recorded_words_scales_and_biases() {
    let inputs = ops("inputs");
    for format in Format::all() {
        let file = ops(&format.name());
        for (version, dtype) in VERSIONS {
            for (input, part) in [("w", ""), ("w_up", "up_")] {
                let w = rounded(&inputs.floats(input).unwrap().data, dtype);
                let got = quantize(&w, 256, format, dtype).unwrap();
                let want = recorded(&file, &format!("{version}.{part}"), format);
                assert!(got == want, "{} {version} {input}", format.name());
            }
        }
    }
}

#[test]
fn dequantiser_gives_the_recorded_values() {
    for format in Format::all() {
        let file = ops(&format.name());
        for (version, dtype) in VERSIONS {
            let got = recorded(&file, &format!("{version}."), format).dequantize_in(dtype);
            let want = file.floats(&format!("{version}.dequantized")).unwrap().data;
            let same = got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits());
            assert!(same && got.len() == want.len(), "{} {version}", format.name());
        }
    }
}

#[test]
fn tensors_dequantise_as_slices_do() {
    for format in Format::all() {
        let file = ops(&format.name());
        let words = file.ints("bf16.packed").unwrap();
        let packed = Tensor::from_vec(words.data, words.shape, &Device::Cpu).unwrap();
        let scales = if format.mode == Mode::Affine {
            let scales = file.floats("bf16.scales").unwrap();
            let scales = Tensor::from_vec(scales.data, scales.shape, &Device::Cpu).unwrap();
            scales.to_dtype(DType::BF16).unwrap()
        } else {
            let scales = file.bytes("bf16.scales").unwrap();
            Tensor::from_vec(scales.data, scales.shape, &Device::Cpu).unwrap()
        };
        let biases = file.floats("bf16.biases").ok();
        let biases = biases.map(|b| Tensor::from_vec(b.data, b.shape, &Device::Cpu).unwrap());
        let got = dequantize(&packed, &scales, biases.as_ref(), format).unwrap();
        assert_eq!(got.dims(), [3, 40, 256]);
        let want = recorded(&file, "bf16.", format).dequantize();
        assert_eq!(got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want, "{}", format.name());
    }
}

/// Bounds of the relative RMS for products and for SwiGLU.
///
/// f32: sums of 256 products in single precision differ by a random walk of about √256 · 2^-24 = 1e-6 of the result;
/// SwiGLU multiplies two of these (the largest measured values are 3.1e-7 and 5.1e-7). bf16: the recorded engine adds
/// all products in bfloat16, see [`bf16_kernels_round_after_every_operation`], about √256 · 2^-9 = 3e-2 (the largest
/// measured values are 2.1e-2 and 3.0e-2).
fn bounds(dtype: StorageDtype) -> [f64; 2] {
    if dtype == StorageDtype::F32 { [1e-6, 2e-6] } else { [3e-2, 4e-2] }
}

#[test]
fn products_agree_with_the_recorded_ones() {
    let inputs = ops("inputs");
    let indices = inputs.ints("indices").unwrap().data;
    let sizes =
        GatherMatmul { n_tokens: 5, top_k: 2, n_experts: 3, n: 40, k: 256, input: GatherInput::PerToken };
    for format in Format::all() {
        let file = ops(&format.name());
        for (version, dtype) in VERSIONS {
            let want = |name: &str| file.floats(&format!("{version}.{name}")).unwrap().data;
            let x = rounded(&inputs.floats("x").unwrap().data, dtype);
            let w = recorded(&file, &format!("{version}."), format).dequantize_f64();
            let w_up = recorded(&file, &format!("{version}.up_"), format).dequantize_f64();
            let gate = gather_matmul(&x, &w, &indices, sizes);
            let up = gather_matmul(&x, &w_up, &indices, sizes);
            let [product, product_of_two] = bounds(dtype);
            let results = [
                ("y", matmul(&x, &w[..40 * 256], 5, 40, 256), product),
                ("swiglu", swiglu(&gate, &up), product_of_two),
                ("gather", gate, product),
                ("gather_up", up, product),
            ];
            for (name, got, bound) in results {
                let error = rel_rms(&got, &want(name));
                assert!(error <= bound, "{} {version} {name}: relative RMS {error:e}", format.name());
            }
        }
    }
}

/// The reason for the wide bfloat16 bounds above: rounding to bfloat16 after every product and every addition, in
/// order, gives the recorded results bit for bit. The floating-point modes first add within a group, then scale.
#[test]
fn bf16_kernels_round_after_every_operation() {
    let round = |x: f32| StorageDtype::BF16.round(x);
    let x: Vec<f32> = ops("inputs").floats("x").unwrap().data.into_iter().map(round).collect();
    for format in Format::all() {
        let file = ops(&format.name());
        let w = recorded(&file, "bf16.", format);
        let values = w.dequantize_in(StorageDtype::BF16);
        let want = file.floats("bf16.y").unwrap().data;
        let got: Vec<f32> = (0..5 * 40)
            .map(|i| {
                let (x, col) = (&x[i / 40 * 256..][..256], i % 40);
                if format.mode == Mode::Affine {
                    let row = &values[col * 256..][..256];
                    return x.iter().zip(row).fold(0.0, |sum, (x, w)| round(sum + round(x * w)));
                }
                let groups = x.chunks(format.group_size).enumerate();
                groups.fold(0.0, |sum, (group_idx, x)| {
                    let first = group_idx * format.group_size;
                    let elements = (first..).map(|at| w.element(col, at));
                    let group = x.iter().zip(elements).fold(0.0, |sum, (x, e)| round(sum + round(x * e)));
                    round(sum + round(group * w.scale_bias(col, first).0))
                })
            })
            .collect();
        assert_eq!(got, want, "{}", format.name());
    }
}

//! Packing, quantising, dequantising and the products with quantised weights against the recorded operations.

mod common;

use candle_core::{DType, Device, Tensor};
use common::ops;
use zmlx_oracle::compare::{max_abs, rel_rms};
use zmlx_oracle::golden::TensorFile;
use zmlx_oracle::ops::{GatherInput, GatherMatmul, gather_matmul, matmul, swiglu};
use zmlx_oracle::quant::{Format, Mode, QuantizedMatrix, Scales, StorageDtype, dequantize, quantize};

const VERSIONS: [(&str, StorageDtype); 2] = [("f32", StorageDtype::F32), ("bf16", StorageDtype::BF16)];

/// The recorded quantised weight whose tensors' names begin with `prefix`.
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

#[test]
fn products_agree_with_the_recorded_ones() {
    let inputs = ops("inputs");
    let indices = inputs.ints("indices").unwrap().data;
    let sizes =
        GatherMatmul { n_tokens: 5, top_k: 2, n_experts: 3, n: 40, k: 256, input: GatherInput::PerToken };
    let mut worst = [0f64; 2];
    for format in Format::all() {
        let file = ops(&format.name());
        for (v, (version, dtype)) in VERSIONS.into_iter().enumerate() {
            let want = |name: &str| file.floats(&format!("{version}.{name}")).unwrap().data;
            let x = rounded(&inputs.floats("x").unwrap().data, dtype);
            let w = recorded(&file, &format!("{version}."), format).dequantize_f64();
            let w_up = recorded(&file, &format!("{version}.up_"), format).dequantize_f64();
            let gate = gather_matmul(&x, &w, &indices, sizes);
            let up = gather_matmul(&x, &w_up, &indices, sizes);
            let results = [
                ("y", matmul(&x, &w[..40 * 256], 5, 40, 256)),
                ("gather_up", up.clone()),
                ("swiglu", swiglu(&gate, &up)),
                ("gather", gate),
            ];
            for (name, got) in results {
                let (error, most) = (rel_rms(&got, &want(name)), max_abs(&got, &want(name)));
                worst[v] = worst[v].max(error);
                println!("{} {version} {name}: {error:.2e} {most:.2e}", format.name());
            }
        }
    }
    println!("{worst:?}");
    panic!();
}

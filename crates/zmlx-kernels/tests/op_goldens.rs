//! The quantised formats against buffers recorded with MLX 0.32.2: bit for bit.

use std::path::Path;

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use zmlx_kernels::quant::{dequantize, pack, quantize, unpack};
use zmlx_kernels::{DType, QuantMode, QuantSpec};

fn read(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/ops");
    std::fs::read(dir.join(name)).unwrap()
}

fn file_name(spec: QuantSpec) -> String {
    format!("{}_b{}_g{}.safetensors", spec.mode().name(), spec.bits(), spec.group_size())
}

fn f32s(st: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let t = st.tensor(name).unwrap();
    let dtype = match t.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        other => panic!("{name} is {other:?}"),
    };
    dtype.to_f32_vec(t.data())
}

#[test]
fn quantize_and_dequantize_equal_mlx_in_every_format() {
    let inputs = read("inputs.safetensors");
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    for spec in QuantSpec::all() {
        let file = read(&file_name(spec));
        let st = SafeTensors::deserialize(&file).unwrap();
        for (prefix, float) in [("f32", DType::F32), ("bf16", DType::BF16)] {
            let round = |w: f32| if float == DType::BF16 { bf16::from_f32(w).to_f32() } else { w };
            let scale_dtype = if spec.mode() == QuantMode::Affine { float } else { DType::U8 };
            for (source, part) in [("w", ""), ("w_up", "up_")] {
                let w: Vec<f32> = f32s(&inputs, source).into_iter().map(round).collect();
                let got = quantize(spec, scale_dtype, &w, 256).unwrap();
                let bytes = |what: &str| st.tensor(&format!("{prefix}.{part}{what}")).unwrap().data().to_vec();
                assert!(got.scales == bytes("scales"), "{spec} {prefix} {source} scales");
                assert!(got.data == bytes("packed"), "{spec} {prefix} {source} packed");
                if spec.has_biases() {
                    assert!(got.biases == bytes("biases"), "{spec} {prefix} {source} biases");
                }
                assert_eq!(pack(spec.bits(), &unpack(spec.bits(), &got.data)), got.data);
                if part.is_empty() && float == DType::F32 {
                    let back = dequantize(spec, scale_dtype, &got.data, &got.scales, &got.biases);
                    assert!(back == f32s(&st, "f32.dequantized"), "{spec} dequantized");
                }
            }
        }
    }
}

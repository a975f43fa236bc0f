//! The quantised formats against buffers recorded with MLX 0.32.2: bit for bit.

use std::path::Path;

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use zmlx_core::quant::{dequantize, pack, quantize, unpack};
use zmlx_core::{Backend, DType, GateUp, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat};
use zmlx_cpu::CpuBackend;

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
                let bytes =
                    |what: &str| st.tensor(&format!("{prefix}.{part}{what}")).unwrap().data().to_vec();
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

/// The recorded weight `part` (`""` or `"up_"`) of a format: all experts or only the first.
fn weight(st: &SafeTensors<'_>, spec: QuantSpec, part: &str, n_mats: usize) -> HostWeight {
    let bytes = |what: &str| match st.tensor(&format!("f32.{part}{what}")) {
        Ok(t) => bytes::Bytes::copy_from_slice(&t.data()[..t.data().len() / 3 * n_mats]),
        Err(_) => bytes::Bytes::new(),
    };
    let scale_dtype = if spec.has_biases() { DType::F32 } else { DType::U8 };
    let parts = WeightBytes { data: bytes("packed"), scales: bytes("scales"), biases: bytes("biases") };
    HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, [n_mats, 40, 256], parts).unwrap()
}

#[test]
fn products_equal_mlx_within_rounding_on_every_level() {
    let inputs = read("inputs.safetensors");
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let x = f32s(&inputs, "x");
    let indices: Vec<u32> = inputs
        .tensor("indices")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    for level in crate::levels() {
        let backend = CpuBackend::with_level(level, Some(2)).unwrap();
        let x = backend.tensor(&x, &[5, 256]).unwrap();
        let experts = backend.indices(&indices, &[5, 2]).unwrap();
        for spec in QuantSpec::all() {
            let file = read(&file_name(spec));
            let st = SafeTensors::deserialize(&file).unwrap();
            let one = backend.upload(weight(&st, spec, "", 1)).unwrap();
            let gate = backend.upload(weight(&st, spec, "", 3)).unwrap();
            let up = backend.upload(weight(&st, spec, "up_", 3)).unwrap();
            let mut got = Vec::new();
            let mut check = |y: zmlx_cpu::CpuTensor, name: &str| {
                backend.read(&y, &mut got).unwrap();
                let want = f32s(&st, &format!("f32.{name}"));
                assert_eq!(got.len(), want.len());
                // With activations of 16 bits the difference is at most 1.0e-4, where swiglu is largest.
                let bound = 2e-4;
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                let finite = got.iter().all(|v| v.is_finite());
                assert!(finite && worst <= bound, "{level:?} {spec} {name}: off by {worst}");
            };
            check(backend.linear(&x, &one).unwrap(), "y");
            check(backend.gather_linear(&x, &gate, &experts).unwrap(), "gather");
            check(backend.gather_linear(&x, &up, &experts).unwrap(), "gather_up");
            let weights = GateUp::swiglu(&gate, &up);
            check(backend.gather_qmm_swiglu(&x, weights, &experts).unwrap(), "swiglu");
        }
    }
}

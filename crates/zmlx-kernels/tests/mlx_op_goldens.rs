//! Single ops of the MLX backend against the recordings of the same MLX: bit for bit, in every format, in f32 and bf16.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::Path;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use zmlx_kernels::mlx::mlx_rs::Dtype as MlxDtype;
use zmlx_kernels::mlx::{Array, MlxBackend, Numerics};
use zmlx_kernels::{Backend, DType, GateUp, HostWeight, QuantSpec, WeightBytes, WeightFormat};

fn read(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden/ops");
    std::fs::read(dir.join(name)).unwrap()
}

fn floats(st: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let t = st.tensor(name).unwrap();
    let dtype = match t.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        other => panic!("{name} is {other:?}"),
    };
    dtype.to_f32_vec(t.data())
}

/// The recorded weight `part` (`""` or `"up_"`) of a format, `n_mats` experts from the first.
fn weight(st: &SafeTensors<'_>, spec: QuantSpec, part: &str, float: DType, n_mats: usize) -> HostWeight {
    let prefix = if float == DType::BF16 { "bf16" } else { "f32" };
    let bytes = |what: &str| match st.tensor(&format!("{prefix}.{part}{what}")) {
        Ok(t) => Bytes::copy_from_slice(&t.data()[..t.data().len() / 3 * n_mats]),
        Err(_) => Bytes::new(),
    };
    let scale_dtype = if spec.has_biases() { float } else { DType::U8 };
    let parts = WeightBytes { data: bytes("packed"), scales: bytes("scales"), biases: bytes("biases") };
    HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, [n_mats, 40, 256], parts).unwrap()
}

#[test]
fn products_have_the_recorded_bits() {
    let b = MlxBackend::new(Numerics::Exact).unwrap();
    let inputs = read("inputs.safetensors");
    let inputs = SafeTensors::deserialize(&inputs).unwrap();
    let x = b.tensor(&floats(&inputs, "x"), &[5, 256]).unwrap();
    let indices: Vec<u32> = inputs
        .tensor("indices")
        .unwrap()
        .data()
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let experts = b.indices(&indices, &[5, 2]).unwrap();
    let mut n_checked = 0;
    for spec in QuantSpec::all() {
        let name = format!("{}_b{}_g{}.safetensors", spec.mode().name(), spec.bits(), spec.group_size());
        let file = read(&name);
        let st = SafeTensors::deserialize(&file).unwrap();
        for (prefix, float, dtype) in
            [("f32", DType::F32, MlxDtype::Float32), ("bf16", DType::BF16, MlxDtype::Bfloat16)]
        {
            let x = x.as_dtype(dtype).unwrap();
            let load = |part: &str, n_mats| b.upload(weight(&st, spec, part, float, n_mats)).unwrap();
            let (one, gate, up) = (load("", 1), load("", 3), load("up_", 3));
            let mut got = Vec::new();
            let mut check = |y: Array, what: &str| {
                b.read(&y, &mut got).unwrap();
                assert!(got == floats(&st, &format!("{prefix}.{what}")), "{spec} {prefix} {what}");
                n_checked += 1;
            };
            check(b.linear(&x, &one).unwrap(), "y");
            check(b.gather_linear(&x, &gate, &experts).unwrap(), "gather");
            check(b.gather_linear(&x, &up, &experts).unwrap(), "gather_up");
            let weights = GateUp::swiglu(&gate, &up);
            check(b.gather_qmm_swiglu(&x, weights, &experts).unwrap(), "swiglu");
            // The first expert's rows.
            if dtype == MlxDtype::Bfloat16 || spec.has_biases() {
                let ids = b.indices(&(0..40).collect::<Vec<_>>(), &[40]).unwrap();
                b.read(&b.embed(&one, &ids).unwrap(), &mut got).unwrap();
                let want = floats(&st, &format!("{prefix}.dequantized"));
                assert!(got == want[..40 * 256], "{spec} {prefix} dequantized");
            }
        }
    }
    assert_eq!(n_checked, 21 * 2 * 4, "every format in both types");
}

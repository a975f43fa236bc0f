//! Checkpoints in Hugging Face's layout, built as `fixtures/convert/record.py` builds them.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// The recording.
pub(crate) fn recording() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/convert/recorded.json");
    crate::json(&path)
}

/// The values of a tensor, which follow from its name.
pub(crate) fn values(name: &str, n: usize) -> Vec<f32> {
    let fnv = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    let start = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let value = |i: usize| {
        let mut z = start.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let x = ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) / 16.0;
        if name.ends_with("norm.weight") {
            return x + 1.0;
        }
        let group = i / 32;
        if group % 11 == 3 {
            return 0.0;
        }
        if group % 13 == 5 {
            return 0.40625;
        }
        let x = if i.is_multiple_of(97) { x * 8.0 } else { x };
        let x = if group % 17 == 2 { x.abs() } else { x };
        if group % 19 == 4 { x * 2f32.powi(-18) } else { x }
    };
    (0..n).map(value).collect()
}

/// Writes a source of the recording.
pub(crate) fn write(source: &Value, dir: &Path) {
    let dtype = match source["dtype"].as_str().unwrap() {
        "BF16" => Dtype::BF16,
        "F16" => Dtype::F16,
        _ => Dtype::F32,
    };
    let always_f32: Vec<&str> =
        source["f32"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    let mut tensors = Vec::new();
    for (name, shape) in source["tensors"].as_object().unwrap() {
        let shape: Vec<usize> =
            shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let dtype = if always_f32.contains(&name.as_str()) { Dtype::F32 } else { dtype };
        let values = values(name, shape.iter().product());
        tensors.push((name.clone(), dtype, shape, bytes(dtype, &values)));
    }
    write_files(dir, &source["config"], &tensors);
}

/// A tensor to write.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn write_files(dir: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::create_dir_all(dir).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("generation_config.json"), json!({ "eos_token_id": [1, 2] }).to_string())
        .unwrap();
}

pub(crate) fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// A source of the recording, in a folder of its own.
pub(crate) fn source(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&recording()["sources"][name], dir.path());
    dir
}

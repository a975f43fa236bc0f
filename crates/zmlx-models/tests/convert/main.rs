//! Conversion: the bytes of mlx-lm's converter, interruptions, and everything that is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod families;
mod recorded;
mod refused;
mod report;
mod sources;
mod unfinished;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use zmlx_kernels::QuantMode;
use zmlx_models::{Action, Checkpoint, ConvertOptions, Converted, Quantize, Result, convert};

/// The first 12 digits of the SHA-256.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The type, shape and digest of every tensor in a folder, in the form of the recording.
fn describe(dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let shape: Vec<String> = view.shape().iter().map(ToString::to_string).collect();
            let text = format!("{} {} {}", view.dtype(), shape.join(","), digest(view.data()));
            assert!(all.insert(tensor.clone(), text).is_none(), "{tensor} is there twice");
        }
    }
    all
}

/// The digest of the description of a folder's tensors, written as Python's json.dumps writes it.
fn digest_of_folder(dir: &Path) -> String {
    let described: Vec<String> = describe(dir).iter().map(|(k, v)| format!("\"{k}\": \"{v}\"")).collect();
    digest(format!("{{{}}}", described.join(", ")).as_bytes())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Quantises to affine formats.
fn affine(bits: usize, group_size: usize) -> ConvertOptions {
    let (bits, group_size) = (Some(bits), Some(group_size));
    let quantize = Quantize { mode: QuantMode::Affine, bits, group_size, recipe: None };
    ConvertOptions::new(Action::Quantize(quantize))
}

fn convert_to_end(source: &Path, dir: &Path, options: &ConvertOptions) -> Result<Converted> {
    convert(&Checkpoint::open(source)?, dir, options, &mut |_, _| ControlFlow::Continue(()))
}

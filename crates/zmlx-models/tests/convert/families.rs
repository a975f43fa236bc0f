//! Converts the tiny checkpoint of every family, which is in MLX's layout. Tensors that are kept do not change. Tensors that
//! are dequantised, and then quantised again, have the same bytes as those of mlx-lm.

use std::path::PathBuf;

use rstest::rstest;
use zmlx_models::{Action, Checkpoint, ConvertOptions};

use crate::{convert_to_end, describe, digest_of_folder, json, recorded};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

#[rstest]
fn every_tensor_is_kept(#[files("../../fixtures/families/*/config.json")] config: PathBuf) {
    let source = config.parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    convert_to_end(source, &out, &ConvertOptions::new(Action::Keep)).unwrap();
    let (before, after) = (describe(source), describe(&out));
    for (name, tensor) in &after {
        assert_eq!(Some(tensor), before.get(name), "{name}");
    }
    // A missing tensor belongs to another model, to a layer after the last one, or is not used for inference.
    let converted = Checkpoint::open(source).unwrap();
    let n_layers = converted.architecture().layers.len();
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        let (_, behind) = name.split_once("layers.").unwrap_or_default();
        let layer_idx = behind.split('.').next().and_then(|number| number.parse::<usize>().ok());
        let is_past = layer_idx.is_some_and(|layer_idx| layer_idx >= n_layers);
        let is_other = ["vision", "mtp", "rotary_emb", "audio"].iter().any(|part| name.contains(part));
        assert!(is_past || is_other, "{name} is missing");
    }
}

#[test]
fn families_convert_as_in_mlx_lm() {
    let recording = json(&fixtures().join("convert/families.json"));
    let families = recording.as_array().unwrap();
    assert!(families.len() >= 10);
    for recorded in families {
        let family = recorded["family"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (source, dense) = (fixtures().join("families").join(family), dir.path().join("0"));
        for (i, case) in recorded["cases"].as_array().unwrap().iter().enumerate() {
            let (from, to) = (if i == 0 { &source } else { &dense }, dir.path().join(i.to_string()));
            convert_to_end(from, &to, &recorded::options(&case["arguments"])).unwrap();
            assert_eq!(case["sha256"], digest_of_folder(&to), "{family}, {}", case["arguments"]);
        }
    }
}

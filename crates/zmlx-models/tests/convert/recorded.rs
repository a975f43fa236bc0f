//! Every recorded conversion of mlx-lm gives the same bytes here.

use std::collections::BTreeMap;

use serde_json::Value;
use zmlx_kernels::{DType, QuantMode};
use zmlx_models::{Action, Checkpoint, ConvertOptions, Quantize, Recipe};

use crate::{convert_to_end, describe, json, sources};

/// The arguments of mlx_lm.convert as options.
pub(crate) fn options(arguments: &Value) -> ConvertOptions {
    let count = |key: &str| arguments[key].as_u64().map(|n| n as usize);
    let quantize = || Quantize {
        mode: QuantMode::from_name(arguments["q_mode"].as_str().unwrap()).unwrap(),
        bits: count("q_bits"),
        group_size: count("q_group_size"),
        recipe: arguments["quant_predicate"].as_str().map(|name| Recipe::from_name(name).unwrap()),
    };
    let action = match (&arguments["quantize"], &arguments["dequantize"]) {
        (Value::Bool(true), _) => Action::Quantize(quantize()),
        (_, Value::Bool(true)) => Action::Dequantize,
        _ => Action::Keep,
    };
    let dtype = arguments["dtype"].as_str().map(|name| match name {
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        "float32" => DType::F32,
        other => panic!("{other}"),
    });
    // The number of threads and of shards does not change a byte.
    ConvertOptions { dtype, n_threads: Some(3), max_shard_bytes: 40_000, ..ConvertOptions::new(action) }
}

fn without_latents(tensors: BTreeMap<String, String>) -> BTreeMap<String, String> {
    tensors
        .into_iter()
        .filter(|(name, _)| !name.contains("embed_q") && !name.contains("unembed_out"))
        .collect()
}

#[test]
fn conversions_are_those_of_mlx_lm() {
    let recording = sources::recording();
    let root = tempfile::tempdir().unwrap();
    for (name, source) in recording["sources"].as_object().unwrap() {
        let dir = root.path().join(name);
        sources::write(source, &dir);
        assert_eq!(
            source["sha256"],
            crate::digest_of_folder(&dir),
            "{name} is not made as it was for the recording"
        );
    }
    let cases = recording["cases"].as_array().unwrap();
    assert!(cases.len() >= 60);
    for (i, case) in cases.iter().enumerate() {
        let from = match case["source"].as_str() {
            Some(name) => root.path().join(name),
            None => root.path().join(format!("case{}", case["of"])),
        };
        let what = format!("case {i}: {} of {}", case["arguments"], from.display());
        let dir = root.path().join(format!("case{i}"));
        let options = options(&case["arguments"]);
        let converted = convert_to_end(&from, &dir, &options).unwrap_or_else(|e| panic!("{what}: {e}"));

        let mut want: BTreeMap<String, String> = serde_json::from_value(case["tensors"].clone()).unwrap();
        let mut got = describe(&dir);
        let leaves_latents =
            options.action == Action::Dequantize && want.keys().any(|name| name.contains("embed_q"));
        if leaves_latents {
            // mlx-lm leaves these quantised and does not say how.
            (want, got) = (without_latents(want), without_latents(got));
        }
        for (name, want) in &want {
            assert_eq!(got.get(name), Some(want), "{what}: {name}");
        }
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let want = case["config"].as_str().unwrap();
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(value(&config) == value(want), "{what}: config.json differs: {config}");
        // With a recipe every matrix has an entry, and within a layer the order of entries differs.
        assert!(config == want || case["arguments"]["quant_predicate"].is_string(), "{what}: {config}");

        let index = json(&dir.join("model.safetensors.index.json"));
        if !leaves_latents {
            assert_eq!(index["metadata"], case["metadata"], "{what}");
            assert_eq!(case["metadata"]["total_size"], converted.total_bytes, "{what}");
        }
        let map = index["weight_map"].as_object().unwrap();
        assert!(map.keys().map(String::as_str).is_sorted());
        for (tensor, file) in map {
            let bytes = std::fs::read(dir.join(file.as_str().unwrap())).unwrap();
            let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            assert!(metadata.info(tensor).is_some(), "{what}: {tensor} is not in {file}");
            assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "mlx");
        }
        assert!(dir.join("generation_config.json").is_file());
        // Everything that was written can be loaded.
        assert_eq!(Checkpoint::open(&dir).unwrap().shards(), converted.shards, "{what}");
    }
}

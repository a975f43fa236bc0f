//! Sources, settings and folders that cannot be used give errors that name them, and nothing is written.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};
use zmlx_kernels::{DType, QuantMode};
use zmlx_models::{Action, ConvertOptions, Quantize, Recipe};

use crate::sources::{self, Tensor};
use crate::{affine, convert_to_end};

/// Runs a conversion that must be refused. The message contains every text, and the folder is not created.
#[track_caller]
fn refused(source: &Path, options: &ConvertOptions, texts: &[&str]) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let error = convert_to_end(source, &dir, options).unwrap_err().to_string();
    for text in texts {
        assert!(error.contains(text), "{text:?} is not in {error}");
    }
    assert!(!dir.exists());
}

/// A source with a changed config or changed tensors.
fn changed(config: impl FnOnce(&mut Value), tensors: impl FnOnce(&mut Vec<Tensor>)) -> tempfile::TempDir {
    let mut source = sources::recording()["sources"]["qwen3_moe"].clone();
    source["config"]["num_hidden_layers"] = 1.into();
    source["config"]["mlp_only_layers"] = json!([]);
    config(&mut source["config"]);
    let mut all = Vec::new();
    for (name, shape) in source["tensors"].as_object().unwrap() {
        if name.starts_with("model.layers.") && !name.starts_with("model.layers.0.") {
            continue;
        }
        let shape: Vec<usize> =
            shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let values = sources::values(name, shape.iter().product());
        all.push((name.clone(), Dtype::BF16, shape, sources::bytes(Dtype::BF16, &values)));
    }
    tensors(&mut all);
    let dir = tempfile::tempdir().unwrap();
    sources::write_files(dir.path(), &source["config"], &all);
    dir
}

fn tensor<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|t| t.0 == name).unwrap()
}

#[test]
fn folders_that_are_no_models() {
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &affine(4, 64), &["config.json"]);
    refused(&empty.path().join("no-such"), &affine(4, 64), &["config.json"]);
    std::fs::write(empty.path().join("config.json"), "{}").unwrap();
    refused(empty.path(), &affine(4, 64), &["config.json", "model_type"]);
    let source = changed(|c| drop(c.as_object_mut().unwrap().shift_remove("hidden_size")), |_| ());
    refused(source.path(), &affine(4, 64), &["config.json", "hidden_size"]);
    let source = changed(|_| (), |_| ());
    let weights = source.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for n in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&weights, &whole[..n]).unwrap();
        refused(source.path(), &affine(4, 64), &["model.safetensors"]);
    }
    std::fs::remove_file(&weights).unwrap();
    refused(source.path(), &affine(4, 64), &["model*.safetensors"]);
}

#[test]
fn tensors_that_do_not_fit() {
    let up = "model.layers.0.mlp.experts.1.up_proj.weight";
    let source = changed(|_| (), |t| t.retain(|t| t.0 != up));
    refused(source.path(), &affine(4, 64), &[up, "missing"]);
    let source = changed(|_| (), |t| tensor(t, up).2 = vec![32, 128]);
    refused(source.path(), &affine(4, 64), &["up_proj", "expected shape [64, 64], got [32, 128]"]);
    let source = changed(
        |_| (),
        |t| t.push(("model.layers.0.mlp.extra.weight".into(), Dtype::BF16, vec![1], vec![0, 0])),
    );
    refused(source.path(), &affine(4, 64), &["model.layers.0.mlp.extra.weight", "no such tensor"]);
    let fp8 = |t: &mut Vec<Tensor>| {
        let t = tensor(t, "model.layers.0.self_attn.q_proj.weight");
        (t.1, t.3) = (Dtype::F8_E4M3, vec![0; 64 * 64]);
    };
    refused(
        changed(|_| (), fp8).path(),
        &affine(4, 64),
        &["q_proj.weight", "F8_E4M3", "expected F32, F16, BF16"],
    );
    // Experts of two types cannot be stacked.
    let mixed = |t: &mut Vec<Tensor>| {
        let t = tensor(t, up);
        (t.1, t.3) = (Dtype::F32, vec![0; 4 * 64 * 64]);
    };
    refused(changed(|_| (), mixed).path(), &affine(4, 64), &["up_proj", "experts of one format"]);
}

#[test]
fn values_that_cannot_be_quantised() {
    let spoil = |t: &mut Vec<Tensor>| {
        let data = &mut tensor(t, "model.layers.0.self_attn.q_proj.weight").3;
        data[200..202].copy_from_slice(&[0x80, 0x7f]);
    };
    let source = changed(|_| (), spoil);
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let error = convert_to_end(source.path(), &dir, &affine(4, 64)).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.self_attn.q_proj") && error.contains("inf at 100"), "{error}");
    assert!(!dir.join("config.json").exists());
    // A tensor that is only copied may hold any values.
    convert_to_end(source.path(), &root.path().join("copy"), &ConvertOptions::new(Action::Keep)).unwrap();
}

#[test]
fn settings_that_exclude_each_other() {
    let source = changed(|_| (), |_| ());
    let quantize = |mode, bits, group_size, recipe| {
        ConvertOptions::new(Action::Quantize(Quantize { mode, bits, group_size, recipe }))
    };
    refused(source.path(), &affine(7, 64), &["7 bits in groups of 64", "2, 3, 4, 5, 6 or 8"]);
    refused(source.path(), &affine(4, 48), &["groups of 48"]);
    let mxfp4 = |bits, group, recipe| quantize(QuantMode::Mxfp4, bits, group, recipe);
    refused(source.path(), &mxfp4(Some(8), None, None), &["mxfp4 with 8 bits"]);
    refused(source.path(), &mxfp4(None, Some(64), None), &["mxfp4 with 4 bits in groups of 64"]);
    refused(source.path(), &mxfp4(None, None, Some(Recipe::Mixed3_6)), &["recipe", "affine", "mxfp4"]);
    let odd = ConvertOptions { dtype: Some(DType::U8), ..affine(4, 64) };
    refused(source.path(), &odd, &["dtype", "U8"]);
    // A router with 8 bits in groups of 64 needs rows of a multiple of 64.
    let narrow = |c: &mut Value| {
        c["hidden_size"] = 96.into();
    };
    let tensors = |all: &mut Vec<Tensor>| {
        for t in all.iter_mut() {
            let is_down = t.0.ends_with("down_proj.weight") || t.0.ends_with("o_proj.weight");
            let (first, last) = (t.2[0], *t.2.last().unwrap());
            t.2 = match t.2.len() {
                1 if t.0.contains("layernorm") || t.0 == "model.norm.weight" => vec![96],
                1 => vec![first],
                _ if is_down => vec![96, last],
                _ => vec![first, 96],
            };
            t.3 = vec![0; 2 * t.2.iter().product::<usize>()];
        }
    };
    refused(changed(narrow, tensors).path(), &affine(4, 32), &["mlp.gate", "multiple of 64", "96"]);
}

#[test]
fn folders_that_hold_something() {
    let source = changed(|_| (), |_| ());
    let message = |dir: &Path| convert_to_end(source.path(), dir, &affine(4, 64)).unwrap_err().to_string();
    let before = std::fs::read_dir(source.path()).unwrap().count();
    let error = message(source.path());
    assert!(error.contains("new or empty folder") && error.contains("got one with"), "{error}");
    assert_eq!(std::fs::read_dir(source.path()).unwrap().count(), before);
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(message(&file).contains("a file of that name"));
    assert!(message(&file.join("below")).contains("file"));
    // An empty folder works, and so does a folder that does not exist yet, even if its parents do not exist.
    convert_to_end(source.path(), &root.path().join("a/b/c"), &affine(4, 64)).unwrap();
    let empty = tempfile::tempdir().unwrap();
    convert_to_end(source.path(), empty.path(), &affine(4, 64)).unwrap();
    let error = message(empty.path());
    assert!(error.contains("got one with"), "a finished conversion is not overwritten: {error}");
}

/// A source that is larger than the disk: a sparse file.
#[test]
#[cfg(unix)]
fn a_full_disk_is_known_before_the_first_byte() {
    const ROWS: u64 = 1 << 24;
    const WIDTH: u64 = 1 << 17;
    let config = json!({
        "model_type": "qwen3", "hidden_size": WIDTH, "num_hidden_layers": 1, "intermediate_size": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "vocab_size": ROWS,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true
    });
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![ROWS, WIDTH]),
        ("model.norm.weight".to_owned(), vec![WIDTH]),
        (layer("input_layernorm"), vec![WIDTH]),
        (layer("post_attention_layernorm"), vec![WIDTH]),
        (layer("self_attn.q_proj"), vec![2, WIDTH]),
        (layer("self_attn.k_proj"), vec![2, WIDTH]),
        (layer("self_attn.v_proj"), vec![2, WIDTH]),
        (layer("self_attn.o_proj"), vec![WIDTH, 2]),
        (layer("self_attn.q_norm"), vec![2]),
        (layer("self_attn.k_norm"), vec![2]),
        (layer("mlp.gate_proj"), vec![1, WIDTH]),
        (layer("mlp.up_proj"), vec![1, WIDTH]),
        (layer("mlp.down_proj"), vec![WIDTH, 1]),
    ];
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let n_bytes = 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, at + n_bytes] }));
        at += n_bytes;
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("config.json"), config.to_string()).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let path = source.path().join("model.safetensors");
    std::fs::write(&path, &file).unwrap();
    let all = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    // 4 TiB. File systems without sparse files, and disks with enough space, are not tested.
    if all.set_len(file.len() as u64 + at).is_err() {
        return;
    }
    let free = nix::sys::statvfs::statvfs(source.path()).unwrap();
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "not useless on other systems")]
    if free.blocks_available() as u64 * free.fragment_size() as u64 > at {
        return;
    }
    refused(source.path(), &ConvertOptions::new(Action::Keep), &["out: ", "bytes are needed", "are free"]);
}

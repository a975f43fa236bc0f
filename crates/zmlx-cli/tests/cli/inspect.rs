//! `zmlx inspect`.

use serde_json::json;

use crate::*;

#[test]
fn both_fixtures() {
    // A token reads all weights, but only one row of the embedding and top_k of 16 experts.
    for (name, model_type, per_token, kv, gate) in [
        (GLM, "glm4_moe_lite", 2_013_008, 1280, "BF16"),
        (QWEN, "qwen3_moe", 3_352_096, 1536, "affine 8-bit g64"),
    ] {
        let dir = model(name);
        let report = zmlx(&["inspect", "--json", "--model", &dir]).ok().json();
        assert_eq!(report["name"], name);
        assert_eq!(report["model_type"], model_type);
        assert_eq!(report["usable"], true);
        assert_eq!(report["problems"], json!([]));
        assert_eq!(report["weight_bytes_per_token"], per_token);
        assert_eq!(report["kv_bytes_per_token"], kv);
        let total = report["total_bytes"].as_u64().unwrap();
        let file = std::fs::metadata(Path::new(&dir).join("model.safetensors")).unwrap().len();
        assert!(total < file && total > file - 40_000, "{total} of a file of {file}");
        assert_eq!(report["memory_bytes"], total + 2048 * kv);
        let weights = report["weights"].as_array().unwrap();
        let sum: u64 = weights.iter().map(|w| w["n_bytes"].as_u64().unwrap()).sum();
        assert_eq!(sum, total, "every byte belongs to a weight");
        let format = |path: &str| weights.iter().find(|w| w["path"] == path).unwrap()["format"].clone();
        assert_eq!(format("model.layers.*.mlp.gate"), gate);
        assert_eq!(format("model.layers.*.mlp.switch_mlp.down_proj"), "affine 4-bit g64");

        let text = zmlx(&["inspect", &dir]).ok().stdout;
        assert!(text.contains(&format!("Cache per token of context: {kv} bytes (16 bits")), "{text}");
        assert!(text.contains("every tensor fits") && text.contains("switch_mlp.gate_proj"), "{text}");
        let text = zmlx(&["inspect", "--model", &dir, "--tensors", "--context", "0"]).ok().stdout;
        assert!(text.contains("model.layers.2.mlp.switch_mlp.gate_proj"), "{text}");
    }
}

#[test]
fn missing_tensors_are_listed_and_the_rest_is_shown() {
    let dir = copy_without(GLM, &[]);
    edit_json(dir.path(), "config.json", |c| {
        c["num_hidden_layers"] = json!(6);
        c["kv_lora_rank"] = json!(64);
    });
    let path = dir.path().to_str().unwrap();
    let run = zmlx(&["inspect", "--model", path, "--json"]);
    assert_eq!(run.code, Some(2));
    let report = run.json();
    assert_eq!(report["usable"], false);
    let problems = report["problems"].as_array().unwrap();
    let has = |text: &str| problems.iter().any(|p| p.as_str().unwrap() == text);
    assert!(has("model.layers.5.mlp.switch_mlp.up_proj.weight: missing"), "{problems:#?}");
    assert!(has("model.layers.0.self_attn.kv_a_layernorm.weight: expected shape [64], got [128]"));
    // All of them are listed, not only the first twenty.
    assert!(problems.len() > 40);
    assert!(run.stderr.contains("model.layers.5.mlp.switch_mlp.up_proj.weight: missing"));
    let run = zmlx(&["inspect", "--model", path]);
    assert_eq!(run.code, Some(2));
    assert!(run.stdout.contains("cannot be used") && run.stdout.contains("vocab_size: 3072"));
}

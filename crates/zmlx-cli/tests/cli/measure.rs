//! `zmlx validate` and `zmlx bench`.

use serde_json::json;

use crate::*;

#[test]
fn both_fixtures_are_valid() {
    for name in [GLM, QWEN] {
        let args = ["validate", "--json", "--model", &model(name), "--max-tokens", "24", "--runs", "2"];
        let report = zmlx(&args).ok().json();
        assert_eq!(report["verdict"], "PASS", "{report:#}");
        assert_eq!(report["tokens"].as_array().unwrap().len(), 2 * 5);
        for check in report["reference"].as_array().unwrap() {
            assert!(check["rel_rms"].as_f64().unwrap() <= 1e-4, "{check}");
        }
    }
}

#[test]
#[cfg(feature = "embedded-model")]
fn the_built_in_model_agrees_with_its_recording() {
    let run = zmlx(&["validate", "--max-tokens", "96"]).ok();
    assert_eq!(run.stdout.matches("stock vs recording").count(), 7, "{}", run.stdout);
    assert!(run.stdout.ends_with("\nPASS\n"), "{}", run.stdout);
    assert!(!run.stdout.contains("EXPLAINED") && !run.stdout.contains("FAIL"));
}

#[test]
fn validation_needs_no_tokenizer() {
    let dir = copy_without(QWEN, &["tokenizer.json"]);
    let run = zmlx(&["validate", "--model", dir.path().to_str().unwrap(), "--max-tokens", "8"]).ok();
    assert!(run.stdout.contains("17 seeded tokens"), "{}", run.stdout);
}

#[test]
fn wrong_weights_fail_validation() {
    // NaN in a norm: nothing can be compared, and that must not pass.
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    let dir = dir.path().to_str().unwrap();
    let run = zmlx(&["validate", "--json", "--model", dir, "--max-tokens", "4"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let report = run.json();
    assert_eq!(report["verdict"], "FAIL");
    assert!(report["tokens"].as_array().unwrap().iter().all(|t| t["verdict"] == "FAIL"));
    assert!(report["reference"].as_array().unwrap().iter().all(|r| r["verdict"] == "FAIL"));
    let run = zmlx(&["bench", "--json", "--model", dir]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("nothing was timed"), "{}", run.stderr);
}

#[test]
fn bench_measures_every_fusion() {
    let dir = model(GLM);
    let args = ["bench", "--model", &dir, "-p", "8", "-n", "4", "-r", "3"];
    let report = zmlx(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!((&report["repetitions"], &report["prompt_tokens"]), (&json!(3), &json!(8)));
    let results = report["results"].as_array().unwrap();
    let fusions: Vec<_> = results.iter().map(|r| r["fusion"].as_str().unwrap()).collect();
    assert_eq!(fusions, ["stock", "concat", "fused"]);
    for result in results {
        for phase in ["prefill_tps", "decode_tps"] {
            let of = |key: &str| result[phase][key].as_f64().unwrap();
            assert!(0.0 < of("min") && of("min") <= of("median") && of("median") <= of("max"), "{result}");
            assert_eq!(result[phase]["samples"].as_array().unwrap().len(), 3);
        }
        assert!(result["share_of_read_bandwidth"].as_f64().unwrap() > 0.0);
        assert!(result["logits_rel_rms_to_first"].as_f64().unwrap() <= 1e-4);
    }
    let text = zmlx(&[&args[..], &["--fusion", "stock", "--fusion", "fused,-route"]].concat()).ok().stdout;
    assert!(text.contains("fused,-route") && !text.contains("concat"), "{text}");
    zmlx(&["bench", "--model", &dir, "-p", "2048"]).refused(&["max_position_embeddings"]);
}

#[test]
fn random_weights_are_benched() {
    let bench = |spec: &str| zmlx(&["bench", "--json", "-p", "3", "-n", "2", "-r", "1", "--synthetic", spec]);
    let report = bench("glm-4.7-flash,layers=2,vocab=64,mode=mxfp4").ok().json();
    // Layer 0 is dense, layer 1 has 64 experts: 17 bytes for 32 weights, dense routers and norms aside.
    let attention = 768 * 2048 + 768 * 5120 + 576 * 2048 + 20 * 512 * (192 + 256) + 2048 * 5120;
    let weights = 2 * attention + 3 * 2048 * (10240 + 5 * 1536) + 65 * 2048;
    let (got, want) = (report["bytes_per_token"].as_f64().unwrap(), f64::from(weights) * 17.0 / 32.0);
    assert!((got / want - 1.0).abs() <= 0.01, "{got} {want}");
    for (spec, tells) in [
        ("gpt-2", "qwen3-235b-a22b"),
        ("qwen3-30b-a3b,layers", "layers=N"),
        ("qwen3-30b-a3b,bits=7", "bits"),
        ("qwen3-30b-a3b,mode=gguf", "nvfp4"),
        ("qwen3-30b-a3b,layers=0", "num_hidden_layers"),
    ] {
        bench(spec).refused(&[tells]);
    }
}

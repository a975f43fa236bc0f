//! `zmlx validate`.

use serde_json::json;

use crate::*;

#[test]
fn both_fixtures_are_valid() {
    for (name, n_fused_ops) in [(GLM, 5), (QWEN, 4)] {
        let args = ["validate", "--json", &model(name), "--max-tokens", "24", "--runs", "2"];
        let report = zmlx(&args).ok().json();
        assert_eq!(report["verdict"], "pass", "{report:#}");
        assert_eq!(report["against"], json!(["stock", "concat", "oracle"]));
        assert_eq!(report["checks"].as_array().unwrap().len(), 2 * 5);
        let logits = report["logits"].as_array().unwrap();
        assert_eq!(logits.len(), 3 * 5);
        // At one position of one prompt the router's scores of two experts are so close that the other one is chosen.
        // There the logits of all three paths differ by a tenth, which is 1e-2 over the whole prompt.
        let far: Vec<_> = logits
            .iter()
            .filter(|c| c["rel_rms"].as_f64().unwrap() > 1e-3 || c["kl"].as_f64().unwrap() > 1e-5)
            .collect();
        assert!(far.iter().all(|c| c["prompt"] == far[0]["prompt"]), "{far:#?}");
        assert!(
            far.iter().all(|c| c["rel_rms"].as_f64().unwrap() <= 2e-2 && c["kl"].as_f64().unwrap() <= 2e-3),
            "{far:#?}"
        );
        let engagement = report["engagement"].as_array().unwrap();
        assert_eq!(engagement.len(), n_fused_ops, "{engagement:?}");
        assert!(
            engagement.iter().all(|e| e["fusion"] == "fused" && e["runs"].as_u64() > Some(0)),
            "{engagement:?}"
        );
        let timings = report["timings"].as_array().unwrap();
        assert_eq!(timings.len(), 3 * 5);
        assert!(timings.iter().all(|t| t["samples_s"].as_array().unwrap().len() == 2 && t["n_tokens"] == 23));
    }
}

#[test]
#[cfg(feature = "embedded-model")]
fn the_built_in_model_agrees_with_its_recording() {
    let run = zmlx(&["validate", "--max-tokens", "96", "--runs", "1"]).ok();
    assert_eq!(run.stdout.matches("fused vs golden").count(), 7, "{}", run.stdout);
    assert!(run.stdout.ends_with("\nPASS\n"), "{}", run.stdout);
    assert!(!run.stdout.contains("EXPLAINED") && !run.stdout.contains("FAIL"));
}

#[test]
fn validation_needs_no_tokenizer() {
    let dir = copy_without(QWEN, &["tokenizer.json"]);
    let dir = dir.path().to_str().unwrap();
    let run = zmlx(&["validate", dir, "--max-tokens", "8", "--runs", "1"]).ok();
    assert!(run.stdout.contains("17 seeded tokens"), "{}", run.stdout);
}

#[test]
fn wrong_weights_fail_validation() {
    // A norm of NaN: nothing can be compared, and the validation must fail.
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    let run = zmlx(&["validate", "--json", dir.path().to_str().unwrap(), "--max-tokens", "4", "--runs", "1"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let report = run.json();
    assert_eq!(report["verdict"], "fail");
    assert!(report["checks"].as_array().unwrap().iter().all(|t| t["verdict"] == "fail"));
    assert!(report["logits"].as_array().unwrap().iter().all(|r| r["verdict"] == "fail"));
}

#[test]
fn the_stress_suite_has_fifteen_configurations() {
    let args = ["validate", &model(GLM), "--suite", "stress", "-m", "8", "--runs", "1", "--against", "stock"];
    let text = zmlx(&args).ok().stdout;
    assert!(text.contains("mean of medians") && text.ends_with("\nPASS\n"), "{text}");
    let report = zmlx(&[&args[..], &["--json"]].concat()).ok().json();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 2 * 15);
    for n in [2, 4, 8] {
        let of = |path: &str| {
            let compared = format!("{path} vs stock");
            checks.iter().filter(|c| c["n_tokens"] == n && c["comparison"] == compared).count()
        };
        assert_eq!((of("fused"), of("fused,-dense_swiglu")), (5, 5), "{report:#}");
    }
    let engaged = |path: &str, op: &str| {
        let all = report["engagement"].as_array().unwrap();
        all.iter().any(|e| e["fusion"] == path && e["op"] == op)
    };
    assert!(engaged("fused", "qmm_swiglu") && !engaged("fused,-dense_swiglu", "qmm_swiglu"), "{report:#}");
}

#[test]
fn a_validation_leaves_a_capsule() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("v.json");
    let file = file.to_str().unwrap();
    let args = ["validate", &model(QWEN), "-m", "4", "-r", "1", "--capsule", file];
    zmlx(&args).ok();
    let capsule: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!((&capsule["kind"], &capsule["validate"]["verdict"]), (&json!("validate"), &json!("pass")));
    assert_eq!(capsule["prompts"].as_array().unwrap().len(), 5);
    let shown = finish(Command::new(env!("CARGO_BIN_EXE_zmlx")).args(["capsule", "show", file])).ok();
    assert!(shown.stdout.contains("fused vs oracle"), "{}", shown.stdout);
    zmlx(&args).refused(&["--force"]);
    zmlx(&[&args[..], &["--force"]].concat()).ok();
}

#[test]
fn what_cannot_be_compared_is_refused() {
    zmlx(&["validate", &model(QWEN), "--against", "golden"]).refused(&["--against golden", "zmlx golden"]);
    zmlx(&["validate", &model(QWEN), "--against", "llama"]).refused(&["llama"]);
    zmlx(&["validate", &model(QWEN), "--model", &model(GLM)]).refused(&["--model"]);
}

#[test]
fn prompts_of_your_own() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.jsonl");
    std::fs::write(&file, "{\"name\": \"mine\", \"text\": \"It is\"}\n{\"tokens\": [1, 2, 3]}\n").unwrap();
    let file = file.to_str().unwrap();
    let report =
        zmlx(&["validate", &model(GLM), "--json", "-m", "4", "-r", "1", "--prompts", file]).ok().json();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 4);
    assert_eq!(checks[0]["prompt"], "mine");
    zmlx(&["validate", &model(GLM), "--prompts", "nowhere.json"]).refused(&["nowhere.json"]);
}

//! `zmlx golden`.

use serde_json::json;

use crate::*;

fn fixture(name: &str) -> String {
    fixtures().join("golden").join(format!("{name}.json")).to_str().unwrap().to_owned()
}

/// A golden file of a model, 8 tokens after each built-in prompt.
fn record(name: &str, dir: &Path) -> String {
    let file = dir.join("golden.json").to_str().unwrap().to_owned();
    zmlx(&["golden", "record", &model(name), "-o", &file, "-m", "8"]).ok();
    file
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn write(path: &Path, value: &Value) -> String {
    std::fs::write(path, value.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn what_was_recorded_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    for name in [GLM, QWEN] {
        let file = record(name, dir.path());
        let golden = read(&file);
        assert_eq!((&golden["format"], &golden["model"]["name"]), (&json!(2), &json!(name)));
        let first = &golden["prompts"][0];
        for list in ["tokens", "margins", "spreads", "logprobs"] {
            assert_eq!(first[list].as_array().unwrap().len(), 8, "{list}");
        }
        assert!(first["logprobs"].as_array().unwrap().iter().all(|p| p.as_f64() <= Some(0.0)));
        let report = zmlx(&["golden", "check", &file, "--model", &model(name), "--json"]).ok().json();
        assert_eq!(report["verdict"], "pass", "{report:#}");
        let prompts = report["backends"][0]["prompts"].as_array().unwrap();
        assert_eq!(prompts.len(), 5);
        // The file was recorded on the stock path and is checked on the fused path.
        assert!(prompts.iter().all(|p| p["logprob_rel_rms"].as_f64().unwrap() <= 1e-3), "{report:#}");
        zmlx(&["golden", "record", &model(name), "-o", &file]).refused(&["--force", "golden.json"]);
        assert_eq!(read(&file), golden);
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn the_reference_engine_s_recordings_are_golden_files() {
    for name in [GLM, QWEN] {
        for fusion in ["stock", "fused"] {
            let args = ["golden", "check", &fixture(name), "--model", &model(name), "--fusion", fusion];
            let text = zmlx(&args).ok().stdout;
            assert_eq!(text.matches("PASS\n").count(), 7 + 1, "{text}");
        }
    }
}

#[test]
fn other_tokens_fail_and_reports_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let mut golden = read(record(GLM, dir.path()));
    let token = &mut golden["prompts"][2]["tokens"][5];
    *token = json!((token.as_u64().unwrap() + 1) % 1000);
    let file = write(&dir.path().join("wrong.json"), &golden);
    let junit = dir.path().join("junit.xml");
    let check = |golden: &str, more: &[&str]| {
        zmlx(&[&["golden", "check", golden, "--model", &model(GLM)], more].concat())
    };
    let run = check(&file, &["--github", "--junit", junit.to_str().unwrap()]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert_eq!(run.stdout.matches("::error file=").count(), 1, "{}", run.stdout);
    assert!(run.stdout.contains("token 5: got") && run.stdout.contains("4 of 5"), "{}", run.stdout);
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains(r#"failures="1""#) && xml.contains("token 5: got"), "{xml}");
    // A second run replaces its own report, but no other file.
    assert_eq!(check(&file, &["--junit", junit.to_str().unwrap()]).code, Some(1));
    std::fs::write(&junit, "mine").unwrap();
    check(&file, &["--junit", junit.to_str().unwrap()]).refused(&["--force", "junit.xml"]);
    assert_eq!(check(&file, &["--junit", junit.to_str().unwrap(), "--force"]).code, Some(1));
    // The same wrong token where the margin is tiny.
    golden["prompts"][2]["margins"][5] = json!(1e-6);
    let file = write(&dir.path().join("near.json"), &golden);
    let text = check(&file, &[]).ok().stdout;
    assert!(text.contains("EXPLAINED") && text.ends_with("\nEXPLAINED\n"), "{text}");
    // A decoding that ends early does not count as a flip.
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    golden["model"]["weights_sha256"] = json!(sha256(&dir.path().join("model.safetensors")));
    let file = write(&dir.path().join("nan.json"), &golden);
    let run = zmlx(&["golden", "check", &file, "--model", dir.path().to_str().unwrap()]);
    assert_eq!(run.code, Some(1), "{run:#?}");
}

fn sha256(path: &Path) -> String {
    use sha2::Digest;
    format!("{:x}", sha2::Sha256::digest(std::fs::read(path).unwrap()))
}

#[test]
fn a_model_that_changed_is_told() {
    let golden = fixture(GLM);
    zmlx(&["golden", "check", &golden, "--model", &model(QWEN)]).refused(&["weights_sha256", QWEN]);
    let dir = copy_without(GLM, &[]);
    spoil(dir.path(), "model.norm.weight");
    let path = dir.path().to_str().unwrap();
    zmlx(&["golden", "check", &golden, "--model", path]).refused(&[&golden, "model.weights_sha256"]);
    // The same weights with another config.
    let dir = copy_without(GLM, &[]);
    let file = record(GLM, dir.path());
    let config = dir.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap() + "\n";
    std::fs::write(&config, text).unwrap();
    let path = dir.path().to_str().unwrap();
    zmlx(&["golden", "check", &file, "--model", path]).refused(&["model.config_sha256"]);
}

/// The exit code is 2, and a reader of the reports alone must not take the check for a success either.
#[test]
fn a_check_that_cannot_run_fails_in_its_reports() {
    let dir = tempfile::tempdir().unwrap();
    let junit = dir.path().join("junit.xml");
    let junit = junit.to_str().unwrap();
    let golden = fixture(GLM);
    let nowhere = dir.path().join("nowhere");
    let qwen = model(QWEN);
    for (model, tells) in [(qwen.as_str(), "weights_sha256"), (nowhere.to_str().unwrap(), "no such folder")] {
        let run = zmlx(&["golden", "check", &golden, model, "--junit", junit, "--github"]);
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert!(run.stderr.contains(tells), "{run:#?}");
        assert!(run.stdout.contains("::error file=") && run.stdout.contains("FAIL"), "{}", run.stdout);
        let xml = std::fs::read_to_string(junit).unwrap();
        assert!(xml.contains(r#"errors="1""#) && xml.contains("FAIL") && xml.contains(tells), "{xml}");
        let run = zmlx(&["golden", "check", &golden, model, "--json"]);
        assert_eq!((run.code, &run.json()["verdict"]), (Some(2), &json!("fail")));
    }
}

/// With an option, other weights are checked as well: here those of a model without the scale of its last norm.
#[test]
fn other_weights_are_checked_on_request() {
    let dir = copy_without(GLM, &[]);
    let golden = record(GLM, dir.path());
    let path = dir.path().to_str().unwrap();
    edit_json(dir.path(), "config.json", |c| c["rms_norm_eps"] = json!(1e-4));
    zmlx(&["golden", "check", &golden, path]).refused(&["config_sha256", "--allow-other-weights"]);
    let run = zmlx(&["golden", "check", &golden, path, "--allow-other-weights", "--json"]);
    let prompt = &run.json()["backends"][0]["prompts"][0];
    assert!(prompt["logprob_rel_rms"].as_f64().unwrap() > 0.0, "{prompt}");
    assert_eq!(prompt["logprob_bound"].as_f64(), Some(2e-2));
}

#[test]
fn other_probabilities_fail() {
    let dir = tempfile::tempdir().unwrap();
    let mut golden = read(record(QWEN, dir.path()));
    for logprob in golden["prompts"][1]["logprobs"].as_array_mut().unwrap() {
        *logprob = json!(logprob.as_f64().unwrap() - 1.0);
    }
    let file = write(&dir.path().join("wrong.json"), &golden);
    let run = zmlx(&["golden", "check", &file, &model(QWEN), "--github"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert_eq!(run.stdout.matches("::error file=").count(), 1, "{}", run.stdout);
    assert!(run.stdout.contains("log-probabilities differ by"), "{}", run.stdout);
}

#[test]
fn prompts_of_one_name_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = write(
        &dir.path().join("p.json"),
        &json!([{"name": "a", "tokens": [5]}, {"name": "a", "tokens": [6]}]),
    );
    let out = dir.path().join("golden.json");
    let out = out.to_str().unwrap();
    zmlx(&["golden", "record", &model(QWEN), "--prompts", &prompts, "-o", out])
        .refused(&["p.json", "prompt 2", "\"a\""]);
    let mut golden = read(record(QWEN, dir.path()));
    golden["prompts"][1]["name"] = golden["prompts"][0]["name"].clone();
    let file = write(&dir.path().join("twice.json"), &golden);
    zmlx(&["golden", "check", &file, &model(QWEN)]).refused(&["twice.json", "field name"]);
}

#[test]
fn what_is_no_golden_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let golden = read(record(QWEN, dir.path()));
    let check = |golden: &Value| {
        let file = write(&dir.path().join("bad.json"), golden);
        zmlx(&["golden", "check", &file, "--model", &model(QWEN)])
    };
    let with = |pointer: &str, value: Value| {
        let mut golden = golden.clone();
        *golden.pointer_mut(pointer).unwrap() = value;
        golden
    };
    check(&with("/format", json!(3))).refused(&["bad.json", "format", "got 3"]);
    check(&with("/model/weights_sha256", json!(7))).refused(&["bad.json", "invalid type"]);
    check(&with("/prompts/0/margins", json!([]))).refused(&["bad.json", "margins", "want 8"]);
    check(&with("/prompts/0/prompt_tokens", json!([]))).refused(&["bad.json", "prompt_tokens"]);
    check(&with("/prompts/0/prompt_tokens", json!([1_000_000]))).refused(&["1000000"]);
    check(&with("/prompts", Value::Null)).refused(&["bad.json", "invalid type: null"]);
    let half = golden.to_string();
    let file = dir.path().join("half.json");
    // The file is cut at a comma. Within a number the message would depend on its digits.
    let comma = half[..half.len() / 2].rfind(',').unwrap();
    std::fs::write(&file, &half[..=comma]).unwrap();
    zmlx(&["golden", "check", file.to_str().unwrap(), "--model", &model(QWEN)])
        .refused(&["half.json", "EOF"]);
    zmlx(&["golden", "check", "nowhere.json", "--model", &model(QWEN)]).refused(&["nowhere.json"]);
}

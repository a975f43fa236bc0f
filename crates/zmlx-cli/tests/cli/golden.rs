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
        assert_eq!(report["backends"][0]["prompts"].as_array().unwrap().len(), 5);
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
    check(&file, &["--junit", junit.to_str().unwrap()]).refused(&["--force", "junit.xml"]);
    assert_eq!(check(&file, &["--junit", junit.to_str().unwrap(), "--force"]).code, Some(1));
    // The same where the margin was next to nothing.
    golden["prompts"][2]["margins"][5] = json!(1e-6);
    let file = write(&dir.path().join("near.json"), &golden);
    let text = check(&file, &[]).ok().stdout;
    assert!(text.contains("EXPLAINED") && text.ends_with("\nEXPLAINED\n"), "{text}");
    // A decoding that ends early is no flip.
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
    // Not within a number: what follows there depends on its digits.
    let comma = half[..half.len() / 2].rfind(',').unwrap();
    std::fs::write(&file, &half[..=comma]).unwrap();
    zmlx(&["golden", "check", file.to_str().unwrap(), "--model", &model(QWEN)])
        .refused(&["half.json", "EOF"]);
    zmlx(&["golden", "check", "nowhere.json", "--model", &model(QWEN)]).refused(&["nowhere.json"]);
}

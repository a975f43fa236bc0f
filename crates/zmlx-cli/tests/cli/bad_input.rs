//! Input that cannot be used: the exit code is 2, nothing is on stdout, and a message says where and what the error is.

use serde_json::json;

use crate::*;

fn generate(dir: &str) -> Run {
    zmlx(&["generate", "--json", "--model", dir, "--prompt-tokens", "1,2", "-m", "1"])
}

#[test]
fn usage() {
    let dir = model(GLM);
    for (args, text) in [
        (&["--temp", "x"][..], "--temp"),
        (&["--prompt-tokens", ""], "--prompt-tokens"),
        (&["--prompt-tokens", "1,-2"], "--prompt-tokens"),
        (&["--prompt-tokens", "1", "-p", "x"], "--prompt"),
        (&["--fusion", "fast"], "unknown fusion"),
        (&["--backend", "tpu"], "--backend"),
        (&["--cpu-activations", "int4"], "--cpu-activations"),
        (&["--chat-template-config", "[1]"], "--chat-template-config"),
        (&["--temp", "-1"], "temperature: expected"),
        (&["--top-p", "1.5"], "top_p: expected"),
        (&["--min-p", "-0.5"], "min_p: expected"),
        (&["--repetition-penalty", "0"], "repetition_penalty: expected"),
        (&["--stop", ""], "--stop"),
        (&["--system-prompt", "x"], "need --prompt"),
        (&["--chat-template-config", "{\"x\": 1}"], "need --prompt"),
        (&["-p", "x", "--system", "x", "--raw"], "--raw"),
        (&["-m", "-2"], "--max-tokens"),
        (&["--stats"], "--stats"),
        (&["-p", ""], "the prompt is empty"),
        (&["--nonsense"], "--nonsense"),
    ] {
        zmlx(&[&["generate", "--json", "--model", &dir], args].concat()).refused(&[text]);
    }
    for (args, text) in [
        (&["generate", "--threads", "0"][..], "--threads"),
        (&["bench", "-r", "0"], "--repetitions"),
        (&["no-such-command"], "no-such-command"),
        (&[], "Usage"),
    ] {
        finish(Command::new(env!("CARGO_BIN_EXE_zmlx")).args(args)).refused(&[text]);
    }
}

#[test]
#[cfg(not(feature = "embedded-model"))]
fn without_a_built_in_model_one_must_be_named() {
    zmlx(&["generate"]).refused(&["built-in model"]);
}

#[test]
fn tokens_out_of_range() {
    let args = ["generate", "--json", "--model", &model(GLM), "--prompt-tokens", "1,3072"];
    zmlx(&args).refused(&["token 3072", "3072"]);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let tokens = join(&[5; 2049]);
    let args = ["generate", "--json", "--model", &model(GLM), "--prompt-tokens", &tokens];
    zmlx(&args).refused(&["2049", "2048", "max_position_embeddings"]);
}

#[test]
fn models_that_do_not_exist() {
    let cache = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let mut command = command(&["generate", "--json", "--model", name]);
        finish(command.env("HF_HUB_CACHE", cache.path()))
    };
    run("no-such-folder").refused(&["no-such-folder", "no such folder"]);
    let cache_dir = cache.path().join("models--org--name");
    run("org/name").refused(&["org/name", "folder", cache_dir.to_str().unwrap()]);
    let file = cache.path().join("file");
    std::fs::write(&file, "").unwrap();
    run(file.to_str().unwrap()).refused(&["not a folder"]);
    run(cache.path().to_str().unwrap()).refused(&["config.json"]);
}

#[test]
fn a_model_in_the_hugging_face_cache() {
    let cache = tempfile::tempdir().unwrap();
    let repo = cache.path().join("models--org--tiny");
    let snapshot = repo.join("snapshots/0123");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "0123").unwrap();
    for entry in std::fs::read_dir(model(GLM)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
    }
    let mut command = command(&["generate", "--json", "--model", "org/tiny", "-p", "It", "-m", "1"]);
    finish(command.env("HF_HUB_CACHE", cache.path())).ok();
}

#[test]
fn broken_configs_name_the_file_and_the_field() {
    let dir = copy_without(GLM, &[]);
    let path = dir.path().to_str().unwrap();
    let original = std::fs::read(dir.path().join("config.json")).unwrap();
    let cases: [(&str, Value); 5] = [
        ("hidden_size", json!("wide")),
        ("num_hidden_layers", json!(-1)),
        ("n_routed_experts", Value::Null),
        ("num_experts_per_tok", json!(99)),
        ("model_type", json!("llama")),
    ];
    for (key, value) in cases {
        edit_json(dir.path(), "config.json", |c| c[key] = value);
        generate(path).refused(&["config.json", key]);
        std::fs::write(dir.path().join("config.json"), &original).unwrap();
    }
    std::fs::write(dir.path().join("config.json"), &original[..original.len() / 2]).unwrap();
    generate(path).refused(&["config.json", "not valid JSON"]);
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    generate(path).refused(&["config.json"]);
}

#[test]
fn broken_weights_name_the_file_or_the_tensor() {
    let dir = copy_without(GLM, &[]);
    let path = dir.path().to_str().unwrap();
    let file = dir.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    for n_bytes in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..n_bytes]).unwrap();
        generate(path).refused(&["model.safetensors"]);
    }
    std::fs::remove_file(&file).unwrap();
    generate(path).refused(&["model*.safetensors"]);
    std::fs::write(&file, &whole).unwrap();
    edit_json(dir.path(), "config.json", |c| c["num_hidden_layers"] = json!(5));
    generate(path).refused(&["model.layers.4.input_layernorm.weight", "missing"]);
}

#[test]
fn broken_tokenizers_and_templates() {
    let dir = copy_without(GLM, &["chat_template.jinja"]);
    let path = dir.path().to_str().unwrap();
    let chat = ["generate", "--model", path, "-p", "x", "-m", "1"];
    // Without a template the prompt is continued as it is. A system message needs a template.
    zmlx(&chat).ok();
    for more in [&["--system-prompt", "y"][..], &["--chat"]] {
        zmlx(&[&chat[..], more].concat()).refused(&["chat template", "chat_template.jinja"]);
    }
    std::fs::write(dir.path().join("chat_template.jinja"), "{% for %}").unwrap();
    zmlx(&chat).refused(&["chat template"]);
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    zmlx(&chat).refused(&["tokenizer.json"]);
}

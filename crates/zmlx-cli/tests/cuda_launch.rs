//! Two ranks with a GPU each: `zmlx launch` over NCCL. Without two GPUs nothing is run, which the tests say; with
//! `ZMLX_REQUIRE_CUDA=2` they fail then. `ZMLX_BINARY` names the command where it is not where it was built.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use serde_json::Value;
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::{Golden, TensorFile};

const MODELS: [&str; 2] = ["austen-glm4-moe-lite-4bit", "austen-qwen3-moe-4bit"];

/// Each test uses both GPUs.
static ALONE: Mutex<()> = Mutex::new(());

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn zmlx(args: &[&str]) -> Output {
    let program = std::env::var_os("ZMLX_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_zmlx").into());
    let mut command = Command::new(program);
    for name in ["RUST_LOG", "MLX_RANK", "MLX_HOSTFILE", "ZMLX_PARALLEL"] {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

/// The output of a command that needs two GPUs; `None` on a machine without them.
fn launched(how: &str, args: &[&str]) -> Option<Output> {
    let launch = ["launch", "-n", "2", "--parallel", how, "--"];
    let output = zmlx(&[&launch[..], args].concat());
    let message = String::from_utf8_lossy(&output.stderr);
    let is_required = std::env::var_os("ZMLX_REQUIRE_CUDA").is_some_and(|v| v == "2");
    if !is_required && ["no NVIDIA driver", "there is no GPU"].iter().any(|why| message.contains(why)) {
        eprintln!("not run: {message}");
        return None;
    }
    assert!(output.status.success(), "{output:?}");
    Some(output)
}

fn logits(file: &Path) -> Vec<f32> {
    TensorFile::open(file).unwrap().floats("logits").unwrap().data
}

#[test]
fn two_gpus_give_the_recorded_tokens() {
    let _alone = ALONE.lock();
    for model in MODELS {
        let golden = Golden::open(fixtures().join(format!("golden/{model}.json"))).unwrap();
        let prompt = golden.prompt("novel").unwrap();
        let path = fixtures().join("models").join(model);
        let tokens: Vec<_> = prompt.prompt_tokens.iter().map(u32::to_string).collect();
        let (path, tokens) = (path.to_str().unwrap(), tokens.join(","));
        let args = ["generate", "--json", "--backend", "cuda", "--model", path, "--ignore-eos"];
        let more = ["--prompt-tokens", &tokens, "-m", "96"];
        for how in ["tensor", "pipeline"] {
            let Some(output) = launched(how, &[&args[..], &more].concat()) else { return };
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let tokens: Vec<u32> = serde_json::from_value(report["tokens"].clone()).unwrap();
            assert_eq!(tokens, prompt.bf16.tokens[..96], "{model} {how}");
        }
    }
}

/// Sums of few values, which go from GPU to GPU directly, and of many, which NCCL makes; biases after partial sums.
#[test]
fn two_gpus_give_the_logits_of_one() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let of_family = |name: &str| fixtures().join("families").join(name);
    let models = MODELS.map(|name| fixtures().join("models").join(name));
    let long: Vec<_> = (0..1500u32).map(|i| (i * 7 % 250 + 2).to_string()).collect();
    for (path, n_tokens, chunk) in [
        (&models[0], 1500, "1500"),
        (&models[1], 1500, "1500"),
        (&models[0], 40, "3"),
        (&models[1], 40, "1"),
        (&of_family("gpt_oss"), 40, "16"),
    ] {
        let (tokens, out) = (long[..n_tokens].join(","), dir.path().join("logits"));
        let args = ["logits", "--backend", "cuda", "--model", path.to_str().unwrap(), "--tokens", &tokens];
        let args = [&args[..], &["--chunk", chunk, "--force", "--out", out.to_str().unwrap()]].concat();
        for how in ["tensor", "pipeline"] {
            if launched(how, &args).is_none() {
                return;
            }
            let shared = logits(&out);
            let output = zmlx(&args);
            assert!(output.status.success(), "{output:?}");
            let alone = logits(&out);
            if how == "pipeline" {
                assert!(alone == shared && alone.iter().all(|v| v.is_finite()), "{path:?} {chunk}");
            } else {
                // Sums in another order, and other rows in the same group of rounded activations. In a long prompt a token
                // may also take another of two almost equal experts.
                let most = if n_tokens > 100 { 1e-2 } else { 2e-3 };
                let truth: Vec<f64> = alone.into_iter().map(f64::from).collect();
                let error = rel_rms(&shared, &truth);
                assert!(error <= most, "{path:?} {chunk}: {error:e}");
            }
        }
    }
}

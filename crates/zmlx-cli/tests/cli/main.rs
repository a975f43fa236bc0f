//! Tests of the built binary, run as a user would run it.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod backends;
mod bad_input;
mod capsule;
mod chat;
mod convert;
mod faults;
mod generate;
mod golden;
mod hub;
mod inspect;
mod logits;
mod measure;
mod perplexity;
mod shell;
#[cfg(unix)]
mod terminal;
mod text;
mod validate;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use zmlx_oracle::golden::Golden;

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

/// The commands that do not compute and take no backend.
const WITHOUT_BACKEND: [&str; 4] = ["completions", "man", "models", "pull"];

/// The result of a run.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts exit code 2, nothing on stdout, and that the message contains every text.
    #[track_caller]
    fn refused(self, texts: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zmlx"));
    command.args(args);
    if !WITHOUT_BACKEND.contains(&args[0]) {
        // One thread, because other tests run at the same time.
        command.args(["--threads", "1"]);
    }
    for name in ["RUST_LOG", "ZMLX_CPU_LEVEL"] {
        command.env_remove(name);
    }
    // The tests never contact the real hub.
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_TOKEN",
        "HF_ENDPOINT",
        "TRANSFORMERS_OFFLINE",
    ] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1");
    for name in ["LOGITS", "LOGITS_TOPK"] {
        command.env_remove(format!("ZMLX_QWEN_ROUTER_ARGPARTITION_{name}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn zmlx(args: &[&str]) -> Run {
    finish(&mut command(args))
}

fn zmlx_with_stdin(args: &[&str], stdin: &[u8]) -> Run {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // A command that refuses its arguments does not read stdin, so the write may fail.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn model(name: &str) -> String {
    fixtures().join("models").join(name).to_str().unwrap().to_owned()
}

fn golden(name: &str) -> Golden {
    Golden::open(fixtures().join(format!("golden/{name}.json"))).unwrap()
}

/// A copy of a model without some of its files.
fn copy_without(name: &str, left_out: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(model(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if !left_out.contains(&file) {
            std::fs::copy(&path, dir.path().join(file)).unwrap();
        }
    }
    dir
}

/// Changes a JSON file of a copied model.
fn edit_json(dir: &Path, file: &str, edit: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}

/// Replaces every value of a bf16 tensor of a copied model by NaN.
fn spoil(dir: &Path, tensor: &str) {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let (start, end) = metadata.info(tensor).unwrap().data_offsets;
    let data = 8 + header;
    for value in bytes[data + start..data + end].as_chunks_mut().0 {
        *value = [0xc0, 0x7f];
    }
    std::fs::write(&path, bytes).unwrap();
}

fn join(tokens: &[u32]) -> String {
    tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

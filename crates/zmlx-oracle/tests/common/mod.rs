//! Paths of the fixtures.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::PathBuf;

use zmlx_oracle::golden::{Golden, TensorFile};

pub(crate) const MODELS: [&str; 2] = ["austen-qwen3-moe-4bit", "austen-glm4-moe-lite-4bit"];

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub(crate) fn ops(name: &str) -> TensorFile {
    TensorFile::open(fixtures().join(format!("golden/ops/{name}.safetensors"))).unwrap()
}

pub(crate) fn model_dir(model: &str) -> PathBuf {
    fixtures().join("models").join(model)
}

pub(crate) fn golden(model: &str) -> Golden {
    Golden::open(fixtures().join(format!("golden/{model}.json"))).unwrap()
}

pub(crate) fn taps(model: &str) -> TensorFile {
    TensorFile::open(fixtures().join(format!("golden/{model}-taps.safetensors"))).unwrap()
}

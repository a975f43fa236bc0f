//! Models on a backend that counts its ops and can be told to compute one wrong.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod backend;
mod launches;
mod self_check;

use std::path::PathBuf;

use backend::{Fault, Faulty, Wrapped};
use zmlx_models::{Checkpoint, Model};

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn load(name: &str, fault: Option<(&'static str, Fault)>) -> Model<Wrapped> {
    let checkpoint = Checkpoint::open(&repository().join("fixtures/models").join(name)).unwrap();
    Model::load(Faulty::backend(fault), &checkpoint, &mut |_, _| ()).unwrap()
}

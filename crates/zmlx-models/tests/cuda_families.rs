//! A tiny model of each family on the GPU against the recorded engine's `f32` run: a prompt, forced decode steps, a long pass.
//! Without a GPU nothing is run, which the tests say; with `ZMLX_REQUIRE_CUDA=1` they fail then.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod family;

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cuda::CudaBackend;
use zmlx_kernels::{Error, Fusion};

use family::Family;

/// Keys and values of 11 bits. A part of a model that is left out, or done the usual other way, moves the logits by more than
/// 2e-2.
const BOUND: f64 = 2e-3;

fn backend() -> Option<CudaBackend> {
    let is_required = std::env::var_os("ZMLX_REQUIRE_CUDA").is_some_and(|v| v == "1");
    match CudaBackend::new(0) {
        Ok(backend) => Some(backend),
        Err(Error::Unavailable { why, .. }) if !is_required => {
            eprintln!("not run: no GPU: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[rstest]
fn logits(
    #[files("../../fixtures/families/*/config.json")] config: PathBuf,
    #[values("stock", "fused")] fusion: &str,
) {
    let Some(backend) = backend() else { return };
    Family::open(&config, backend, BOUND).close_all_logits(fusion.parse::<Fusion>().unwrap());
}

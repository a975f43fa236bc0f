//! A tiny model of each family on MLX, compared with the recorded engine's `f32` run: a prompt, forced decode steps, a
//! long pass.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod family;

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::Fusion;
use zmlx_kernels::mlx::{MlxBackend, Numerics};

use family::Family;

/// f32 sums are in another order than in the recording.
const BOUND: f64 = 5e-5;

#[rstest]
fn logits_are_those_of_the_recording(#[files("../../fixtures/families/*/config.json")] config: PathBuf) {
    let backend = MlxBackend::new(Numerics::Accurate).unwrap();
    Family::open(&config, backend, BOUND).close_all_logits(Fusion::FUSED);
}

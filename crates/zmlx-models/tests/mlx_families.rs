//! A tiny model of each family on MLX, compared with the recorded engine's `f32` run: a prompt, forced decode steps, a
//! long pass.
#![cfg(feature = "mlx")]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::mlx::{MlxBackend, Numerics};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{CachePool, Checkpoint, Input, Logits, Model, PoolOptions, Slot};
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::TensorFile;

/// f32 sums are in another order than in the recording.
const BOUND: f64 = 5e-5;

type Pool = CachePool<MlxBackend>;

fn logits(model: &Model<MlxBackend>, pool: &mut Pool, slot: Slot, tokens: &[u32]) -> Vec<f32> {
    let input = Input { slot, tokens, logits: Logits::All };
    let y = model.forward(pool, &[input], &Fusion::FUSED).unwrap();
    let mut logits = Vec::new();
    model.backend().read(&y, &mut logits).unwrap();
    logits
}

#[rstest]
fn logits_are_those_of_the_recording(
    #[values(
        "deepseek_v3",
        "gemma4",
        "gemma4_e",
        "glm4_moe",
        "gpt_oss",
        "lfm2_moe",
        "minimax",
        "qwen3",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_next"
    )]
    name: &str,
) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families").join(name);
    let model = MlxBackend::new(Numerics::Accurate).unwrap();
    let model = Model::load(model, &Checkpoint::open(&dir).unwrap(), &mut |_, _| ()).unwrap();
    let taps = TensorFile::open(dir.join("taps.safetensors")).unwrap();
    let ints = |name: &str| taps.ints(name).unwrap().data;
    let close = |tap: &str, got: &[f32]| {
        let error = rel_rms(got, &taps.floats(&format!("f32.{tap}")).unwrap().data);
        assert!(error <= BOUND, "{name} {tap}: relative RMS {error:e}");
    };
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    close("logits", &logits(&model, &mut pool, slot, &ints("tokens")));
    let decoded =
        ints("decode_tokens").iter().flat_map(|t| logits(&model, &mut pool, slot, &[*t])).collect::<Vec<_>>();
    close("decode_logits", &decoded);

    let slot = pool.allocate().unwrap();
    let long = logits(&model, &mut pool, slot, &ints("long_tokens"));
    let row =
        |r: &u32| &long[*r as usize * model.architecture().vocab_size..][..model.architecture().vocab_size];
    close("long_logits", &ints("long_rows").iter().flat_map(row).copied().collect::<Vec<_>>());
}

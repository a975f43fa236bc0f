//! A tiny model of each family on the GPU against the recorded engine's `f32` run: a prompt, forced decode steps, a long pass.
//! Without a GPU nothing is run, which the tests say; with `ZMLX_REQUIRE_CUDA=1` they fail then.
#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cuda::CudaBackend;
use zmlx_kernels::{Backend, Error, Fusion, Logits};
use zmlx_models::{CachePool, Checkpoint, Input, Model, PoolOptions, Slot};
use zmlx_oracle::compare::rel_rms;
use zmlx_oracle::golden::TensorFile;

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

struct Run<'m> {
    model: &'m Model<CudaBackend>,
    pool: CachePool<CudaBackend>,
    slot: Slot,
    fusion: Fusion,
}

impl<'m> Run<'m> {
    fn new(model: &'m Model<CudaBackend>, fusion: Fusion) -> Self {
        let mut pool = model.pool(PoolOptions::default()).unwrap();
        let slot = pool.allocate().unwrap();
        Self { model, pool, slot, fusion }
    }

    fn logits(&mut self, tokens: &[u32], logits: Logits) -> Vec<f32> {
        let input = Input { slot: self.slot, tokens, logits };
        let y = self.model.forward(&mut self.pool, &[input], &self.fusion).unwrap();
        let mut values = Vec::new();
        self.model.backend().read(&y, &mut values).unwrap();
        values
    }
}

#[rstest]
fn logits(
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
    name: &'static str,
    #[values("stock", "fused")] fusion: &str,
) {
    let Some(backend) = backend() else { return };
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families").join(name);
    let taps = TensorFile::open(dir.join("taps.safetensors")).unwrap();
    let ints = |name: &str| taps.ints(name).unwrap().data;
    let close = |tap: &str, got: &[f32]| {
        let want = taps.floats(&format!("f32.{tap}")).unwrap();
        let error = rel_rms(got, &want.data);
        assert!(error <= BOUND, "{name} {tap}: relative RMS {error:e}");
    };
    let model = Model::load(backend, &Checkpoint::open(&dir).unwrap(), &mut |_, _| ()).unwrap();
    let fusion = fusion.parse::<Fusion>().unwrap();
    let mut run = Run::new(&model, fusion);
    close("logits", &run.logits(&ints("tokens"), Logits::All));
    let decoded: Vec<f32> =
        ints("decode_tokens").iter().flat_map(|token| run.logits(&[*token], Logits::Last)).collect();
    close("decode_logits", &decoded);
    let logits = Run::new(&model, fusion).logits(&ints("long_tokens"), Logits::All);
    let vocab = model.architecture().vocab_size;
    let rows = ints("long_rows");
    let rows: Vec<f32> = rows.iter().flat_map(|&r| logits[r as usize * vocab..][..vocab].to_vec()).collect();
    close("long_logits", &rows);
}

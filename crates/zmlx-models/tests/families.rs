//! A tiny model of each family, compared with the recorded engine's `f32` run: taps of a prompt, forced decode steps, a
//! long pass.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion, Logits};
use zmlx_models::{Checkpoint, Input, Model, PoolOptions, TapValue};
use zmlx_oracle::compare::{differing_expert_sets, rel_rms};
use zmlx_oracle::golden::TensorFile;

/// Activations have 16 bits in quantised products and 15 bits in attention. The largest measured difference is 7.0e-5,
/// for decoded tokens. If a part of a model is left out, or done in the other usual way, the logits change by more than
/// 2e-2.
const BOUND: f64 = 2e-4;

struct Family {
    name: &'static str,
    taps: TensorFile,
    model: Model<CpuBackend>,
}

impl Family {
    fn open(name: &'static str) -> Self {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families").join(name);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let taps = TensorFile::open(dir.join("taps.safetensors")).unwrap();
        let model = Model::load(CpuBackend::new(Some(2)).unwrap(), &checkpoint, &mut |_, _| ()).unwrap();
        Self { name, taps, model }
    }

    fn ints(&self, name: &str) -> Vec<u32> {
        self.taps.ints(name).unwrap().data
    }

    fn close(&self, tap: &str, got: &[f32]) {
        let want = self.taps.floats(&format!("f32.{tap}")).unwrap();
        let sorted = |values: &[f32]| {
            let mut values = values.to_vec();
            // In the engine's order of experts.
            values.chunks_exact_mut(want.shape[1]).for_each(|row| row.sort_by(f32::total_cmp));
            values
        };
        let error = if tap.ends_with("expert_weights") {
            rel_rms(&sorted(got), &sorted(&want.data))
        } else {
            rel_rms(got, &want.data)
        };
        assert!(error <= BOUND, "{} {tap}: relative RMS {error:e}", self.name);
    }

    fn logits(&self, tokens: &[u32], fusion: &Fusion) -> Vec<f32> {
        let mut pool = self.model.pool(PoolOptions::default()).unwrap();
        let input = Input { slot: pool.allocate().unwrap(), tokens, logits: Logits::All };
        let y = self.model.forward(&mut pool, &[input], fusion).unwrap();
        let mut logits = Vec::new();
        self.model.backend().read(&y, &mut logits).unwrap();
        logits
    }
}

#[rstest]
fn taps(
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
    #[values("stock", "concat", "fused")] fusion: &str,
) {
    let family = Family::open(name);
    let (model, fusion) = (&family.model, fusion.parse::<Fusion>().unwrap());
    let (mut floats, mut experts) = (BTreeMap::new(), BTreeMap::new());
    let backend = model.backend();
    let mut tap = |name: &str, value: TapValue<'_, CpuBackend>| {
        match value {
            TapValue::Tensor(x) => {
                backend.read(x, floats.entry(name.to_owned()).or_insert_with(Vec::new)).unwrap();
            }
            TapValue::Indices(x) => {
                backend.read_indices(x, experts.entry(name.to_owned()).or_insert_with(Vec::new)).unwrap();
            }
        }
        None
    };
    let tokens = family.ints("tokens");
    let mut pool = model.pool(PoolOptions::default()).unwrap();
    let slot = pool.allocate().unwrap();
    let input = Input { slot, tokens: &tokens, logits: Logits::All };
    model.forward_tapped(&mut pool, &[input], &fusion, Some(&mut tap)).unwrap();
    for (name, got) in &floats {
        family.close(name, got);
    }
    for (name, got) in &experts {
        let want = family.taps.ints(&format!("f32.{name}")).unwrap();
        assert_eq!(differing_expert_sets(got, &want.data, want.shape[1]), [0usize; 0], "{name}");
    }
    // States in caches are not visible. Their results show below.
    let is_tap = |n: &&str| n.starts_with("f32.") && !n.ends_with("_state");
    let n_recorded = family.taps.names().filter(is_tap).count();
    assert_eq!(floats.len() + experts.len() + 2, n_recorded, "all but decode_logits and long_logits");

    let mut decoded = Vec::new();
    for token in family.ints("decode_tokens") {
        let input = Input { slot, tokens: &[token], logits: Logits::Last };
        let y = model.forward(&mut pool, &[input], &fusion).unwrap();
        let mut logits = Vec::new();
        backend.read(&y, &mut logits).unwrap();
        decoded.extend(logits);
    }
    family.close("decode_logits", &decoded);
}

#[rstest]
fn long_passes(
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
) {
    let family = Family::open(name);
    let logits = family.logits(&family.ints("long_tokens"), &Fusion::FUSED);
    let vocab = family.model.architecture().vocab_size;
    let rows = family.ints("long_rows");
    let rows: Vec<f32> = rows.iter().flat_map(|&r| logits[r as usize * vocab..][..vocab].to_vec()).collect();
    family.close("long_logits", &rows);
}

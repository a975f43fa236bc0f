//! A tiny model of each family, compared with the recorded engine's `f32` run: taps of a prompt, forced decode steps, a
//! long pass.
#![allow(clippy::unwrap_used, reason = "a test may panic; clippy knows only functions marked as tests")]

mod family;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rstest::rstest;
use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{Backend, Fusion, Logits};
use zmlx_models::{Input, TapValue};
use zmlx_oracle::compare::differing_expert_sets;

use family::Family;

/// Activations have 16 bits in quantised products and 15 bits in attention. The largest measured difference is 7.0e-5,
/// for decoded tokens. If a part of a model is left out, or done in the other usual way, the logits change by more than
/// 2e-2.
const BOUND: f64 = 2e-4;

fn open(config: &Path) -> Family<CpuBackend> {
    Family::open(config, CpuBackend::new(Some(2)).unwrap(), BOUND)
}

#[test]
fn there_is_a_model_of_each_family() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/families");
    let n = std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(n, 11);
}

#[rstest]
fn taps(
    #[files("../../fixtures/families/*/config.json")] config: PathBuf,
    #[values("stock", "concat", "fused")] fusion: &str,
) {
    let family = open(&config);
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
    let mut sequence = family.sequence(fusion);
    let input = Input { slot: sequence.slot, tokens: &tokens, logits: Logits::All };
    model.forward_tapped(&mut sequence.pool, &[input], &fusion, Some(&mut tap)).unwrap();
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
    family.close_decoded(&mut sequence);
}

#[rstest]
fn long_passes(#[files("../../fixtures/families/*/config.json")] config: PathBuf) {
    open(&config).close_long(Fusion::FUSED);
}

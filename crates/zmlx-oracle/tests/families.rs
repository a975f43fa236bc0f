//! A tiny model of each family, compared with the recorded engine's `f32` run.

#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use std::path::PathBuf;

use rstest::rstest;
use zmlx_oracle::compare::{differing_expert_sets, rel_rms};
use zmlx_oracle::golden::TensorFile;
use zmlx_oracle::model::Model;

/// The relative RMS between two `f32` computations of the same formulas that add in different orders. A wrong formula
/// anywhere gives more than 2e-2.
const SAME_F32: f64 = 1e-5;

#[rstest]
fn taps_agree(#[files("../../fixtures/families/*/config.json")] config: PathBuf) {
    let dir = config.parent().unwrap();
    let family = dir.file_name().unwrap().to_str().unwrap();
    let model = Model::load(dir).unwrap();
    let taps = TensorFile::open(dir.join("taps.safetensors")).unwrap();
    let ints = |name: &str| taps.ints(name).unwrap();
    let close = |what: &str, got: &[f32], want: &[f32]| {
        let error = rel_rms(got, want);
        assert!(error <= SAME_F32, "{family} {what}: relative RMS {error:e}");
    };
    let mut session = model.session();
    let trace = session.step_traced(&ints("tokens").data).unwrap();
    for name in taps.names().filter_map(|name| name.strip_prefix("f32.")) {
        let stored = format!("f32.{name}");
        if name.ends_with("expert_indices") {
            let (got, want) = (trace.indices(name).unwrap(), ints(&stored));
            assert_eq!(differing_expert_sets(got, &want.data, want.shape[1]), [0usize; 0], "{family} {name}");
            continue;
        }
        let want = taps.floats(&stored).unwrap();
        let got = match name {
            "decode_logits" => {
                let steps = ints("decode_tokens").data;
                steps.iter().flat_map(|&token| session.step(&[token]).unwrap().data).collect()
            }
            "long_logits" => {
                let logits = model.logits(&ints("long_tokens").data).unwrap();
                ints("long_rows").data.iter().flat_map(|&row| logits.row(row as usize).to_vec()).collect()
            }
            _ => trace.get(name).unwrap().data.clone(),
        };
        if name.ends_with("expert_weights") {
            // Sorted, because the engine's order of experts differs.
            let sorted = |values: &[f32]| {
                let mut values = values.to_vec();
                values.chunks_exact_mut(want.shape[1]).for_each(|row| row.sort_by(f32::total_cmp));
                values
            };
            close(name, &sorted(&got), &sorted(&want.data));
        } else {
            close(name, &got, &want.data);
        }
    }
}

//! Tests that a validation finds a wrong computation.

use std::path::Path;

use clap::Parser;
use zmlx_kernels::{Hooked, Instrumented};

use super::{Args, Validate};
use crate::engine::{self, About, Job};
use crate::mutants::Wrong;
use crate::output::Outcome;
use zmlx_bench::capsule::validate::{ValidateRecord, Verdict};

const GLM: &str = "austen-glm4-moe-lite-4bit";
const QWEN: &str = "austen-qwen3-moe-4bit";

/// Validates a model that computes something wrongly.
struct Mutant<'a> {
    validate: Validate,
    wrong: Wrong,
    record: &'a mut Option<ValidateRecord>,
}

impl Job for Mutant<'_> {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> anyhow::Result<Outcome> {
        *self.record = Some(self.validate.examine(Hooked::new(backend, self.wrong), about)?);
        Ok(Outcome::Done)
    }
}

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

/// The result of `zmlx validate MODEL --max-tokens 24 --runs 1` for two of its prompts.
fn validate(model: &Path, more: &[&str], wrong: Wrong) -> ValidateRecord {
    // One thread, because other tests run at the same time.
    let options = ["validate", "--max-tokens", "24", "--runs", "1", "--threads", "1"];
    let options = options.iter().chain(more).map(std::ffi::OsString::from);
    let args = Command::parse_from(options.chain([model.into()])).args;
    let mut record = None;
    let mut validate = Validate::new(&args).unwrap();
    // One prompt of text, and one of code.
    validate.configurations = validate.configurations.into_iter().skip(1).take(2).collect();
    let job = Mutant { validate, wrong, record: &mut record };
    engine::with_backend(args.backend, job).unwrap();
    record.unwrap()
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// A fixture in which always three experts have the same router row, so that the last of the four chosen experts is one
/// of several with equal scores.
fn tied() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture(QWEN).join(file), dir.path().join(file)).unwrap();
    }
    let mut file = std::fs::read(fixture(QWEN).join("model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&file[8..start]).unwrap();
    let mut n_tied = 0;
    for (name, tensor) in header.as_object().unwrap() {
        if !name.contains(".mlp.gate.") {
            continue;
        }
        let offset = |i: usize| start + tensor["data_offsets"][i].as_u64().unwrap() as usize;
        let n_row = (offset(1) - offset(0)) / tensor["shape"][0].as_u64().unwrap() as usize;
        let rows = &mut file[offset(0)..offset(1)];
        for row in 0..15 {
            rows.copy_within(row / 3 * 3 * n_row..(row / 3 * 3 + 1) * n_row, row * n_row);
        }
        n_tied += 1;
    }
    assert_eq!(n_tied, 3 * 3, "weight, scales and biases of three layers");
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

#[test]
fn what_is_right_passes() {
    for model in [GLM, QWEN] {
        let record = validate(&fixture(model), &[], Wrong::Nothing);
        assert_eq!(record.verdict, Verdict::Pass, "{record:#?}");
    }
    let record = validate(tied().path(), &[], Wrong::Nothing);
    assert_eq!(record.verdict, Verdict::Pass, "{record:#?}");
}

/// Asserts that the checks that name the fused path fail, and no others.
fn assert_fused_path_fails(record: &ValidateRecord) {
    let found = record.checks.iter().map(|c| (c.comparison.starts_with("fused"), c.verdict));
    let logits = record.logits.iter().map(|l| (l.path == "fused", l.verdict));
    for (is_fused, verdict) in found.chain(logits) {
        assert!(is_fused || verdict == Verdict::Pass, "{record:#?}");
    }
    assert!(record.checks.iter().any(|c| c.verdict == Verdict::Fail), "{record:#?}");
    assert!(record.logits.iter().any(|l| l.verdict == Verdict::Fail), "{record:#?}");
    assert_eq!(record.verdict, Verdict::Fail);
}

#[test]
fn a_wrong_fused_op_fails() {
    for model in [GLM, QWEN] {
        for wrong in [Wrong::SignOfCombine, Wrong::GateAndUpSwapped, Wrong::ExpertOffByOne] {
            assert_fused_path_fails(&validate(&fixture(model), &[], wrong));
        }
    }
}

#[test]
fn without_the_reference_the_baselines_suffice() {
    let stock = ["--against", "stock"];
    for wrong in [Wrong::SignOfCombine, Wrong::GateAndUpSwapped, Wrong::ExpertOffByOne] {
        assert_fused_path_fails(&validate(&fixture(GLM), &stock, wrong));
    }
}

#[test]
fn a_dropped_correction_bias_fails() {
    assert_fused_path_fails(&validate(&fixture(GLM), &[], Wrong::CorrectionBiasDropped));
}

#[test]
fn what_every_path_gets_wrong_fails_by_the_reference() {
    for model in [GLM, QWEN] {
        let record = validate(&fixture(model), &[], Wrong::QuantizationBiasDropped);
        assert!(record.checks.iter().all(|c| c.verdict == Verdict::Pass), "{record:#?}");
        assert!(record.logits.iter().all(|l| l.verdict == Verdict::Fail), "{record:#?}");
        assert_eq!(record.verdict, Verdict::Fail);
    }
}

#[test]
fn a_tie_broken_the_other_way_fails() {
    assert_fused_path_fails(&validate(tied().path(), &[], Wrong::TieBrokenUpwards));
}

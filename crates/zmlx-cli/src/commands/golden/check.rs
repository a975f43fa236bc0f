//! `zmlx golden check`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::Checkpoint;
use zmlx_oracle::golden::{Checked, GoldenFile, Outcome as Found};

use super::report;
use crate::args::{BackendArgs, BackendKind, CpuArgs, ModelArgs};
use crate::capsule::model;
use crate::capsule::validate::Verdict;
use crate::engine::{self, About, Job};
use crate::greedy;
use crate::output::{self, Outcome, note, print, print_json};
use crate::progress::Progress;
use crate::source::Source;

/// Arguments of `zmlx golden check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The golden file.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// What computes: one backend, or all of this build.
    #[arg(long, value_enum)]
    backend: Option<Which>,
    #[command(flatten)]
    cpu: CpuArgs,
    /// The path that is checked.
    #[arg(long, value_name = "PRESET[,±OP]", default_value = "fused")]
    fusion: Fusion,
    /// Write the results as JUnit XML too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Overwrite that file.
    #[arg(long, requires = "junit")]
    force: bool,
    /// Print workflow commands of GitHub Actions, which show what differs beside the file.
    #[arg(long, conflicts_with = "json")]
    github: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What `--backend` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    All,
    Cpu,
    Cuda,
    Mlx,
}

/// The results of one backend.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    /// Name and particulars.
    pub(super) backend: String,
    pub(super) prompts: Vec<PromptResult>,
}

/// A prompt held to its recording.
#[derive(Debug, Serialize)]
pub(super) struct PromptResult {
    pub(super) prompt: String,
    pub(super) n_tokens: usize,
    pub(super) verdict: Verdict,
    pub(super) first_divergence: Option<usize>,
    pub(super) want: Option<u32>,
    pub(super) got: Option<u32>,
    pub(super) margin: Option<f64>,
    pub(super) bound: Option<f64>,
}

impl PromptResult {
    fn of(checked: Checked) -> Self {
        let Checked { prompt, n_tokens, verdict, bound, want, got } = checked;
        let outcome = match verdict.outcome {
            Found::Equal => Verdict::Pass,
            Found::FlipBelowBound => Verdict::Explained,
            Found::Mismatch => Verdict::Fail,
        };
        let (first_divergence, margin) = (verdict.first_divergence, verdict.margin_there);
        Self { prompt, n_tokens, verdict: outcome, first_divergence, want, got, margin, bound }
    }
}

pub(super) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&args.model)?;
    if let Some(path) = &args.junit {
        let inputs = [source.files(), vec![args.file.clone()]].concat();
        output::check_output(path, args.force, &inputs)?;
    }
    // Read once more for each backend, by the rounding of which it is judged.
    crate::source::read_text(&args.file)?;
    let checkpoint = source.checkpoint()?;
    let backends = match args.backend {
        None => vec![None],
        Some(Which::All) => engine::usable().map(Some).collect(),
        Some(Which::Cpu) => vec![Some(BackendKind::Cpu)],
        Some(Which::Cuda) => vec![Some(BackendKind::Cuda)],
        Some(Which::Mlx) => vec![Some(BackendKind::Mlx)],
    };
    let mut all = Vec::new();
    let mut identity = None;
    for backend in backends {
        let mut results = None;
        let job = Check {
            file: &args.file,
            fusion: &args.fusion,
            checkpoint: &checkpoint,
            identity: &mut identity,
            results: &mut results,
        };
        engine::with_backend(BackendArgs { backend, cpu: args.cpu }, job)?;
        all.extend(results);
    }
    let worst = all.iter().flat_map(|r| &r.prompts).map(|p| p.verdict).max().unwrap_or(Verdict::Fail);
    if args.json {
        print_json(&serde_json::json!({ "file": args.file, "verdict": worst, "backends": all }))?;
    } else if args.github {
        print(&report::github(&args.file, &all))?;
    } else {
        print(&report::text(checkpoint.name(), &all, worst))?;
    }
    if let Some(path) = &args.junit {
        let xml = report::junit(&args.file, &all)?;
        output::write_file(path, |out| Ok(out.write_all(xml.as_bytes())?))?;
    }
    if worst == Verdict::Fail {
        note(format_args!("error: {}: other tokens than recorded", args.file.display()));
        return Ok(Outcome::CheckFailed);
    }
    Ok(Outcome::Done)
}

/// The hashes of a checkpoint.
#[derive(Debug)]
struct Identity {
    config: String,
    weights: Option<String>,
}

/// Decodes the file's prompts on one backend.
struct Check<'a> {
    file: &'a Path,
    fusion: &'a Fusion,
    checkpoint: &'a Checkpoint,
    /// Made by the first backend, for all.
    identity: &'a mut Option<Identity>,
    results: &'a mut Option<Results>,
}

impl Job for Check<'_> {
    fn run<B: Backend + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let golden = GoldenFile::open(self.file, about.rounding)?;
        let identity = match self.identity.take() {
            Some(known) => known,
            None => Identity {
                config: model::config_sha256(self.checkpoint),
                weights: model::weights_sha256(self.checkpoint)?,
            },
        };
        self.compare_model(&golden, &identity)?;
        *self.identity = Some(identity);
        let (model, _) = engine::load(backend, self.checkpoint)?;
        let mut progress = Progress::new("Checking");
        let mut n_done = 0;
        let checked = golden.check(about.rounding, |prompt, n_tokens| -> Result<Vec<u32>> {
            let decoded = greedy::decode(&model, prompt, n_tokens, self.fusion, |_| ())?;
            n_done += 1;
            progress.update(n_done, golden.prompts.len());
            Ok(decoded.steps.iter().map(|s| s.token).collect())
        })?;
        let prompts = checked.into_iter().map(PromptResult::of).collect();
        *self.results = Some(Results { backend: about.text.clone(), prompts });
        Ok(Outcome::Done)
    }
}

impl Check<'_> {
    fn compare_model(&self, golden: &GoldenFile, identity: &Identity) -> Result<()> {
        let want = &golden.model;
        let hashes = [
            ("weights_sha256", identity.weights.as_deref(), Some(want.weights_sha256.as_str())),
            ("config_sha256", Some(identity.config.as_str()), want.config_sha256.as_deref()),
        ];
        for (field, got, want) in hashes {
            if want.is_some() && got != want {
                bail!(
                    "{}: field model.{field}: the file was recorded with {}, but {} has {}: another model, or one that \
                     has changed",
                    self.file.display(),
                    want.unwrap_or("none"),
                    self.checkpoint.name(),
                    got.unwrap_or("none")
                );
            }
        }
        Ok(())
    }
}

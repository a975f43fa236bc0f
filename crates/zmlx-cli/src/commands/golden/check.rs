//! `zmlx golden check`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;
use zmlx_bench::capsule::model;
use zmlx_bench::capsule::validate::Verdict;
use zmlx_bench::greedy;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::Checkpoint;
use zmlx_oracle::compare::log_softmax;
use zmlx_oracle::golden::{Checked, Decoded, GoldenFile, Outcome as Found};

use super::report;
use crate::args::{BackendArgs, BackendKind, CpuArgs, ModelArgs, heading};
use crate::engine::{self, About, Job};
use crate::interrupt::Interrupted;
use crate::output::{self, Outcome, note, print, print_json};
use crate::progress::{Progress, WorkProgress};
use crate::source::Source;

/// Arguments of `zmlx golden check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The golden file.
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Allow a model whose weights or config differ from the recorded ones, such as a new quantisation.
    #[arg(long)]
    allow_other_weights: bool,
    /// The backend that computes, or all backends of this build.
    #[arg(long, value_enum, help_heading = heading::COMPUTING)]
    backend: Option<Which>,
    #[command(flatten)]
    cpu: CpuArgs,
    /// The path to check.
    #[arg(long, value_name = "PRESET[,±OP]", default_value = "fused", help_heading = heading::COMPUTING)]
    fusion: Fusion,
    /// Write the results as JUnit XML. An older report is replaced.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    junit: Option<PathBuf>,
    /// Overwrite the file of --junit even if it is not a JUnit report.
    #[arg(long, requires = "junit", help_heading = heading::OUTPUT)]
    force: bool,
    /// Print annotations for GitHub Actions, which shows them beside the golden file.
    #[arg(long, conflicts_with = "json", help_heading = heading::OUTPUT)]
    github: bool,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
}

/// The values of `--backend`.
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
    /// Name and details of the backend.
    pub(super) backend: String,
    pub(super) prompts: Vec<PromptResult>,
}

/// The comparison of a prompt with its recording.
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
    /// The root mean square of the difference of the log-probabilities, relative to the spread of the logits.
    pub(super) logprob_rel_rms: Option<f64>,
    pub(super) logprob_bound: Option<f64>,
}

impl PromptResult {
    fn of(checked: Checked) -> Self {
        let outcome = match checked.outcome() {
            Found::Equal => Verdict::Pass,
            Found::FlipBelowBound => Verdict::Explained,
            Found::Mismatch => Verdict::Fail,
        };
        let Checked { prompt, n_tokens, verdict, bound, want, got, logprobs } = checked;
        Self {
            prompt,
            n_tokens,
            verdict: outcome,
            first_divergence: verdict.first_divergence,
            want,
            got,
            margin: verdict.margin_there,
            bound,
            logprob_rel_rms: logprobs.map(|l| l.rel_rms),
            logprob_bound: logprobs.map(|l| l.bound),
        }
    }
}

pub(super) fn run(args: Args) -> Result<Outcome> {
    if let Some(path) = &args.junit {
        check_junit(path, &args)?;
    }
    let mut all = Vec::new();
    let checked = check(&args, &mut all);
    let worst = match &checked {
        Ok(_) => all.iter().flat_map(|r| &r.prompts).map(|p| p.verdict).max().unwrap_or(Verdict::Fail),
        // An interrupted check writes no reports.
        Err(error) if error.is::<Interrupted>() => return Err(Interrupted.into()),
        Err(_) => Verdict::Fail,
    };
    let error = checked.as_ref().err().map(output::message);
    if let Some(path) = &args.junit {
        let xml = report::junit(&args.file, &all, error.as_deref())?;
        output::write_file(path, |out| Ok(out.write_all(xml.as_bytes())?))?;
    }
    if args.json {
        let file = args.file.display().to_string();
        let report = serde_json::json!({ "file": file, "verdict": worst, "backends": all, "error": error });
        print_json(&report)?;
    } else if args.github {
        print(&report::github(&args.file, &all, error.as_deref()))?;
    } else if let Ok(name) = &checked {
        print(&report::text(name, &all, worst))?;
    }
    checked?;
    if worst == Verdict::Fail {
        note(format_args!("error: {}: the results differ from the recorded ones", args.file.display()));
        return Ok(Outcome::CheckFailed);
    }
    Ok(Outcome::Done)
}

/// Fails if the file exists, is not a JUnit report, and `--force` is absent.
fn check_junit(path: &Path, args: &Args) -> Result<()> {
    let is_report =
        || zmlx_kernels::read_text(path).is_ok_and(|t| t.starts_with("<?xml") && t.contains("<testsuites"));
    if !args.force && path.symlink_metadata().is_ok() && !is_report() {
        bail!("{}: exists already and is not a JUnit report; --force overwrites it", path.display());
    }
    let model = Source::resolve(&args.model).map(|source| source.files()).unwrap_or_default();
    output::check_output(path, true, &[vec![args.file.clone()], model].concat())
}

/// Checks on every backend. If a backend fails, the results of the earlier ones stay in `all`. Returns the model's
/// name.
fn check(args: &Args, all: &mut Vec<Results>) -> Result<String> {
    // Only a check: each backend reads the file again, by its own rounding.
    crate::source::read_text(&args.file)?;
    let checkpoint = Source::resolve(&args.model)?.checkpoint()?;
    let backends = match args.backend {
        None => vec![None],
        Some(Which::All) => engine::usable().map(Some).collect(),
        Some(Which::Cpu) => vec![Some(BackendKind::Cpu)],
        Some(Which::Cuda) => vec![Some(BackendKind::Cuda)],
        Some(Which::Mlx) => vec![Some(BackendKind::Mlx)],
    };
    let mut identity = None;
    for backend in backends {
        let job = Check { args, checkpoint: &checkpoint, identity: &mut identity, all };
        engine::with_backend(BackendArgs { backend, cpu: args.cpu }, job)?;
    }
    Ok(checkpoint.name().to_owned())
}

/// The hash of the weights; `None` for random weights.
pub(super) fn hashed(checkpoint: &Checkpoint) -> Option<String> {
    let mut progress = WorkProgress::default();
    model::weights_sha256(checkpoint, &mut |work, done, of| progress.update(work, done, of))
}

/// The hashes of a checkpoint.
#[derive(Debug)]
struct Identity {
    config: String,
    weights: Option<String>,
}

/// Decodes the prompts of the file on one backend.
struct Check<'a> {
    args: &'a Args,
    checkpoint: &'a Checkpoint,
    /// Computed by the first backend, and used by all.
    identity: &'a mut Option<Identity>,
    all: &'a mut Vec<Results>,
}

impl Job for Check<'_> {
    fn run<B: Backend + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let golden = GoldenFile::open(&self.args.file, about.rounding)?;
        let identity = match self.identity.take() {
            Some(known) => known,
            None => {
                Identity { config: model::config_sha256(self.checkpoint), weights: hashed(self.checkpoint) }
            }
        };
        self.compare_model(&golden, &identity)?;
        *self.identity = Some(identity);
        let (model, _) = engine::load(backend, self.checkpoint)?;
        let mut progress = Progress::new("Checking");
        let mut n_done = 0;
        let checked = golden.check(about.rounding, |prompt, n_tokens| -> Result<Decoded> {
            let mut logprobs = Vec::new();
            let decoded = greedy::decode(&model, prompt, n_tokens, &self.args.fusion, |row| {
                // Greedy decoding chose the most probable token.
                logprobs.push(log_softmax(row).into_iter().fold(f64::NEG_INFINITY, f64::max));
            })?;
            n_done += 1;
            progress.update(n_done, golden.prompts.len());
            Ok(Decoded { tokens: decoded.steps.iter().map(|s| s.token).collect(), logprobs })
        })?;
        let prompts = checked.into_iter().map(PromptResult::of).collect();
        self.all.push(Results { backend: about.text.clone(), prompts });
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
            if want.is_none() || got == want {
                continue;
            }
            let (got, want) = (got.unwrap_or("none"), want.unwrap_or("none"));
            let (file, name) = (self.args.file.display(), self.checkpoint.name());
            if !self.args.allow_other_weights {
                bail!(
                    "{file}: field model.{field}: the file was recorded with {want}, but {name} has {got}: it is another model, \
                     or it has changed; --allow-other-weights checks it all the same"
                );
            }
            tracing::warn!("{file}: field model.{field}: recorded with {want}, checked with {got}");
        }
        Ok(())
    }
}

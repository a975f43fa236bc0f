//! `zmlx golden record`.

use std::path::PathBuf;

use anyhow::Result;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Model};
use zmlx_oracle::compare::log_softmax;
use zmlx_oracle::golden::{FORMAT, GoldenFile, ModelId, Outcome as Found, RecordedBy, Recording};

use super::check::hashed;
use crate::args::{BackendArgs, ModelArgs, positive};
use crate::engine::{self, About, Job};
use crate::output::{self, Outcome, note};
use crate::progress::Progress;
use crate::prompts::{self, Prompt};
use crate::source::Source;
use zmlx_bench::capsule::model;
use zmlx_bench::greedy;

/// Arguments of `zmlx golden record`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The golden file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Your own prompts: a JSON array or lines of {"name", "text" | "tokens" | "messages"}.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Tokens to decode after each prompt.
    #[arg(short, long, value_name = "N", default_value_t = 96, value_parser = positive())]
    max_tokens: usize,
    #[command(flatten)]
    backend: BackendArgs,
    /// Overwrite an existing golden file.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&args.model)?;
    let inputs = [source.files(), args.prompts.iter().cloned().collect()].concat();
    output::check_output(&args.output, args.force, &inputs)?;
    let checkpoint = source.checkpoint()?;
    let prompts = match &args.prompts {
        Some(file) => prompts::read_file(file, &source, checkpoint.architecture().vocab_size)?,
        None => prompts::built_in(&source, checkpoint.architecture().vocab_size)?,
    };
    engine::with_backend(args.backend, Record { checkpoint, prompts, args })
}

struct Record {
    checkpoint: Checkpoint,
    prompts: Vec<Prompt>,
    args: Args,
}

impl Job for Record {
    fn run<B: Backend + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, _) = engine::load(backend, &self.checkpoint)?;
        let bound = about.rounding.margin_bound();
        let mut progress = Progress::new("Recording");
        let mut recordings = Vec::new();
        let n_prompts = self.prompts.len();
        for (i, prompt) in self.prompts.into_iter().enumerate() {
            let recording = decode(&model, prompt, self.args.max_tokens, &Fusion::STOCK)?;
            let name = &recording.name;
            let Some(recording) = recording.whole else {
                note(format_args!("error: {name}: the logits are not numbers: nothing is recorded"));
                return Ok(Outcome::CheckFailed);
            };
            // Tokens on which two paths of the same build disagree cannot be required of another build.
            let fused = greedy::decode(
                &model,
                &recording.prompt_tokens,
                recording.tokens.len(),
                &Fusion::FUSED,
                |_| (),
            )?;
            let fused: Vec<u32> = fused.steps.iter().map(|s| s.token).collect();
            let checked = recording.check(&fused, bound);
            if checked.verdict.outcome == Found::Mismatch {
                note(format_args!(
                    "error: {name}: the fused path gives other tokens than the stock path from token {} on: nothing is \
                     recorded; `zmlx validate` tells more",
                    checked.verdict.first_divergence.unwrap_or(0)
                ));
                return Ok(Outcome::CheckFailed);
            }
            recordings.push(recording);
            progress.update(i + 1, n_prompts);
        }
        let Some(weights_sha256) = hashed(&self.checkpoint) else {
            anyhow::bail!("{}: random weights have no hash", self.checkpoint.name());
        };
        let golden = GoldenFile {
            format: FORMAT,
            model: ModelId {
                name: self.checkpoint.name().to_owned(),
                config_sha256: Some(model::config_sha256(&self.checkpoint)),
                weights_sha256,
            },
            recorded_by: RecordedBy {
                program: format!("zmlx {}", env!("CARGO_PKG_VERSION")),
                backend: about.text.clone(),
                rounding: about.rounding,
            },
            prompts: recordings,
        };
        output::write_file(&self.args.output, |out| {
            serde_json::to_writer_pretty(&mut *out, &golden)?;
            Ok(out.write_all(b"\n")?)
        })?;
        Ok(Outcome::Done)
    }
}

/// The result of decoding a prompt. `whole` is `None` if a logit was not a number.
struct Decoded {
    name: String,
    whole: Option<Recording>,
}

fn decode<B: Backend>(model: &Model<B>, prompt: Prompt, n_tokens: usize, fusion: &Fusion) -> Result<Decoded> {
    let mut logprobs = Vec::new();
    let decoded = greedy::decode(model, &prompt.tokens, n_tokens, fusion, |row| {
        // Greedy decoding chose the most probable token.
        logprobs.push(log_softmax(row).into_iter().fold(f64::NEG_INFINITY, f64::max));
    })?;
    let of = |f: fn(&greedy::Step) -> f64| decoded.steps.iter().map(f).collect();
    let recording = Recording {
        name: prompt.name.clone(),
        text: prompt.text,
        prompt_tokens: prompt.tokens,
        tokens: decoded.steps.iter().map(|s| s.token).collect(),
        margins: of(|s| s.margin),
        spreads: of(|s| s.spread),
        logprobs,
    };
    Ok(Decoded { name: prompt.name, whole: (!decoded.is_broken).then_some(recording) })
}

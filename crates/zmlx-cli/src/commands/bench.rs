//! `zmlx bench`: tokens per second of several fusions on the same weights, in one process, in turns.

mod bandwidth;
mod measure;
mod report;

use anyhow::{Result, bail};
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Error};

use super::inspect::cost::Cost;
use crate::args::{BackendArgs, ModelArgs, RouteArgs, positive};
use crate::engine::{self, About, Job};
use crate::memory;
use crate::output::{Outcome, note, print, print_json};
use crate::progress::Progress;
use crate::prompts;
use crate::source::Source;
use measure::{Samples, Workload};
use report::Report;

/// A fused path may differ from the stock path by this relative root mean square of the logits before it is timed:
/// both keep f32 throughout and differ in the order of sums only, which leaves 1e-6 to 1e-5; a wrong kernel leaves
/// orders of magnitude more. Ties in a router that fall the other way leave up to 1e-2 in single rows.
const MAX_REL_RMS: f64 = 2e-2;

/// The seed of random weights: the same on every machine, so that capsules compare.
const SYNTHETIC_SEED: u64 = 1;

/// Arguments of `zmlx bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights instead of a model: qwen3-30b-a3b, qwen3-235b-a22b or glm-4.7-flash, then perhaps ,layers=N ,vocab=N
    /// ,mode=affine|mxfp4|mxfp8|nvfp4 ,bits=N ,group=N
    #[arg(long, value_name = "NAME[,layers=N…]", conflicts_with = "model")]
    synthetic: Option<String>,
    /// Tokens of the prompt.
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = positive())]
    prompt_tokens: usize,
    /// Tokens to decode.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = positive())]
    generate_tokens: usize,
    /// How often each is measured.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = positive())]
    repetitions: usize,
    /// What is compared; may be given several times. By default stock, concat and fused.
    #[arg(long, value_name = "PRESET[,±OP]")]
    fusion: Vec<Fusion>,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object with every single measurement.
    #[arg(long)]
    json: bool,
}

/// Verifies that the paths agree, measures them in turns, and prints a table.
pub(crate) fn run(mut args: Args) -> Result<Outcome> {
    let checkpoint = match &args.synthetic {
        Some(spec) => Checkpoint::synthetic(spec, SYNTHETIC_SEED)?,
        None => Source::resolve(&args.model)?.checkpoint()?,
    };
    let limit = checkpoint.config().max_position_embeddings();
    let n_tokens = args.prompt_tokens + args.generate_tokens;
    if n_tokens > limit {
        return Err(Error::ContextLength { n_tokens, limit }.into());
    }
    if args.fusion.is_empty() {
        args.fusion = vec![Fusion::STOCK, Fusion::CONCAT, Fusion::FUSED];
    }
    for fusion in &mut args.fusion {
        *fusion = args.route.apply(*fusion, checkpoint.config())?;
    }
    engine::with_backend(args.backend, Bench { checkpoint, args })
}

struct Bench {
    checkpoint: Checkpoint,
    args: Args,
}

impl Job for Bench {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let Args { prompt_tokens: n_prompt, generate_tokens: n_generate, repetitions, .. } = self.args;
        let fusions = &self.args.fusion;
        let Some(first) = fusions.first() else { bail!("no fusion to measure") };
        let (model, _) = engine::load(backend, &self.checkpoint)?;

        // The first path's own continuation of a fixed random prompt is what all paths compute.
        let vocab = model.config().vocab_size();
        let prompt = prompts::seeded_tokens(1, n_prompt, vocab);
        let Some(workload) = Workload::greedy(&model, prompt, n_generate, first)? else {
            note(format_args!("error: the logits of {first} are not all numbers: nothing was timed"));
            return Ok(Outcome::CheckFailed);
        };
        // This warms caches and memory up, too.
        let mut differences = Vec::new();
        for fusion in fusions {
            let difference = workload.compare(&model, fusion)?;
            let is_sound = difference <= MAX_REL_RMS; // not so if it is NaN
            if !is_sound {
                note(format_args!(
                    "error: the logits of {fusion} differ from those of {first} by {difference:.1e} (relative root \
                     mean square, at most {MAX_REL_RMS:.0e} is sound): nothing was timed"
                ));
                return Ok(Outcome::CheckFailed);
            }
            differences.push(difference);
        }
        // Every path has run; the bandwidth probe's own buffer is not the model's.
        let peak_memory_bytes = memory::peak_bytes();
        let bandwidth = bandwidth::read_bytes_per_second(about.n_threads);
        let mut samples = vec![Samples::default(); fusions.len()];
        let mut progress = Progress::new("Measuring");
        for repetition in 0..repetitions {
            for turn in 0..fusions.len() {
                // Alternating order: a machine that slows down meanwhile slows all down alike.
                let at = if repetition % 2 == 0 { turn } else { fusions.len() - 1 - turn };
                workload.measure(&model, &fusions[at], &mut samples[at])?;
                progress.update(repetition * fusions.len() + turn + 1, repetitions * fusions.len());
            }
        }
        let cost = Cost::new(&self.checkpoint);
        let mean_cached = n_prompt as f64 + (n_generate - 1) as f64 / 2.0;
        let report = Report {
            model: self.checkpoint.name(),
            backend: &about.text,
            n_threads: about.n_threads,
            n_prompt,
            n_generate,
            repetitions,
            bytes_per_token: cost.bytes_per_token(mean_cached),
            read_bytes_per_second: bandwidth,
            peak_memory_bytes,
        };
        let rows = report.rows(fusions, &samples, &differences);
        if self.args.json {
            print_json(&report.json(&rows))?;
        } else {
            print(&report.text(&rows))?;
        }
        Ok(Outcome::Done)
    }
}

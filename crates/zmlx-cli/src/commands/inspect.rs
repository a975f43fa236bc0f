//! `zmlx inspect`: shows what a checkpoint contains, how much memory it needs, and whether it can be used.

mod formats;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use zmlx_kernels::Backend;
use zmlx_models::{Checkpoint, Cost, Error, human_bytes};

use crate::args::{BackendArgs, ModelArgs, heading};
use crate::engine::{self, About, Job};
use crate::output::{Outcome, note, print, print_json};
use crate::source::Source;
use crate::table::Table;
use formats::{Group, WeightEntry};

/// Arguments of `zmlx inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The length of the context for which memory is computed. The default is the longest context of the model.
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// List every weight. By default similar weights are listed as a group.
    #[arg(long, help_heading = heading::OUTPUT)]
    tensors: bool,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
}

/// Shows the checkpoint, then loads it as any other command would.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let checkpoint = Source::resolve(&args.model)?.checkpoint()?;
    engine::with_backend(args.backend, Inspect { checkpoint, args })
}

/// The number of weights, after dequantisation.
pub(crate) fn n_parameters(checkpoint: &Checkpoint) -> u64 {
    formats::entries(checkpoint).iter().map(|e| e.n_elements).sum()
}

struct Inspect {
    checkpoint: Checkpoint,
    args: Args,
}

#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    model_type: &'static str,
    config: &'a Map<String, Value>,
    dtype: Option<&'a str>,
    eos_token_ids: &'a [u32],
    quantization: Option<String>,
    n_tensors: usize,
    n_parameters: u64,
    total_bytes: u64,
    #[serde(flatten)]
    cost: Cost,
    context_tokens: usize,
    memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<WeightEntry>>,
    weights: Vec<Group>,
    usable: bool,
    problems: Vec<String>,
}

impl Job for Inspect {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let checkpoint = &self.checkpoint;
        let architecture = checkpoint.architecture();
        let entries = formats::entries(checkpoint);
        let cost = Cost::new(checkpoint);
        let context_tokens = self.args.context.unwrap_or(architecture.max_position_embeddings);
        let problems = match engine::load(backend, checkpoint) {
            Ok(_) => Vec::new(),
            Err(error) => match error.downcast::<Error>().context("loading")? {
                Error::Weights { problems, .. } => problems.iter().map(ToString::to_string).collect(),
                other => vec![other.to_string()],
            },
        };
        let report = Report {
            name: checkpoint.name(),
            model_type: architecture.model_type,
            config: &architecture.config,
            dtype: checkpoint.declared_dtype(),
            eos_token_ids: checkpoint.eos_token_ids(),
            quantization: checkpoint.quantization().global().map(|spec| spec.to_string()),
            n_tensors: checkpoint.tensors().len(),
            n_parameters: entries.iter().map(|e| e.n_elements).sum(),
            total_bytes: checkpoint.total_bytes(),
            context_tokens,
            memory_bytes: cost.memory_bytes(context_tokens),
            cost,
            weights: formats::groups(&entries),
            tensors: self.args.tensors.then_some(entries),
            usable: problems.is_empty(),
            problems,
        };
        if self.args.json {
            print_json(&report)?;
        } else {
            print(&report.text(about))?;
        }
        if report.usable {
            return Ok(Outcome::Done);
        }
        note(format_args!("error: {}: {} tensors cannot be used:", report.name, report.problems.len()));
        for problem in &report.problems {
            note(format_args!("  {problem}"));
        }
        Ok(Outcome::Unusable)
    }
}

impl Report<'_> {
    fn text(&self, about: &About) -> String {
        let mut text = format!("{} ({})\n\n", self.name, self.model_type);
        for (key, value) in self.config {
            text += &format!("  {key}: {value}\n");
        }
        let eos: Vec<String> = self.eos_token_ids.iter().map(ToString::to_string).collect();
        text += &format!("  eos_token_id: {}\n", if eos.is_empty() { "none".into() } else { eos.join(", ") });
        text += &format!("  dtype: {}\n", self.dtype.unwrap_or("not given"));
        text += &format!("  quantization: {}\n\n", self.quantization.as_deref().unwrap_or("none"));

        match &self.tensors {
            Some(entries) => {
                let mut table = Table::new(&["weight", "format", "shape", "bytes"]);
                for e in entries {
                    let cells =
                        [e.path.clone(), e.format.clone(), format!("{:?}", e.shape), e.n_bytes.to_string()];
                    table.row(cells.to_vec());
                }
                text += &table.render();
            }
            None => {
                let mut table = Table::new(&["weights", "format", "shape", "count", "bytes"]);
                for g in &self.weights {
                    let shape = format!("{:?}", g.shape);
                    let (count, size) = (g.count.to_string(), human_bytes(g.n_bytes));
                    table.row(vec![g.path.clone(), g.format.clone(), shape, count, size]);
                }
                text += &table.render();
            }
        }
        let mut line = |what: &str, value: String| text += &format!("{what}: {value}\n");
        line("\nTensors", format!("{}, {} parameters", self.n_tensors, self.n_parameters));
        line("Weights", format!("{} bytes ({})", self.total_bytes, human_bytes(self.total_bytes)));
        let read = self.cost.weight_bytes_per_token;
        line("Read per decoded token", format!("{read} bytes of weights ({})", human_bytes(read)));
        let cached = self.cost.kv_bytes_per_token;
        line("Cache per token of context", format!("{cached} bytes (16 bits for each key and value)"));
        let state = self.cost.state_bytes;
        if state > 0 {
            line("State of a sequence", format!("{state} bytes, read and written for each token"));
        }
        let memory = format!(
            "{} for a context of {} tokens, and the activations of a part of the prompt",
            human_bytes(self.memory_bytes),
            self.context_tokens
        );
        line("Memory", memory);
        line("Backend", about.text.clone());
        line("Verdict", if self.usable { "every tensor fits".into() } else { "cannot be used".into() });
        text
    }
}

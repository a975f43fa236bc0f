//! What `zmlx convert` prints about its result.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use zmlx_kernels::Instrumented;
use zmlx_models::convert::{MatrixError, compare};
use zmlx_models::{Checkpoint, Converted, Divergence, Predictions, human_bytes};

use crate::args::{BackendArgs, FusionArgs};
use crate::engine::{self, About, Job};
use crate::output::Outcome;
use crate::progress::Progress;
use crate::source::Source;
use crate::table::Table;

/// The largest number of prompt tokens that are used: the predictions of both models are held in memory.
const MAX_TOKENS: usize = 512;

/// The tokens of the prompt.
pub(super) fn prompt_tokens(source: &Source, prompt: &str) -> Result<Vec<u32>> {
    let mut tokens = source.need_tokenizer()?.encode(prompt)?;
    if tokens.is_empty() {
        bail!("--prompt: no tokens");
    }
    tokens.truncate(MAX_TOKENS);
    Ok(tokens)
}

#[derive(Serialize)]
pub(super) struct Report {
    out: String,
    model_type: &'static str,
    quantization: Option<String>,
    shards: Vec<String>,
    n_kept_shards: usize,
    total_bytes: u64,
    n_parameters: u64,
    bits_per_weight: f64,
    copied: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    matrices: Option<Vec<MatrixError>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<Divergence>,
}

impl Report {
    pub(super) fn new(out: &Path, result: &Checkpoint, converted: &Converted) -> Self {
        let Converted { shards, n_kept_shards, total_bytes, n_parameters, copied } = converted.clone();
        Self {
            out: out.display().to_string(),
            model_type: result.architecture().model_type,
            quantization: result.quantization().global().map(|spec| spec.to_string()),
            shards,
            n_kept_shards,
            total_bytes,
            n_parameters,
            bits_per_weight: 8.0 * total_bytes as f64 / n_parameters.max(1) as f64,
            copied,
            matrices: None,
            divergence: None,
        }
    }

    /// Compares the weights of the two models.
    pub(super) fn compare(&mut self, source: &Checkpoint, result: &Checkpoint) -> Result<()> {
        let mut bar = Progress::new("Comparing");
        self.matrices = Some(compare(source, result, &mut |done, of| bar.update(done, of))?);
        Ok(())
    }

    /// Compares the predictions of the two models.
    pub(super) fn predict(
        &mut self,
        checkpoints: [&Checkpoint; 2],
        tokens: &[u32],
        (fusion, backend): (FusionArgs, BackendArgs),
    ) -> Result<()> {
        let mut all = Vec::new();
        // One after the other: together they may not fit into the memory of a device.
        for checkpoint in checkpoints {
            engine::with_backend(backend, Predict { checkpoint, tokens, fusion, into: &mut all })?;
        }
        if let [source, result] = &all[..] {
            self.divergence = Some(source.divergence(result)?);
        }
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if let Some(matrices) = &self.matrices {
            let mut table =
                Table::new(&["weight", "format", "shape", "relative error", "largest difference"]);
            for m in matrices {
                let (error, largest) =
                    (format!("{:.5}", m.relative_error), format!("{:.3e}", m.largest_difference));
                table.row(vec![m.path.clone(), m.format.clone(), format!("{:?}", m.shape), error, largest]);
            }
            text += &table.render();
            text.push('\n');
        }
        if let Some(d) = &self.divergence {
            text += &format!(
                "Divergence from the source over {} tokens: {:.6} nats on average, {:.6} at most; the same most probable token \
                 at {:.1} %\n\n",
                d.n_tokens,
                d.mean_kl,
                d.largest_kl,
                100.0 * d.same_top
            );
        }
        text += &format!(
            "{}: {}, {}, {:.3} bits per weight, {} in {} file{}\n",
            self.out,
            self.model_type,
            self.quantization.as_deref().unwrap_or("not quantised"),
            self.bits_per_weight,
            human_bytes(self.total_bytes),
            self.shards.len(),
            if self.shards.len() == 1 { "" } else { "s" },
        );
        if self.n_kept_shards > 0 {
            text += &format!("{} of them were already written by an earlier run\n", self.n_kept_shards);
        }
        text
    }
}

/// Computes the predictions of one model.
struct Predict<'a> {
    checkpoint: &'a Checkpoint,
    tokens: &'a [u32],
    fusion: FusionArgs,
    into: &'a mut Vec<Predictions>,
}

impl Job for Predict<'_> {
    fn run<B: Instrumented + 'static>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, _) = engine::load(backend, self.checkpoint)?;
        let fusion = about.fusion(&model, self.fusion)?;
        self.into.push(Predictions::of(&model, self.tokens, &fusion)?);
        Ok(Outcome::Done)
    }
}

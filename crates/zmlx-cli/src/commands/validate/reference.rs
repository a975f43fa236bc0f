//! Logits compared with the independent reference implementation, for models small enough for it.

use anyhow::Result;
use serde::Serialize;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Input, LogitsOf, Model, PREFILL_CHUNK};
use zmlx_oracle::checkpoint::KvBSplit;
use zmlx_oracle::compare::{max_abs, rel_rms};

use super::tokens::Verdict;
use crate::commands::inspect;
use crate::engine::Rounding;
use crate::source::Source;

/// The reference keeps every weight in f32 and takes its time: larger models are not compared.
const MAX_PARAMETERS: u64 = 64_000_000;

/// The most by which the logits may differ from the reference's, as relative root mean square over all positions.
///
/// The reference computes matrix products in f32 and all else in f64, on the same dequantised weights. The CPU backend
/// rounds the activations before a product, and keys and values, to 16-bit integers: 1e-4 on the recorded tiny models. A
/// router whose best experts are that near chooses another one at single positions, where that leaves a tenth of the
/// logits: 5.4e-3 for the one such position among the 396 of the longest recorded text. The bound leaves room for a few of
/// them. A wrong scale, group, expert or position is wrong everywhere, and leaves more than a tenth of the whole.
const MAX_REL_RMS: f64 = 2e-2;

/// As [`MAX_REL_RMS`] where activations are bf16. With MLX 0.32.2 on its CPU device, whose results have mlx-lm's bits, the
/// tiny models leave 5.7 to 14 % over the neutral prompts: rounding turns the choice of an expert here and there, and they
/// have few. Logits of another text would leave more than 100 %.
const MAX_REL_RMS_BF16: f64 = 2.5e-1;

/// The bound for a backend's rounding.
pub(super) const fn max_rel_rms(rounding: Rounding) -> f64 {
    match rounding {
        Rounding::F32 => MAX_REL_RMS,
        Rounding::Checkpoint => MAX_REL_RMS_BF16,
    }
}

/// The reference's version of a model.
#[derive(Debug)]
pub(super) struct Reference(zmlx_oracle::model::Model);

/// One sequence compared.
#[derive(Debug, Serialize)]
pub(super) struct ReferenceCheck {
    pub(super) prompt: String,
    pub(super) n_tokens: usize,
    pub(super) max_abs: f64,
    pub(super) rel_rms: f64,
    pub(super) verdict: Verdict,
}

impl Reference {
    /// The reference; none for a model that is too large.
    pub(super) fn open(source: &Source, checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if inspect::n_parameters(checkpoint) > MAX_PARAMETERS {
            return Ok(None);
        }
        // An old kv_b_proj is requantised when it is loaded; the reference does the same.
        let files = source.oracle_checkpoint()?;
        Ok(Some(Self(zmlx_oracle::model::Model::from_checkpoint(&files, KvBSplit::Requantized)?)))
    }

    /// Compares the fused path's logits at every position of `tokens`.
    pub(super) fn check<B: Backend>(
        &mut self,
        model: &Model<B>,
        prompt: &str,
        tokens: &[u32],
        fusion: &Fusion,
        rounding: Rounding,
    ) -> Result<ReferenceCheck> {
        let want = self.0.logits(tokens)?.data;
        let mut state = model.state(1)?;
        let (mut got, mut chunk_logits) = (Vec::with_capacity(want.len()), Vec::new());
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            let input = Input { slot: 0, tokens: chunk };
            let y = model.forward(&mut state, &[input], LogitsOf::All, fusion)?;
            model.backend().read(&y, &mut chunk_logits)?;
            got.append(&mut chunk_logits);
        }
        let rel_rms = rel_rms(&got, &want);
        // Positively: NaN fails.
        let verdict = if rel_rms <= max_rel_rms(rounding) { Verdict::Pass } else { Verdict::Fail };
        let (n_tokens, max_abs) = (tokens.len(), max_abs(&got, &want));
        Ok(ReferenceCheck { prompt: prompt.to_owned(), n_tokens, max_abs, rel_rms, verdict })
    }
}

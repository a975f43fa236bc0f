//! Whether the paths agree, on a fixed token sequence: nothing is timed otherwise.

use anyhow::Result;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Input, LogitsOf, Model};
use zmlx_oracle::compare::rel_rms;

use crate::greedy;

/// A prompt, what follows it, and the logits there.
#[derive(Debug)]
pub(super) struct Workload {
    prompt: Vec<u32>,
    /// Fed one at a time after the prompt.
    tokens: Vec<u32>,
    /// After the prompt and after each token but the last.
    logits: Vec<Vec<f32>>,
}

impl Workload {
    /// The prompt continued greedily by `fusion`; none if its logits are not all numbers.
    pub(super) fn greedy<B: Backend>(
        model: &Model<B>,
        prompt: Vec<u32>,
        n_tokens: usize,
        fusion: &Fusion,
    ) -> Result<Option<Self>> {
        let mut logits = Vec::new();
        let decoded = greedy::decode(model, &prompt, n_tokens, fusion, |row| logits.push(row.to_vec()))?;
        let tokens = decoded.steps.into_iter().map(|step| step.token).collect();
        Ok((!decoded.is_broken).then_some(Self { prompt, tokens, logits }))
    }

    /// The largest relative root mean square by which the logits of `fusion` differ anywhere; NaN if they hold one.
    pub(super) fn compare<B: Backend>(&self, model: &Model<B>, fusion: &Fusion) -> Result<f64> {
        let mut worst = 0.0f64;
        let mut at = 0;
        self.pass(model, fusion, |row| {
            let difference = self.logits.get(at).map_or(0.0, |want| rel_rms(row, want));
            // f64::max would drop NaN.
            worst = if worst >= difference || worst.is_nan() { worst } else { difference };
            at += 1;
        })?;
        Ok(worst)
    }

    /// Prompt and tokens; `on_logits` sees the logits after the prompt and after each token.
    fn pass<B: Backend>(
        &self,
        model: &Model<B>,
        fusion: &Fusion,
        mut on_logits: impl FnMut(&[f32]),
    ) -> Result<()> {
        let mut state = model.state(1)?;
        let mut logits = Vec::new();
        let prompt = Input { slot: 0, tokens: &self.prompt };
        let y = model.prefill(&mut state, prompt, fusion, &mut |_, _| ())?;
        model.backend().read(&y, &mut logits)?;
        on_logits(&logits);
        for token in self.tokens.chunks(1) {
            let input = Input { slot: 0, tokens: token };
            let y = model.forward(&mut state, &[input], LogitsOf::Last, fusion)?;
            model.backend().read(&y, &mut logits)?;
            on_logits(&logits);
        }
        Ok(())
    }
}

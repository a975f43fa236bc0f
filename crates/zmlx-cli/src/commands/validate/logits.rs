//! Logits of the paths at the same tokens, compared with the independent reference implementation where the model is small
//! enough for it, and else with a baseline.

use anyhow::Result;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Input, Logits as Wanted, Model, PoolOptions};
use zmlx_oracle::checkpoint::KvBSplit;
use zmlx_oracle::compare::{logits_difference, max_or_nan, rel_rms};
use zmlx_oracle::golden::Rounding;

use crate::commands::inspect;
use crate::source::Source;
use zmlx_bench::capsule::finite;
use zmlx_bench::capsule::validate::{LogitCheck, Verdict};

/// The reference keeps every weight in f32 and takes its time: larger models are not compared with it.
pub(super) const MAX_PARAMETERS: u64 = 64_000_000;

/// Positions compared: the last of the prompt, which pass together, and the first of what follows, one by one.
const MAX_TOGETHER: usize = 64;
const MAX_SINGLE: usize = 64;

/// The most by which the logits may differ, as relative root mean square over all positions.
///
/// The reference computes matrix products in f32 and all else in f64, on the same dequantised weights. The CPU backend
/// rounds the activations before a product to 16 bits, and what meets in attention to 15: 2e-4 on the recorded tiny models. A
/// router whose best experts are that near chooses another one at single positions, where that leaves a tenth of the
/// logits: 9.9e-3 for the one such position among the 62 of the neutral prompt about code. The bound leaves room for a few
/// of them. A wrong scale, group, expert or position is wrong everywhere, and leaves more than a tenth of the whole.
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

/// Whether the reference implementation takes the model.
pub(super) fn is_small_enough(checkpoint: &Checkpoint) -> bool {
    inspect::n_parameters(checkpoint) <= MAX_PARAMETERS
}

/// What the logits are compared with.
pub(super) enum Reference {
    /// The reference implementation.
    Oracle(Box<zmlx_oracle::model::Model>),
    /// The path of this index.
    Path(usize),
}

impl Reference {
    pub(super) fn oracle(source: &Source) -> Result<Self> {
        // An old kv_b_proj is requantised when it is loaded; the reference does the same.
        let files = source.oracle_checkpoint()?;
        let model = zmlx_oracle::model::Model::from_checkpoint(&files, KvBSplit::Requantized)?;
        Ok(Self::Oracle(Box::new(model)))
    }
}

/// Tokens that every path is given.
#[derive(Debug)]
pub(super) struct Forced {
    tokens: Vec<u32>,
    /// Tokens before the first position that is compared.
    n_before: usize,
    /// Positions compared that pass together.
    n_together: usize,
}

impl Forced {
    /// A prompt with what follows it, as far as that is compared.
    pub(super) fn new(prompt: &[u32], continuation: &[u32], limit: usize) -> Self {
        // The last token may lie just past the context.
        let following = continuation.iter().take(MAX_SINGLE);
        let tokens = prompt.iter().chain(following).copied().take(limit).collect();
        let n_together = prompt.len().min(MAX_TOGETHER);
        Self { tokens, n_before: prompt.len() - n_together, n_together }
    }

    /// The logits at every position compared, one row after the other.
    pub(super) fn of_model<B: Backend>(&self, model: &Model<B>, fusion: &Fusion) -> Result<Logits> {
        let mut pool = model.pool(PoolOptions::default())?;
        let slot = pool.allocate()?;
        let (before, compared) = self.tokens.split_at(self.n_before);
        if !before.is_empty() {
            model.prefill(&mut pool, slot, before, fusion, &mut |_, _| ())?;
        }
        let (together, single) = compared.split_at(self.n_together);
        let (mut all, mut part) = (Vec::new(), Vec::new());
        for tokens in std::iter::once(together).chain(single.chunks(1)) {
            let y = model.forward(&mut pool, &[Input { slot, tokens, logits: Wanted::All }], fusion)?;
            model.backend().read(&y, &mut part)?;
            all.append(&mut part);
        }
        Ok(Logits { values: all, n_positions: compared.len() })
    }

    /// As [`Self::of_model`].
    pub(super) fn of_oracle(&self, oracle: &mut zmlx_oracle::model::Model) -> Result<Logits> {
        let mut values = oracle.logits(&self.tokens)?.data;
        let n_vocab = values.len() / self.tokens.len().max(1);
        values.drain(..self.n_before * n_vocab);
        Ok(Logits { values, n_positions: self.tokens.len() - self.n_before })
    }
}

/// Compares logits `[positions, vocab]`, whose relative root mean square may be up to `bound`; `names` are those of prompt, path
/// and reference.
pub(super) fn compare(names: [&str; 3], got: &Logits, want: &Logits, bound: f64) -> LogitCheck {
    let [prompt, path, reference] = names.map(str::to_owned);
    let n_positions = want.n_positions;
    let (mut max, mut mean, mut kl) = (0.0f64, 0.0, 0.0);
    for i in 0..n_positions {
        let difference = logits_difference(got.row(i), want.row(i));
        max = max_or_nan(max, difference.max);
        mean += difference.mean / n_positions as f64;
        kl += difference.kl / n_positions as f64;
    }
    let rel_rms = rel_rms(&got.values, &want.values);
    // Positively: NaN fails.
    let verdict = if rel_rms <= bound { Verdict::Pass } else { Verdict::Fail };
    let (max_abs, mean_abs) = (finite(max), finite(mean));
    let (rel_rms, kl, bound) = (finite(rel_rms), finite(kl), Some(bound));
    LogitCheck { prompt, path, reference, n_positions, max_abs, mean_abs, rel_rms, kl, bound, verdict }
}

/// Rows of logits.
#[derive(Debug)]
pub(super) struct Logits {
    values: Vec<f32>,
    n_positions: usize,
}

impl Logits {
    fn row(&self, i: usize) -> &[f32] {
        let n_vocab = self.values.len() / self.n_positions.max(1);
        self.values.get(i * n_vocab..(i + 1) * n_vocab).unwrap_or_default()
    }
}

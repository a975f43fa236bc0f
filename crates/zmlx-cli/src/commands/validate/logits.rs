//! Compares the logits of the paths for the same tokens: with the independent reference implementation if the model is
//! small enough for it, otherwise with a baseline.

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

/// The reference implementation keeps every weight in f32 and is slow. Models with more parameters are not compared
/// with it.
pub(super) const MAX_PARAMETERS: u64 = 64_000_000;

/// The number of compared positions: the last ones of the prompt, which are computed together, and the first ones after
/// it, which are computed one by one.
const MAX_TOGETHER: usize = 64;
const MAX_SINGLE: usize = 64;

/// The largest relative root mean square by which the logits may differ, over all positions.
///
/// The reference computes matrix products in f32 and everything else in f64, on the same dequantised weights. The CPU
/// backend rounds the activations before a product to 16 bits, and the operands of attention to 15: the difference is
/// 2e-4 on the recorded tiny models. If the best experts of a router differ by so little, it chooses another expert at
/// a single position, which changes the logits there by a tenth. The neutral prompt about code has one such position
/// among 62; its difference is 9.9e-3. The bound leaves room for a few of them. A wrong scale, group, expert or
/// position changes every position, and the difference is more than a tenth overall.
const MAX_REL_RMS: f64 = 2e-2;

/// Like [`MAX_REL_RMS`], for activations in bf16. With MLX 0.32.2 on its CPU device, whose results have the same bits
/// as mlx-lm's, the differences for the tiny models are 5.7 to 14 % over the neutral prompts: they have few experts,
/// and rounding changes a choice here and there. The logits of another text would differ by more than 100 %.
const MAX_REL_RMS_BF16: f64 = 2.5e-1;

/// The bound for the rounding of a backend.
pub(super) const fn max_rel_rms(rounding: Rounding) -> f64 {
    match rounding {
        Rounding::F32 => MAX_REL_RMS,
        Rounding::Checkpoint => MAX_REL_RMS_BF16,
    }
}

/// Whether the model is small enough for the reference implementation.
pub(super) fn is_small_enough(checkpoint: &Checkpoint) -> bool {
    inspect::n_parameters(checkpoint) <= MAX_PARAMETERS
}

/// The logits to compare with.
pub(super) enum Reference {
    /// Those of the reference implementation.
    Oracle(Box<zmlx_oracle::model::Model>),
    /// Those of the path with this index.
    Path(usize),
}

impl Reference {
    pub(super) fn oracle(source: &Source) -> Result<Self> {
        // When an old kv_b_proj is loaded, it is requantised; the reference does the same.
        let files = source.oracle_checkpoint()?;
        let model = zmlx_oracle::model::Model::from_checkpoint(&files, KvBSplit::Requantized)?;
        Ok(Self::Oracle(Box::new(model)))
    }
}

/// The tokens that every path computes.
#[derive(Debug)]
pub(super) struct Forced {
    tokens: Vec<u32>,
    /// The number of tokens before the first compared position.
    n_before: usize,
    /// The number of compared positions that are computed together.
    n_together: usize,
}

impl Forced {
    /// A prompt with its continuation, as far as it is compared.
    pub(super) fn new(prompt: &[u32], continuation: &[u32], limit: usize) -> Self {
        // The last token of the continuation may lie just beyond the context.
        let following = continuation.iter().take(MAX_SINGLE);
        let tokens = prompt.iter().chain(following).copied().take(limit).collect();
        let n_together = prompt.len().min(MAX_TOGETHER);
        Self { tokens, n_before: prompt.len() - n_together, n_together }
    }

    /// The logits of a model at every compared position, one row after the other.
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

    /// The logits of the reference implementation at the same positions.
    pub(super) fn of_oracle(&self, oracle: &mut zmlx_oracle::model::Model) -> Result<Logits> {
        let mut values = oracle.logits(&self.tokens)?.data;
        let n_vocab = values.len() / self.tokens.len().max(1);
        values.drain(..self.n_before * n_vocab);
        Ok(Logits { values, n_positions: self.tokens.len() - self.n_before })
    }
}

/// Compares logits `[positions, vocab]`, whose relative root mean square may differ by up to `bound`. `names` are the
/// names of the prompt, the path and the reference.
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
    // Written so that NaN fails.
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

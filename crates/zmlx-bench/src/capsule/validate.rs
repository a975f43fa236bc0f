//! The results of `zmlx validate`: every comparison with its verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateRecord {
    /// `standard` or `stress`.
    pub suite: String,
    /// Number of tokens decoded per prompt.
    pub max_tokens: usize,
    /// How often each path decoded each prompt.
    pub runs: usize,
    /// What fused paths were compared with: `stock`, `concat`, `oracle` (the reference implementation), `golden`
    /// (recorded tokens).
    pub against: Vec<String>,
    /// The verdict on the whole validation.
    pub verdict: Verdict,
    /// A first divergence counts as explained by rounding if the margin is below this fraction of the logits' spread.
    pub margin_bound: f64,
    /// Comparisons of greedy tokens.
    pub checks: Vec<TokenCheck>,
    /// Comparisons of logits at given tokens.
    pub logits: Vec<LogitCheck>,
    /// How often each fused op ran.
    pub engagement: Vec<Engagement>,
    /// The times of the runs, which do not affect the verdict.
    pub timings: Vec<Timing>,
}

/// The result of a check, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Equal, or within the bound.
    Pass,
    /// A different token where the margin is below the bound: either token is right, and what follows cannot be
    /// compared.
    Explained,
    /// A different token where the margin allows no doubt, runs of one path that differ, values beyond the bound or
    /// NaN, or a fused path without fused ops.
    Fail,
}

impl Verdict {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Explained => "EXPLAINED",
            Self::Fail => "FAIL",
        }
    }
}

/// A comparison of two token sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCheck {
    /// The prompt's name.
    pub prompt: String,
    /// What was compared with what.
    pub comparison: String,
    /// Number of tokens compared.
    pub n_tokens: usize,
    /// The index of the first token that differs; null if none does.
    pub first_divergence: Option<usize>,
    /// The best logit minus the second best at the first divergence; null if there is none, or if this is NaN.
    pub margin: Option<f64>,
    /// The margin below which a divergence is explained; null if there is none.
    pub bound: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// A comparison of a path's logits at the same tokens. A measure that is NaN is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogitCheck {
    /// The prompt's name.
    pub prompt: String,
    /// The path.
    pub path: String,
    /// What it was compared with: `oracle`, the reference implementation, or a path if the model is too large for the
    /// former.
    pub reference: String,
    /// Number of positions compared.
    pub n_positions: usize,
    /// The largest absolute difference.
    pub max_abs: Option<f64>,
    /// The mean absolute difference.
    pub mean_abs: Option<f64>,
    /// The root mean square of the differences divided by that of the reference's logits.
    pub rel_rms: Option<f64>,
    /// The Kullback-Leibler divergence from the reference's distribution in nats, as the mean over positions.
    pub kl: Option<f64>,
    /// The largest `rel_rms` that passes; null if there is no limit.
    pub bound: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// How often a path used a fused op.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Engagement {
    /// The path.
    pub fusion: String,
    /// The op.
    pub op: String,
    /// How often the model called it.
    pub calls: u64,
    /// How many of these calls ran as one kernel. The others were composed of plain ops.
    pub runs: u64,
    /// Fails if a stock path uses a fused op, or if a fused path uses none of its ops.
    pub verdict: Verdict,
}

/// The times of a configuration on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// The prompt and its length.
    pub configuration: String,
    /// The path.
    pub fusion: String,
    /// Number of tokens that each run decoded after the first.
    pub n_tokens: usize,
    /// The time for these tokens in each run, in seconds.
    pub samples_s: Vec<f64>,
}

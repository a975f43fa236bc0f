//! What `zmlx validate` found: every comparison with its verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ValidateRecord {
    /// `standard` or `stress`.
    pub(crate) suite: String,
    /// Tokens decoded per prompt.
    pub(crate) max_tokens: usize,
    /// How often each path decoded each prompt.
    pub(crate) runs: usize,
    /// What the fused path was compared with: `stock`, `concat`, `oracle`, `golden`.
    pub(crate) against: Vec<String>,
    /// Of the whole.
    pub(crate) verdict: Verdict,
    /// A first divergence at a margin below this is explained by rounding; null if no bound was used.
    pub(crate) margin_bound: Option<f64>,
    /// Greedy tokens.
    pub(crate) checks: Vec<TokenCheck>,
    /// Logits of given tokens against the reference.
    pub(crate) logits: Vec<LogitCheck>,
    /// How often each fused op ran.
    pub(crate) engagement: Vec<Engagement>,
    /// The runs' times; they decide nothing.
    pub(crate) timings: Vec<Timing>,
}

/// The end of a check, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Equal, or within the bound.
    Pass,
    /// Different where rounding may decide.
    Explained,
    /// Different.
    Fail,
}

/// Two token sequences compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TokenCheck {
    /// The prompt's name.
    pub(crate) prompt: String,
    /// What was compared with what.
    pub(crate) comparison: String,
    /// Tokens compared.
    pub(crate) n_tokens: usize,
    /// The first token that differs; null if none does.
    pub(crate) first_divergence: Option<usize>,
    /// How far the best logit was ahead of the second there; null if none differs or it is no number.
    pub(crate) margin: Option<f64>,
    /// The margin below which a divergence is explained; null if there is none.
    pub(crate) bound: Option<f64>,
    pub(crate) verdict: Verdict,
}

/// Logits compared with the reference's at the same tokens. A measure that is no number is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct LogitCheck {
    /// The prompt's name.
    pub(crate) prompt: String,
    /// The path.
    pub(crate) path: String,
    /// Positions compared.
    pub(crate) n_positions: usize,
    /// The largest difference.
    pub(crate) max_abs: Option<f64>,
    /// The mean difference.
    pub(crate) mean_abs: Option<f64>,
    /// The root mean square of the differences over that of the reference's logits.
    pub(crate) rel_rms: Option<f64>,
    /// Kullback-Leibler divergence from the reference's distribution, the mean over positions, in nats.
    pub(crate) kl: Option<f64>,
    /// What `rel_rms` may be at most; null if nothing is asked of it.
    pub(crate) bound: Option<f64>,
    pub(crate) verdict: Verdict,
}

/// How often a fused op ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Engagement {
    /// The path.
    pub(crate) fusion: String,
    /// The op.
    pub(crate) op: String,
    /// Its runs.
    pub(crate) runs: u64,
}

/// Times of a configuration on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Timing {
    /// Prompt and length.
    pub(crate) configuration: String,
    /// The path.
    pub(crate) fusion: String,
    /// Seconds of each run.
    pub(crate) samples_s: Vec<f64>,
}

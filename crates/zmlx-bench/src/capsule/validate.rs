//! What `zmlx validate` found: every comparison with its verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The record of a validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ValidateRecord {
    /// `standard` or `stress`.
    pub suite: String,
    /// Tokens decoded per prompt.
    pub max_tokens: usize,
    /// How often each path decoded each prompt.
    pub runs: usize,
    /// What fused paths were compared with: `stock`, `concat`, `oracle` (the reference implementation), `golden` (recorded
    /// tokens).
    pub against: Vec<String>,
    /// Of the whole.
    pub verdict: Verdict,
    /// A first divergence is explained by rounding where the margin is below this part of the logits' spread.
    pub margin_bound: f64,
    /// Greedy tokens.
    pub checks: Vec<TokenCheck>,
    /// Logits at given tokens.
    pub logits: Vec<LogitCheck>,
    /// How often each fused op ran.
    pub engagement: Vec<Engagement>,
    /// The runs' times, which decide nothing.
    pub timings: Vec<Timing>,
}

/// The end of a check, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Equal, or within the bound.
    Pass,
    /// Another token where the margin is below the bound: either is right, and what follows cannot be compared.
    Explained,
    /// Another token where the margin allows no doubt, runs of one path that differ, values beyond the bound or that are no
    /// numbers, a fused path without fused ops.
    Fail,
}

impl Verdict {
    /// As reports print it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Explained => "EXPLAINED",
            Self::Fail => "FAIL",
        }
    }
}

/// Two token sequences compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCheck {
    /// The prompt's name.
    pub prompt: String,
    /// What was compared with what.
    pub comparison: String,
    /// Tokens compared.
    pub n_tokens: usize,
    /// The first token that differs; null if none does.
    pub first_divergence: Option<usize>,
    /// How far the best logit was ahead of the second there; null if none differs or it is no number.
    pub margin: Option<f64>,
    /// The margin below which a divergence is explained; null if there is none.
    pub bound: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Logits of a path compared at the same tokens. A measure that is no number is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogitCheck {
    /// The prompt's name.
    pub prompt: String,
    /// The path.
    pub path: String,
    /// What it was compared with: `oracle`, the reference implementation; of a model that is too large for it, a path.
    pub reference: String,
    /// Positions compared.
    pub n_positions: usize,
    /// The largest difference.
    pub max_abs: Option<f64>,
    /// The mean difference.
    pub mean_abs: Option<f64>,
    /// The root mean square of the differences over that of the reference's logits.
    pub rel_rms: Option<f64>,
    /// Kullback-Leibler divergence from the reference's distribution, the mean over positions, in nats.
    pub kl: Option<f64>,
    /// What `rel_rms` may be at most; null if nothing is asked of it.
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
    /// How many of the calls ran as one kernel; the others were composed of plain ops.
    pub runs: u64,
    /// Failed is a stock path that uses a fused op, and a fused path none of whose ops is used.
    pub verdict: Verdict,
}

/// Times of a configuration on one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Prompt and length.
    pub configuration: String,
    /// The path.
    pub fusion: String,
    /// Tokens that each run decoded after the first.
    pub n_tokens: usize,
    /// Seconds that they took in each run.
    pub samples_s: Vec<f64>,
}

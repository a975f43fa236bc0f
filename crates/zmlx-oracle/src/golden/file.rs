//! Golden files: tokens that a model gave, kept so that every later build, backend and machine can be held to them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::{Verdict, compare};
use super::{Golden, Greedy};
use crate::{Error, Result};

/// The version of the format that this crate writes. It also reads [`Golden`], whose version is 1.
pub const FORMAT: u32 = 2;

/// How activations are rounded between operations, and with it how near two logits must be to be taken for equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To f32.
    F32,
    /// To the checkpoint's own type, bf16 as a rule, as mlx-lm does.
    Checkpoint,
}

impl Rounding {
    /// Two computations may choose different tokens where the margin is below this part of the logits' spread (their root
    /// mean square about the mean).
    ///
    /// In f32 they differ in the order of their sums, and in 16-bit integers where a kernel rounds activations to those.
    /// A sum of K products in another order moves by about √K·2⁻²⁴ of its size, 3e-6 at K = 2048; dozens of layers in a row
    /// leave 1e-5 to 1e-4 of the logits' spread. The bound, 1e-3, leaves a factor of ten for a model that amplifies more; a
    /// wrong scale, group or expert moves logits by more than 1e-2.
    ///
    /// In bf16 each rounding is 2⁻⁹ of a value instead of 2⁻²⁴, and sometimes turns a router's choice: measured on two tiny
    /// models, the logits differ from those in f32 by 6 to 14 %. The bound is 1e-1.
    #[must_use]
    pub const fn margin_bound(self) -> f64 {
        match self {
            Self::F32 => 1e-3,
            Self::Checkpoint => 1e-1,
        }
    }

    /// The looser of two.
    const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::F32, Self::F32) => Self::F32,
            _ => Self::Checkpoint,
        }
    }
}

/// A golden file.
///
/// # Example
///
/// Any decoder can be held to a file, here one that remembers what it should say:
///
/// ```
/// use zmlx_oracle::golden::{GoldenFile, Outcome, Rounding};
///
/// # let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
/// let golden = GoldenFile::open(format!("{fixtures}/golden/austen-qwen3-moe-4bit.json"), Rounding::F32)?;
/// let mut answers = golden.prompts.iter().map(|p| p.tokens.clone());
/// let checked = golden.check(Rounding::F32, |_prompt: &[u32], n_tokens: usize| {
///     let mut tokens = answers.next().unwrap_or_default();
///     tokens.truncate(n_tokens);
///     Ok::<_, std::convert::Infallible>(tokens)
/// })?;
/// assert!(checked.iter().all(|c| c.verdict.outcome == Outcome::Equal));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoldenFile {
    /// The schema's version: [`FORMAT`].
    pub format: u32,
    /// Which weights were recorded.
    pub model: ModelId,
    /// What recorded them.
    pub recorded_by: RecordedBy,
    /// The prompts.
    pub prompts: Vec<Recording>,
}

/// What identifies a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The folder's name; it may change.
    pub name: String,
    /// SHA-256 of config.json in hexadecimal digits; none in files of format 1.
    pub config_sha256: Option<String>,
    /// SHA-256 of the weight files, one after the other by name. This crate does not hash; compare it yourself.
    pub weights_sha256: String,
}

/// What made a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedBy {
    /// The program and its version.
    pub program: String,
    /// Backend and particulars.
    pub backend: String,
    /// How it rounded.
    pub rounding: Rounding,
}

/// A prompt and its greedy continuation, step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// The prompt's name.
    pub name: String,
    /// Its text, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its token ids.
    pub prompt_tokens: Vec<u32>,
    /// The chosen tokens.
    pub tokens: Vec<u32>,
    /// Best minus second-best logit of each step.
    pub margins: Vec<f64>,
    /// Root mean square of the logits about their mean: the scale on which a margin is small. Empty in files of format 1,
    /// where it is taken for 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spreads: Vec<f64>,
    /// Natural-log probability of each chosen token.
    pub logprobs: Vec<f64>,
}

/// A prompt held to its recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The prompt's name.
    pub prompt: String,
    /// Tokens compared.
    pub n_tokens: usize,
    /// The result.
    pub verdict: Verdict,
    /// What the margin at the first divergence had to be below.
    pub bound: Option<f64>,
    /// The recorded token there.
    pub want: Option<u32>,
    /// The decoded token there; none if the decoding ended before.
    pub got: Option<u32>,
}

impl GoldenFile {
    /// Reads a golden file, or a recording of format 1: of the two decodings that it holds, that of `rounding`.
    ///
    /// # Errors
    /// An unreadable file, JSON that does not fit the schema, another version, or lists whose lengths differ.
    pub fn open(path: impl AsRef<Path>, rounding: Rounding) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, rounding)
    }

    /// As [`Self::open`], from the text of a file that errors call `what`.
    ///
    /// # Errors
    /// As [`Self::open`], but for those of reading.
    pub fn parse(what: &str, text: &str, rounding: Rounding) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let json = |source| Error::Json { what: what.to_owned(), source };
        let file: Self = match serde_json::from_str::<Versioned>(text).map_err(json)?.format {
            1 => Self::of_recording(serde_json::from_str(text).map_err(json)?, rounding),
            FORMAT => serde_json::from_str(text).map_err(json)?,
            other => {
                let what = format!("{what}: field format: got {other}, want 1 or {FORMAT}");
                return Err(Error::Unsupported { what });
            }
        };
        for prompt in &file.prompts {
            prompt.validate(what)?;
        }
        Ok(file)
    }

    fn of_recording(golden: Golden, rounding: Rounding) -> Self {
        let prompts = golden.prompts.into_iter().map(|p| {
            let greedy = match rounding {
                Rounding::F32 => p.truth_f32,
                Rounding::Checkpoint => p.bf16,
            };
            let Greedy { tokens, top1_top2_margin: margins, logprobs, .. } = greedy;
            let (name, text, prompt_tokens) = (p.name, Some(p.text), p.prompt_tokens);
            Recording { name, text, prompt_tokens, tokens, margins, spreads: Vec::new(), logprobs }
        });
        let engine = golden.engine;
        Self {
            format: FORMAT,
            model: ModelId {
                name: golden.model.name,
                config_sha256: None,
                weights_sha256: golden.model.weights_sha256,
            },
            recorded_by: RecordedBy {
                program: format!("mlx-lm {}", engine.mlx_lm),
                backend: format!("mlx {} ({})", engine.mlx, engine.device),
                rounding,
            },
            prompts: prompts.collect(),
        }
    }

    /// The bound of [`Rounding::margin_bound`] for a decoder that rounds so: of the two sides' the larger.
    #[must_use]
    pub const fn margin_bound(&self, rounding: Rounding) -> f64 {
        self.recorded_by.rounding.or(rounding).margin_bound()
    }

    /// Decodes every prompt greedily and compares. `decode` is given a prompt's token ids and how many tokens to decode
    /// after it; `rounding` is its own.
    ///
    /// # Errors
    /// The first error of `decode`.
    pub fn check<E>(
        &self,
        rounding: Rounding,
        mut decode: impl FnMut(&[u32], usize) -> Result<Vec<u32>, E>,
    ) -> Result<Vec<Checked>, E> {
        let bound = self.margin_bound(rounding);
        let check = |p: &Recording| Ok(p.check(&decode(&p.prompt_tokens, p.tokens.len())?, bound));
        self.prompts.iter().map(check).collect()
    }
}

impl Recording {
    /// Compares decoded tokens with the recorded ones; `margin_bound` is a part of the logits' spread.
    #[must_use]
    pub fn check(&self, got: &[u32], margin_bound: f64) -> Checked {
        let bound = |step: usize| margin_bound * self.spreads.get(step).copied().unwrap_or(1.0);
        let verdict = compare(&self.tokens, &self.margins, got, bound);
        let at = verdict.first_divergence;
        Checked {
            prompt: self.name.clone(),
            n_tokens: self.tokens.len(),
            verdict,
            bound: at.map(bound),
            want: at.and_then(|step| self.tokens.get(step).copied()),
            got: at.and_then(|step| got.get(step).copied()),
        }
    }

    fn validate(&self, file: &str) -> Result<()> {
        let n = self.tokens.len();
        let lists = [
            ("margins", self.margins.len(), n),
            ("logprobs", self.logprobs.len(), n),
            ("spreads", self.spreads.len(), if self.spreads.is_empty() { 0 } else { n }),
        ];
        let wrong = lists.into_iter().find(|(_, got, want)| got != want);
        let what = format!("{file}: prompt {:?}", self.name);
        if let Some((field, got, want)) = wrong {
            let why = format!("{got} values, want {want}: one for each token");
            return Err(Error::Recording { what, field, why });
        }
        for (field, tokens) in [("prompt_tokens", &self.prompt_tokens), ("tokens", &self.tokens)] {
            if tokens.is_empty() {
                return Err(Error::Recording { what, field, why: "got none, want at least one".to_owned() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn recording() -> Recording {
        Recording {
            name: "p".to_owned(),
            text: None,
            prompt_tokens: vec![1],
            tokens: vec![5, 6],
            margins: vec![3.0, 0.015],
            spreads: vec![2.0, 2.0],
            logprobs: vec![-0.1, -0.2],
        }
    }

    #[test]
    fn margins_are_judged_on_the_scale_of_the_spread() {
        let outcome = |got: &[u32], bound: f64| recording().check(got, bound).verdict.outcome;
        assert_eq!(outcome(&[5, 6], 1e-3), Outcome::Equal);
        assert_eq!(outcome(&[5, 9], 1e-3), Outcome::Mismatch);
        assert_eq!(outcome(&[5, 9], 1e-2), Outcome::FlipBelowBound, "0.015 is below 1 % of 2");
        assert_eq!(outcome(&[9, 6], 1e-1), Outcome::Mismatch);
        let checked = recording().check(&[5], 1e-1);
        assert_eq!((checked.verdict.outcome, checked.want, checked.got), (Outcome::Mismatch, Some(6), None));
        let unknown = Recording { spreads: Vec::new(), ..recording() };
        assert_eq!(unknown.check(&[5, 9], 1e-2).verdict.outcome, Outcome::Mismatch);
    }

    #[test]
    fn lists_of_other_lengths_are_refused() {
        assert!(recording().validate("f").is_ok());
        let short = Recording { margins: vec![3.0], ..recording() };
        let error = short.validate("f").unwrap_err().to_string();
        assert_eq!(error, r#"f: prompt "p": field margins: 1 values, want 2: one for each token"#);
        assert!(Recording { prompt_tokens: vec![], ..recording() }.validate("f").is_err());
    }

    #[test]
    fn the_looser_bound_counts() {
        assert_eq!(Rounding::F32.or(Rounding::F32).margin_bound(), 1e-3);
        assert_eq!(Rounding::F32.or(Rounding::Checkpoint).margin_bound(), 1e-1);
    }
}

//! Golden files: tokens that a model gave, which are kept so that every later build, backend and machine can be
//! compared with them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verdict::{Outcome, Verdict, compare};
use super::{Golden, Greedy};
use crate::{Error, Result};

/// The version of the format that this crate writes. It also reads [`Golden`], whose version is 1.
pub const FORMAT: u32 = 2;

/// How activations are rounded between operations. This determines how near two logits must be to count as equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To f32.
    F32,
    /// To the checkpoint's own type, which is usually bf16, as mlx-lm does.
    Checkpoint,
}

impl Rounding {
    /// Two computations may choose different tokens if the margin is below this fraction of the logits' spread (their
    /// root mean square about the mean).
    ///
    /// In f32 they differ in the order of their sums, and in 16-bit integers if a kernel rounds activations to those. A
    /// sum of K products in another order changes by about √K·2⁻²⁴ of its size, 3e-6 at K = 2048. Dozens of layers in a
    /// row leave 1e-5 to 1e-4 of the logits' spread. The bound, 1e-3, leaves a factor of ten for a model that amplifies
    /// more. A wrong scale, group or expert changes logits by more than 1e-2.
    ///
    /// In bf16 each rounding is 2⁻⁹ of a value instead of 2⁻²⁴, and it sometimes changes a router's choice. Measured on
    /// two tiny models, the logits differ from those in f32 by 6 to 14 %. The bound is 1e-1.
    #[must_use]
    pub const fn margin_bound(self) -> f64 {
        match self {
            Self::F32 => 1e-3,
            Self::Checkpoint => 1e-1,
        }
    }

    /// The bound of the root mean square, over the tokens of a prompt, of the differences of the recorded tokens'
    /// log-probabilities. It is a fraction of the logits' spread.
    ///
    /// In f32, the logits of two correct computations differ by 1e-5 to 1e-3 of their spread. A router whose best
    /// experts are nearly equal chooses another expert at single positions, where the logits then differ by up to a
    /// tenth. The bound, 2e-2, leaves room for a few of these. With weights of other bits, or a wrong scale, group or
    /// expert, every position differs by more than a tenth. In bf16 the tiny models differ from f32 by 6 to 14 % at
    /// every position, so the bound is 2.5e-1.
    #[must_use]
    pub const fn logprob_bound(self) -> f64 {
        match self {
            Self::F32 => 2e-2,
            Self::Checkpoint => 2.5e-1,
        }
    }

    /// The rounding with the larger bounds.
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
/// Any decoder can be compared with a file. This one remembers what it should return:
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
    /// The weights that were recorded.
    pub model: ModelId,
    /// The program that recorded them.
    pub recorded_by: RecordedBy,
    /// The prompts.
    pub prompts: Vec<Recording>,
}

/// The identity of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// The folder's name, which may change.
    pub name: String,
    /// SHA-256 of config.json in hexadecimal digits; `None` in files of format 1.
    pub config_sha256: Option<String>,
    /// SHA-256 of the weight files, concatenated in the order of their names. This crate does not compute hashes, so
    /// the caller has to compare it.
    pub weights_sha256: String,
}

/// The program that made a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedBy {
    /// The program and its version.
    pub program: String,
    /// The backend and its details.
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
    /// The best logit minus the second best at each step.
    pub margins: Vec<f64>,
    /// The root mean square of the logits about their mean at each step, which is the scale for margins. Empty in files
    /// of format 1, for which it counts as 1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spreads: Vec<f64>,
    /// The natural logarithm of the probability of each chosen token.
    pub logprobs: Vec<f64>,
}

/// A prompt compared with its recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The prompt's name.
    pub prompt: String,
    /// Number of tokens compared.
    pub n_tokens: usize,
    /// The result.
    pub verdict: Verdict,
    /// The bound for the margin at the first divergence.
    pub bound: Option<f64>,
    /// The recorded token at the first divergence.
    pub want: Option<u32>,
    /// The decoded token at the first divergence; `None` if the decoding ended before.
    pub got: Option<u32>,
    /// The comparison of log-probabilities; `None` if the decoder gave none, or if the recording has no spreads.
    pub logprobs: Option<LogprobDifference>,
}

/// The differences between the log-probabilities of decoded and recorded tokens, up to the first different token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogprobDifference {
    /// The root mean square of the differences, each as a fraction of the logits' spread at its step.
    pub rel_rms: f64,
    /// The largest value that passes.
    pub bound: f64,
}

impl LogprobDifference {
    /// Whether the difference is within the bound. NaN is not.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.rel_rms <= self.bound
    }
}

impl Checked {
    /// The verdict on tokens and log-probabilities together.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        if self.logprobs.is_none_or(|l| l.is_sound()) { self.verdict.outcome } else { Outcome::Mismatch }
    }
}

/// The result of a decoder for a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decoded {
    /// The chosen tokens.
    pub tokens: Vec<u32>,
    /// The natural logarithm of the probability of each; empty if the decoder does not provide them.
    pub logprobs: Vec<f64>,
}

/// Tokens without probabilities.
impl From<Vec<u32>> for Decoded {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, logprobs: Vec::new() }
    }
}

impl GoldenFile {
    /// Reads a golden file, or a recording of format 1. Of the two decodings in the latter it takes the one with
    /// `rounding`.
    ///
    /// # Errors
    /// An unreadable file, JSON that does not fit the schema, another version, lists whose lengths differ, or two
    /// prompts with the same name.
    pub fn open(path: impl AsRef<Path>, rounding: Rounding) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &text, rounding)
    }

    /// As [`Self::open`], from the text of a file that errors call `what`.
    ///
    /// # Errors
    /// As [`Self::open`], except for errors of reading.
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
        for (i, prompt) in file.prompts.iter().enumerate() {
            prompt.validate(what)?;
            if file.prompts[..i].iter().any(|other| other.name == prompt.name) {
                let what = format!("{what}: prompt {:?}", prompt.name);
                return Err(Error::Recording {
                    what,
                    field: "name",
                    why: "another prompt has the same name".to_owned(),
                });
            }
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

    /// The bound of [`Rounding::margin_bound`] for a decoder with this rounding: the larger of the bounds of both
    /// sides.
    #[must_use]
    pub const fn margin_bound(&self, rounding: Rounding) -> f64 {
        self.recorded_by.rounding.or(rounding).margin_bound()
    }

    /// Decodes every prompt greedily and compares the tokens. `decode` gets a prompt's token ids and the number of
    /// tokens to decode. It returns the tokens, or [`Decoded`] with their log-probabilities. `rounding` is that of the
    /// decoder.
    ///
    /// # Errors
    /// The first error of `decode`.
    pub fn check<D: Into<Decoded>, E>(
        &self,
        rounding: Rounding,
        mut decode: impl FnMut(&[u32], usize) -> Result<D, E>,
    ) -> Result<Vec<Checked>, E> {
        let rounding = self.recorded_by.rounding.or(rounding);
        let check = |p: &Recording| {
            let Decoded { tokens, logprobs } = decode(&p.prompt_tokens, p.tokens.len())?.into();
            let mut checked = p.check(&tokens, rounding.margin_bound());
            checked.logprobs = p.compare_logprobs(&tokens, &logprobs, rounding.logprob_bound());
            Ok(checked)
        };
        self.prompts.iter().map(check).collect()
    }
}

impl Recording {
    /// Compares decoded tokens with the recorded ones. `margin_bound` is a fraction of the logits' spread.
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
            logprobs: None,
        }
    }

    /// Compares log-probabilities up to the first different token.
    fn compare_logprobs(&self, tokens: &[u32], logprobs: &[f64], bound: f64) -> Option<LogprobDifference> {
        if logprobs.is_empty() || self.spreads.is_empty() {
            return None;
        }
        let same = self.tokens.iter().zip(tokens).take_while(|(want, got)| want == got).count();
        let steps = self.logprobs.iter().zip(logprobs).zip(&self.spreads).take(same);
        let squares = steps.map(|((want, got), spread)| {
            let difference = want - got;
            // Without spread there is no difference: logits that are all equal give only one distribution.
            if difference == 0.0 { 0.0 } else { (difference / spread).powi(2) }
        });
        let rel_rms = (squares.sum::<f64>() / same.max(1) as f64).sqrt();
        // Tokens without a probability do not count as equal.
        let is_whole = logprobs.len() >= same;
        Some(LogprobDifference { rel_rms: if is_whole { rel_rms } else { f64::NAN }, bound })
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
    fn probabilities_are_judged_on_the_scale_of_the_spread() {
        let golden = GoldenFile {
            format: FORMAT,
            model: ModelId { name: "m".to_owned(), config_sha256: None, weights_sha256: String::new() },
            recorded_by: RecordedBy {
                program: "p".to_owned(),
                backend: "b".to_owned(),
                rounding: Rounding::F32,
            },
            prompts: vec![recording()],
        };
        let check = |tokens: &[u32], logprobs: &[f64]| {
            let decoded = Decoded { tokens: tokens.to_vec(), logprobs: logprobs.to_vec() };
            let checked = golden.check(Rounding::F32, |_, _| Ok::<_, ()>(decoded.clone())).unwrap();
            (checked[0].outcome(), checked[0].logprobs.map(|l| l.rel_rms))
        };
        assert_eq!(check(&[5, 6], &[-0.1, -0.2]), (Outcome::Equal, Some(0.0)));
        let (outcome, rms) = check(&[5, 6], &[-0.12, -0.2]);
        assert_eq!(outcome, Outcome::Equal);
        assert!((rms.unwrap() - 0.01 / 2f64.sqrt()).abs() < 1e-9, "{rms:?}");
        assert_eq!(check(&[5, 6], &[-0.2, -0.2]).0, Outcome::Mismatch);
        assert_eq!(check(&[5, 6], &[-0.1, f64::NAN]).0, Outcome::Mismatch);
        assert_eq!(check(&[5, 6], &[-0.1]).0, Outcome::Mismatch, "one probability is missing");
        assert_eq!(check(&[5, 6], &[]), (Outcome::Equal, None));
        // What follows a different token cannot be compared.
        assert_eq!(check(&[5, 9], &[-0.1, -7.0]).1, Some(0.0));
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

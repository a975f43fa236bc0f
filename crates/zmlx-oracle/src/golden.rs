//! Recorded tokens, and the verdict on a greedy decoding: [`GoldenFile`] for any model and test, and readers for the
//! recordings of the reference engine.
//!
//! `fixtures/golden/README.md` describes the schema of these recordings. `<model>.json` holds prompts with their greedy
//! tokens, `<model>-taps.safetensors` holds intermediate results of one prompt, and `ops/*.safetensors` hold single
//! operations.

mod file;
mod tensors;
mod verdict;

use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result};

pub use file::{
    Checked, Decoded, FORMAT, GoldenFile, LogprobDifference, ModelId, RecordedBy, Recording, Rounding,
};
pub use tensors::{Array, TensorFile};
pub use verdict::{Outcome, Verdict, check_greedy};

/// The contents of `<model>.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Golden {
    /// The schema's version; 1.
    pub format: u32,
    /// The engine that was recorded.
    pub engine: Engine,
    /// The model that was recorded.
    pub model: GoldenModel,
    /// How it decoded its tokens.
    pub decode: Decode,
    /// The prompts.
    pub prompts: Vec<GoldenPrompt>,
}

/// Versions of the engine, and the machine on which it ran.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Engine {
    /// Version of MLX.
    pub mlx: String,
    /// Version of mlx-lm.
    pub mlx_lm: String,
    /// Version of Python.
    pub python: String,
    /// Architecture of the machine.
    pub machine: String,
    /// The device, `cpu` or `gpu`.
    pub device: String,
}

/// The weights that were recorded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GoldenModel {
    /// The model folder's name.
    pub name: String,
    /// SHA-256 of model.safetensors in hexadecimal digits. This crate does not compute hashes, so the caller has to
    /// compare it.
    pub weights_sha256: String,
}

/// How tokens were decoded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Decode {
    /// A description.
    pub method: String,
    /// Number of tokens decoded for each prompt.
    pub tokens: usize,
}

/// A message of a chat prompt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// The role of the speaker, such as `user`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// A prompt and its recordings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct GoldenPrompt {
    /// Its name, such as `novel`.
    pub name: String,
    /// For a chat prompt, the messages that were given to the chat template.
    #[serde(default)]
    pub messages: Option<Vec<Message>>,
    /// The text.
    pub text: String,
    /// The text's token ids.
    pub prompt_tokens: Vec<u32>,
    /// The greedy decoding of the bfloat16 model.
    #[serde(flatten)]
    pub bf16: Greedy,
    /// The greedy decoding in `f32` with dequantised weights.
    pub truth_f32: Greedy,
    /// A single pass of the `f32` model over the prompt and the tokens of [`Self::bf16`].
    pub truth_f32_forced: Forced,
}

/// A greedy decoding, step by step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Greedy {
    /// The chosen tokens.
    pub tokens: Vec<u32>,
    /// The best logit minus the second best at each step.
    pub top1_top2_margin: Vec<f64>,
    /// The natural logarithm of the probability of each chosen token.
    pub logprobs: Vec<f64>,
    /// The tokens as text.
    pub output_text: String,
}

/// A pass over given tokens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Forced {
    /// The best token at each step.
    pub argmax: Vec<u32>,
    /// The best logit minus the second best at each step.
    pub top1_top2_margin: Vec<f64>,
    /// The natural logarithm of the probability of each given token.
    pub logprobs: Vec<f64>,
}

impl Golden {
    /// Reads `<model>.json`.
    ///
    /// # Errors
    /// An unreadable file, JSON that does not fit the schema, or a version other than 1.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let what = path.display().to_string();
        let golden: Self = serde_json::from_str(&text).map_err(|source| Error::Json { what, source })?;
        if golden.format != 1 {
            return Err(Error::Unsupported { what: format!("recordings of format {}", golden.format) });
        }
        Ok(golden)
    }

    /// The prompt of this name.
    #[must_use]
    pub fn prompt(&self, name: &str) -> Option<&GoldenPrompt> {
        self.prompts.iter().find(|prompt| prompt.name == name)
    }
}

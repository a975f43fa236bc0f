//! The crate's error type.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a file, a configuration or an argument.
///
/// The slice functions of [`crate::ops`] do not use it: their callers have just computed the sizes, and the functions
/// panic on lengths that do not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder has no `*.safetensors` file.
    #[error("no safetensors file in {path}")]
    NoShards {
        /// The folder.
        path: PathBuf,
    },
    /// The header or the length of a safetensors file is broken.
    #[error("{what}: {source}")]
    SafeTensors {
        /// The file.
        what: String,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// A JSON file does not parse, or lacks a required field.
    #[error("{what}: {source}")]
    Json {
        /// The file.
        what: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// No family of this crate has this `model_type`.
    #[error("model_type {got:?}: want {}", known.join(" or "))]
    UnknownModelType {
        /// The value in config.json.
        got: String,
        /// The known types.
        known: Vec<&'static str>,
    },
    /// The value of a configuration field makes no sense.
    #[error("config field {field}: {why}")]
    Config {
        /// The field, as config.json names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// The parts of a golden file do not belong together.
    #[error("{what}: field {field}: {why}")]
    Recording {
        /// The file and the prompt.
        what: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A valid request that this crate does not support.
    #[error("not supported: {what}")]
    Unsupported {
        /// The feature, with the requested value.
        what: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor {name} is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor has the wrong shape.
    #[error("tensor {name}: shape {got:?}, want {want:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape that the configuration requires.
        want: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("tensor {name}: dtype {got}, want {want}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        got: String,
        /// The dtypes that are accepted.
        want: &'static str,
    },
    /// The parts of a quantised tensor do not belong together.
    #[error("quantised tensor {name}: {why}")]
    Quantized {
        /// The tensor, or the operation.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// A token id is outside the vocabulary.
    #[error("token {token} at position {position}: the vocabulary has {vocab_size}")]
    Token {
        /// The token id.
        token: u32,
        /// Its position in the slice.
        position: usize,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
}

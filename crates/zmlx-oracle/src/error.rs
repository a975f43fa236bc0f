//! The crate's error type.

use std::path::PathBuf;

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a file, a configuration or an argument.
///
/// The slice functions of [`crate::ops`] are the exception: they are called with sizes that the caller has just
/// computed, and panic on lengths that do not fit.
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
    /// A folder without any `*.safetensors` file.
    #[error("no safetensors file in {path}")]
    NoShards {
        /// The folder.
        path: PathBuf,
    },
    /// A safetensors file whose header or length is broken.
    #[error("{what}: {source}")]
    SafeTensors {
        /// The file.
        what: String,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// JSON that does not parse or lacks a needed field.
    #[error("{what}: {source}")]
    Json {
        /// The file.
        what: String,
        /// The cause.
        source: serde_json::Error,
    },
    /// A `model_type` that no file of the crate knows.
    #[error("model_type {got:?}: want {}", known.join(" or "))]
    UnknownModelType {
        /// What config.json says.
        got: String,
        /// The types that are known.
        known: Vec<&'static str>,
    },
    /// A configuration field with a value that makes no sense.
    #[error("config field {field}: {why}")]
    Config {
        /// The field, as config.json names it.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A golden file whose parts do not belong together.
    #[error("{what}: field {field}: {why}")]
    Recording {
        /// The file and the prompt.
        what: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Something that files may ask for and this crate does not do.
    #[error("not supported: {what}")]
    Unsupported {
        /// The feature, with the value asked for.
        what: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("tensor {name} is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("tensor {name}: shape {got:?}, want {want:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape that the configuration asks for.
        want: Vec<usize>,
    },
    /// A tensor of the wrong element type.
    #[error("tensor {name}: dtype {got}, want {want}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        got: String,
        /// The dtypes that would do.
        want: &'static str,
    },
    /// Quantised parts that do not belong together.
    #[error("quantised tensor {name}: {why}")]
    Quantized {
        /// The tensor, or the operation.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} at position {position}: the vocabulary has {vocab_size}")]
    Token {
        /// The token id.
        token: u32,
        /// Its position in the slice passed.
        position: usize,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Candle(#[from] candle_core::Error),
}

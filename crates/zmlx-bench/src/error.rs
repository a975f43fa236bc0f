//! The crate's error type.

/// Why something was not measured, read or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not a capsule, or one of its fields is wrong.
    #[error("{file}: {problem}")]
    Capsule {
        /// The file.
        file: String,
        /// The field and its problem.
        problem: String,
    },
    /// Two capsules cannot be compared.
    #[error("the capsules cannot be compared: {field}: A has {a}, B has {b}")]
    Incomparable {
        /// The field that differs.
        field: String,
        /// The value in the first capsule.
        a: String,
        /// The value in the second capsule.
        b: String,
    },
    /// Two capsules have no test in common.
    #[error("the capsules cannot be compared: they have no test in common")]
    NothingInCommon,
    /// A capsule was requested for a run without a backend.
    #[error("a capsule needs at least one backend")]
    NoBackend,
    /// A value could not be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A plan has no tests.
    #[error("nothing to measure: the plan has no prompt and no tokens to decode")]
    NothingToMeasure,
    /// An error of the model.
    #[error(transparent)]
    Model(#[from] zmlx_models::Error),
    /// An error of the backend.
    #[error(transparent)]
    Backend(#[from] zmlx_kernels::Error),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no capsule, or one of its fields is wrong.
    #[error("{file}: {problem}")]
    Capsule {
        /// The file.
        file: String,
        /// The field, and what is wrong with it.
        problem: String,
    },
    /// Two capsules that cannot be compared.
    #[error("the capsules cannot be compared: {field}: A has {a}, B has {b}")]
    Incomparable {
        /// The field that differs.
        field: String,
        /// What the first has.
        a: String,
        /// What the second has.
        b: String,
    },
    /// Two capsules without a common test.
    #[error("the capsules cannot be compared: they have no test in common")]
    NothingInCommon,
    /// A capsule is to be made of a run without a backend.
    #[error("a capsule needs at least one backend")]
    NoBackend,
    /// A value could not be written as JSON.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A plan without tests.
    #[error("nothing to measure: the plan has no prompt and no tokens to decode")]
    NothingToMeasure,
    /// The model refused something.
    #[error(transparent)]
    Model(#[from] zmlx_models::Error),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] zmlx_kernels::Error),
}

/// The crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

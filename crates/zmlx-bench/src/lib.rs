//! Measures how fast a model decodes, stores the result as a *capsule*, compares capsules, and makes reports of them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`measure`] | runs the tests of a [`Plan`](measure::Plan) on several paths and backends, in turns |
//! | [`bandwidth`] | how fast the machine reads memory, which decoding is compared with |
//! | [`capsule`] | the record of a bench or a validation: one JSON file with a schema |
//! | [`capsule::compare`] | which facts of two capsules differ, and whether the second is worse |
//! | [`report`] | many capsules as one page with plots, or as Markdown |
//! | [`table`] | the results of a bench as a table, CSV or JSON |
//! | [`greedy`] | greedy decoding that also shows how certain the model was |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failing test may panic"))]

pub mod bandwidth;
pub mod capsule;
mod error;
pub mod greedy;
pub mod grid;
pub mod measure;
mod plot;
mod prompt;
pub mod report;
pub mod stats;
pub mod table;

pub use capsule::Capsule;
pub use error::{Error, Result};
pub use prompt::seeded_tokens;
use zmlx_oracle::golden::Rounding;

/// The description of a backend in records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The backend's name: `cpu`, `cuda` or `mlx`.
    pub name: &'static str,
    /// The name and version of the engine that it builds on, if that is another project's.
    pub engine: Option<(&'static str, String)>,
    /// The name with details: `cpu (avx2, 8 threads)`.
    pub description: String,
    /// The number of threads that compute.
    pub n_threads: usize,
    /// How the backend rounds activations.
    pub rounding: Rounding,
    /// Whether it compiles or records kernels when they are first used, which takes far longer than their later runs.
    pub compiles_at_first_use: bool,
}

/// Work that takes so long that its progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Weights are loaded.
    Loading,
    /// The caches are filled before decoding is measured.
    FillingCaches,
    /// Tests are measured.
    Measuring,
    /// Weight files are hashed.
    Hashing,
}

/// Called with the kind of work, the number of parts done, and the number of all parts.
pub type OnProgress<'a> = &'a mut dyn FnMut(Work, usize, usize);

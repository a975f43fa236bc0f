//! Measures how fast a model decodes, keeps the result as a *capsule*, compares capsules and makes reports of them.
//!
//! | module | what it holds |
//! |---|---|
//! | [`measure`] | runs the tests of a [`Plan`](measure::Plan) on several paths and backends, in turns |
//! | [`bandwidth`] | how fast the machine reads memory, beside which decoding is judged |
//! | [`capsule`] | the record of a bench or a validation: one JSON file with a schema |
//! | [`capsule::compare`] | what differs between two capsules, and whether the second is worse |
//! | [`report`] | many capsules as one page with plots, or as Markdown |
//! | [`table`] | the results of a bench as a table, CSV or JSON |
//! | [`greedy`] | greedy decoding that also tells how sure the model was |
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

/// What a backend says of itself in records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// The backend's name: `cpu`, `cuda` or `mlx`.
    pub name: &'static str,
    /// The name and version of the engine that it builds on, if that is another project's.
    pub engine: Option<(&'static str, String)>,
    /// The name with particulars: `cpu (avx2, 8 threads)`.
    pub description: String,
    /// The number of threads that compute.
    pub n_threads: usize,
    /// How the backend rounds activations.
    pub rounding: Rounding,
}

/// Work that takes long enough to show its progress.
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

/// Is called with the work, how many of its parts are done, and how many there are.
pub type OnProgress<'a> = &'a mut dyn FnMut(Work, usize, usize);

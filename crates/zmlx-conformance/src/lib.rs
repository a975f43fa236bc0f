//! The conformance suite: every op of a backend is compared with the oracle's `f64`, and every fused op with its
//! composition, on one list of cases.
//!
//! A backend crate has it as a dev-dependency, describes itself in [`Instance`]s, and generates the tests:
//!
//! ```
//! # use zmlx_core as my_backend_crate;
//! use zmlx_conformance::{Grid, Instance, conformance};
//!
//! fn instances<B: my_backend_crate::Backend>(backend: B) -> Vec<Instance<B>> {
//!     vec![Instance {
//!         name: "my backend".to_owned(),
//!         backend,
//!         grid: Grid::Full,
//!         same_path_below: 0,
//!         product_error: |_, _| 1.0,
//!         attention_error: 1.0,
//!         chunk_error: 1.0,
//!         exponential_error: 1.0,
//!         angle_error: 1.0 / (1 << 23) as f64,
//!     }]
//! }
//! // In tests/conformance.rs: a module of tests with that name, each on all instances.
//! // conformance!(my_backend, crate::my_instances);
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`suite`] | what a backend declares, and the list of tests |
//! | [`cases`], [`inputs`], [`bounds`], [`session`] | formats and sizes, weights as bytes, error bounds, attention's driver |
//! | the others | tests by op family, generic over the backend |
//!
//! A comparison passes only if a difference is at most its bound, which NaN never is. A backend should fill buffers
//! with NaN (words: `u32::MAX`) before an op writes them, in builds with debug assertions. Then the suite finds values
//! that an op forgot to write.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

pub mod activations;
pub mod attention;
pub mod bounds;
pub mod buffers;
pub mod caches;
pub mod cases;
pub mod elementwise;
pub mod embed_concat;
pub mod errors;
pub mod extremes;
pub mod factors;
pub mod formats;
pub mod fused;
pub mod gather;
pub mod inputs;
pub mod invariance;
pub mod linear;
pub mod recurrent;
pub mod rope_norm;
pub mod router;
pub mod sampling;
pub mod session;
pub mod suite;
pub mod tiles;
pub mod windows;

pub use cases::Grid;
pub use suite::Instance;

//! The independent referee: every operation, block and model of the workspace once more, written from the
//! formulas in the plainest way that is still quick enough for tests.
//!
//! Nothing here is shared with the crates it judges: it has its own decoder for the quantised formats, its own
//! checkpoint reader and its own models. The layers, from the bottom up:
//!
//! | module | what |
//! |---|---|
//! | [`quant`] | the quantised formats: element by element decoding, and the reference quantiser |
//! | [`ops`] | operations on slices with `f64` results: the truth that kernels are compared with |
//! | [`plan`] | what a `config.json` asks for; a file of `families` for each `model_type` |
//! | [`checkpoint`] | `config.json` and safetensors shards, dequantised to `f32` |
//! | [`model`] | full passes with taps, and sessions with a key/value cache |
//! | [`compare`] | comparisons in which NaN fails |
//! | [`golden`] | readers for recorded token streams and taps, and the verdict on a greedy decoding |
//! | [`testing`] | deterministic random inputs and quantised weights as raw bytes |
//!
//! In models, matrix products are `f32` ([`candle_core`]); norms, softmax, rope, attention, routers and SwiGLU
//! run in `f64` on slices and are rounded to `f32` once. No kernel's rounding is imitated: an engine that
//! computes in higher precision should come close to this one, an engine in bfloat16 only roughly.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failing test may panic"))]

pub mod checkpoint;
pub mod compare;
mod error;
mod families;
pub mod golden;
pub mod model;
pub mod ops;
pub mod plan;
pub mod quant;
pub mod testing;

pub use error::{Error, Result};

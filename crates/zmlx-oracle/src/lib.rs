//! The independent reference: every operation, block and model of the workspace, written a second time from the
//! formulas, in the simplest way that is fast enough for tests.
//!
//! It shares nothing with the crates that it judges: it has its own decoder for the quantised formats, its own
//! checkpoint reader and its own models. These are the layers, from the bottom up:
//!
//! | module | what |
//! |---|---|
//! | [`quant`] | the quantised formats: decoding element by element, and the reference quantiser |
//! | [`ops`] | operations on slices with `f64` results, which kernels are compared with |
//! | [`plan`] | what a `config.json` describes; `families` has a file for each `model_type` |
//! | [`checkpoint`] | `config.json` and safetensors shards, dequantised to `f32` |
//! | [`model`] | full passes with taps, and sessions with a key/value cache |
//! | [`compare`] | comparisons in which NaN fails |
//! | [`golden`] | readers for recorded token streams and taps, and the verdict on a greedy decoding |
//! | [`testing`] | deterministic random inputs and quantised weights as raw bytes |
//!
//! In models, matrix products are `f32` ([`candle_core`]). Norms, softmax, rope, attention, routers and SwiGLU are
//! computed in `f64` on slices and rounded to `f32` once. No kernel's rounding is imitated: an engine with higher
//! precision should come close to this one, and an engine in bfloat16 only roughly.
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

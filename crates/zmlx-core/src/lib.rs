//! What every backend and every model shares: quantised formats, weights in host memory, the [`Backend`] trait with the
//! contract of every op, and the compositions of fused ops ([`stock`]).
//!
//! # Numerics
//!
//! There are two modes. *Accurate*: activations are f32, weights are used as `scale · q + bias` in f32, and every
//! product accumulates in f32 and rounds once. *Exact*: the results have the rounding and the order of a stock engine's
//! ops, bit for bit. Each backend says which mode it has.

mod backend;
pub mod check;
mod dtype;
mod error;
mod fusion;
mod hooked;
mod instrumented;
mod mapped;
mod memory;
mod ops;
pub mod quant;
pub mod stock;
mod weight;

pub use backend::{
    Activation, AttentionInputs, AttentionSettings, Backend, Barriers, CacheKind, CacheSpec, Choice,
    ConvActivation, ConvWeights, DeltaDims, DeltaInputs, DeltaWeights, Down, GateUp, HostNeeds, KvFormat,
    Logits, MAX_POSITIONS, MAX_SLOTS, MlaInputs, MlaWeights, NoauxTc, NormRope, NormRopeMla, PREFILL_CHUNK,
    PrefillStyle, Renormalize, Repetition, Rope, RopeFrequencies, RopePairing, SampleSettings, Shard,
    SoftmaxTopK, Span, StepKey, logit_rows,
};
pub use dtype::DType;
pub use error::{Error, Result};
pub use fusion::{ExpertFusion, Fusion, FusionPart, ParseFusionError, SoftmaxRoute, Switch};
pub use hooked::{Hooked, Hooks};
pub use instrumented::Instrumented;
#[cfg(unix)]
pub use mapped::on_lost_file;
pub use mapped::{map_file, read_bytes, read_text, will_need};
pub use memory::{available_bytes, ensure_memory};
pub use ops::{Op, Stage};
pub use quant::{QuantMode, QuantSpec};
#[cfg(feature = "safetensors")]
pub use weight::QuantizedViews;
pub use weight::{HostWeight, WeightBytes, WeightFormat};

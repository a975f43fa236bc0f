//! MLX through mlx-rs: stock MLX, no patched build (feature `mlx`).
//!
//! For an mlx-rs program that wants the fused ops on its own arrays: [`gather_qmm_swiglu`] and its siblings. For a whole
//! model: [`MlxBackend`].

mod backend;
mod cuda;
mod dispatches;
mod distributed;
mod experts;
mod limits;
mod primitive;
mod raw;
mod runtime;

pub use crate::metal::Numerics;
pub use backend::{MlxBackend, MlxCache, MlxIndices, MlxStep, MlxWeight};
pub use dispatches::{Dispatches, Recording};
pub use distributed::Group;
pub use experts::QuantizedExperts;
pub use limits::{ChosenBy, Setting, command_buffers, free_bytes, hold_memory, limit_command_buffers};
/// The mlx-rs whose arrays these functions take.
pub use mlx_rs;
pub use mlx_rs::Array;
pub use primitive::{
    GatherOptions, gather_qmm_combine, gather_qmm_swiglu, qmm_swiglu, route_noaux_tc, route_softmax_top_k,
    self_check,
};
pub use runtime::{Gpu, Runtime};

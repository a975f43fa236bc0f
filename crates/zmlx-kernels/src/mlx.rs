//! MLX through mlx-rs: stock MLX, no patched build (feature `mlx`).

mod backend;
mod experts;
mod raw;
mod runtime;

pub use crate::metal::Numerics;
pub use backend::{MlxBackend, MlxIndices, MlxKvCache, MlxWeight};
pub use experts::QuantizedExperts;
/// The mlx-rs whose arrays these functions take.
pub use mlx_rs;
pub use mlx_rs::Array;
pub use runtime::Runtime;

//! The kernels of zmlx behind one [`Backend`] trait: the one crate that a program names.
//!
//! | what | where |
//! |---|---|
//! | formats, weights, the trait with every op's contract | zmlx-core, at this crate's root |
//! | [`cpu`] | the CPU backend, zmlx-cpu |
//! | [`metal`] | the sources of the Metal kernels and how they are launched |
//! | `mlx` | stock MLX with these kernels (feature `mlx`) |
//!
//! The CPU backend is accurate; the MLX backend is exact, or accurate if asked: see [`zmlx_core`] for these modes.

pub mod metal;
#[cfg(feature = "mlx")]
pub mod mlx;

pub use zmlx_core::*;
pub use zmlx_cpu as cpu;

//! The kernels of zmlx behind one [`Backend`] trait: the one crate that a program names.
//!
//! | what | where |
//! |---|---|
//! | formats, weights, the trait with every op's contract | zmlx-core, at this crate's root |
//! | [`cpu`] | the CPU backend, zmlx-cpu |
//! | `cuda` | the CUDA backend, zmlx-cuda (feature `cuda`, Linux) |
//! | [`metal`] | the sources of the Metal kernels and how they are launched |
//! | `candle` | these kernels as custom ops on candle's tensors (feature `candle`) |
//! | `mlx` | stock MLX with these kernels (feature `mlx`) |
//!
//! The CPU and the CUDA backend are accurate; the MLX backend is exact, or accurate if asked: see [`zmlx_core`] for these modes.

#[cfg(feature = "candle")]
pub mod candle;
pub mod metal;
#[cfg(feature = "mlx")]
pub mod mlx;

pub use zmlx_core::*;
pub use zmlx_cpu as cpu;
#[cfg(all(target_os = "linux", feature = "cuda"))]
pub use zmlx_cuda as cuda;

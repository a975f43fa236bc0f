//! The Metal kernels, executed on the CPU by the simulator.
//!
//! What MLX would launch, body, template arguments and geometry, runs here from the same [`zmlx_kernels::metal::KernelSpec`]:
//! against the oracle (accurate mode) and bit for bit against the arithmetic of stock MLX restated in scalar Rust (exact
//! mode, [`stock`]). Outputs start as NaN. [`detector`] looks for races, reads out of bounds and unwritten results.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

#[cfg(target_os = "macos")]
mod apple;
mod combine;
mod detector;
mod inputs;
mod latent;
mod launch;
mod mlx_sources;
mod norm;
mod router;
mod shared;
mod sim;
mod stock;
mod swiglu;

//! Runs the simulator on kernels whose results or bugs are known.

mod address_spaces;
mod common;
mod conformance;
mod detector;
mod failures;
mod mlx_bodies;
mod stock_mlx;

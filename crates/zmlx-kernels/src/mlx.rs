//! MLX through mlx-rs: stock MLX, no patched build (feature `mlx`).

mod runtime;

pub use runtime::Runtime;

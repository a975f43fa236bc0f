//! Quantised formats, the [`Backend`] trait, and its kernels.
#![warn(missing_docs)]

mod dtype;
mod error;
mod mapped;
pub mod quant;
mod weight;

pub use dtype::DType;
pub use error::{Error, Result};
pub use mapped::map_file;
pub use quant::{QuantMode, QuantSpec};
pub use weight::{HostWeight, WeightBytes, WeightFormat};

//! MLX's quantised formats.
//!
//! A row of `in` weights is stored as `in · bits / 8` bytes. Element `i` takes the bits `[i·bits, (i+1)·bits)` of the
//! row, low bit first. Each group of `group_size` weights has one scale, and with affine also one bias:
//!
//! | mode | bits | group | weight | scale |
//! |---|---|---|---|---|
//! | affine | 2, 3, 4, 5, 6, 8 | 32, 64, 128 | `scale · q + bias` | f32, f16 or bf16 |
//! | mxfp4 | 4 (e2m1) | 32 | `2^(scale-127) · fp4(q)` | u8 (e8m0) |
//! | mxfp8 | 8 (e4m3) | 32 | `2^(scale-127) · fp8(q)` | u8 (e8m0) |
//! | nvfp4 | 4 (e2m1) | 16 | `fp8(scale) · fp4(q)` | u8 (e4m3) |
//!
//! Source: `mx.quantize` and `mx.dequantize` of MLX 0.32.2.

pub mod float;
mod pack;
mod quantize;

pub use pack::{dequantize, dequantize_each, pack, unpack};
pub use quantize::{Quantized, quantize};

use crate::{DType, Error, Result};

/// How a quantised weight maps to a real one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantMode {
    /// `scale · q + bias`, q unsigned.
    Affine,
    /// e2m1 values with e8m0 scales, groups of 32.
    Mxfp4,
    /// e4m3 values with e8m0 scales, groups of 32.
    Mxfp8,
    /// e2m1 values with e4m3 scales, groups of 16.
    Nvfp4,
}

impl QuantMode {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// The name in `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of that name in `config.json`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// A quantised format that MLX defines: the constructor admits no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantSpec {
    mode: QuantMode,
    bits: usize,
    group_size: usize,
}

impl QuantSpec {
    /// The format with these numbers.
    ///
    /// [`Error::Format`] unless the combination is in the table of this module.
    /// [`Error::Format`] unless the combination stands in the table of this module.
    pub fn new(mode: QuantMode, bits: usize, group_size: usize) -> Result<Self> {
        let known = match mode {
            QuantMode::Affine => matches!(bits, 2 | 3 | 4 | 5 | 6 | 8) && matches!(group_size, 32 | 64 | 128),
            QuantMode::Mxfp4 => (bits, group_size) == (4, 32),
            QuantMode::Mxfp8 => (bits, group_size) == (8, 32),
            QuantMode::Nvfp4 => (bits, group_size) == (4, 16),
        };
        if known {
            Ok(Self { mode, bits, group_size })
        } else {
            Err(Error::Format { mode: mode.name().into(), bits, group_size })
        }
    }

    /// Every format, affine first.
    pub fn all() -> Vec<Self> {
        let affine =
            [2, 3, 4, 5, 6, 8].into_iter().flat_map(|b| [32, 64, 128].map(|g| (QuantMode::Affine, b, g)));
        affine
            .chain([(QuantMode::Mxfp4, 4, 32), (QuantMode::Mxfp8, 8, 32), (QuantMode::Nvfp4, 4, 16)])
            .map(|(mode, bits, group_size)| Self { mode, bits, group_size })
            .collect()
    }

    /// The mode.
    pub const fn mode(self) -> QuantMode {
        self.mode
    }

    /// Bits per weight.
    pub const fn bits(self) -> usize {
        self.bits
    }

    /// Weights per scale.
    pub const fn group_size(self) -> usize {
        self.group_size
    }

    /// True if each group has a bias beside its scale.
    pub const fn has_biases(self) -> bool {
        matches!(self.mode, QuantMode::Affine)
    }

    /// Bytes of `n` packed weights; `n` is a multiple of the group size.
    pub const fn packed_bytes(self, n: usize) -> usize {
        n * self.bits / 8
    }
}

impl std::fmt::Display for QuantSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}-bit g{}", self.mode.name(), self.bits, self.group_size)
    }
}

/// The type of a format's scales (and biases).
///
/// # Errors
/// [`Error::Precondition`] if `dtype` cannot be the scale type of `spec`.
pub(crate) fn check_scale_dtype(spec: QuantSpec, dtype: DType) -> Result<()> {
    let (ok, want) = match spec.mode {
        QuantMode::Affine => (dtype.is_float(), "f32, f16 or bf16"),
        _ => (dtype == DType::U8, "u8"),
    };
    crate::error::ensure(ok, "quantised weight", "scales", want, dtype)
}

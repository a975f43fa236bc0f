//! The quantised formats of MLX checkpoints, which are decoded one element at a time.
//!
//! A matrix `[rows, cols]` (any leading dimensions are folded into `rows`) is stored in three parts:
//!
//! | part | contents | shape |
//! |---|---|---|
//! | packed words | unsigned codes of `bits` bits, element `i` of a row at bits `[i·bits, (i+1)·bits)` of the row's little-endian bit stream | `[rows, cols·bits/32]` u32 |
//! | scales | one for every `group_size` consecutive elements of a row | `[rows, cols/group_size]` |
//! | biases | affine only; as the scales | `[rows, cols/group_size]` |
//!
//! | mode | value of code `q` | scale | bits × group size |
//! |---|---|---|---|
//! | [`Mode::Affine`] | `scale·q + bias` | f32, f16 or bf16 | 2, 3, 4, 5, 6, 8 × 32, 64, 128 |
//! | [`Mode::Mxfp4`] | `2^(s-127)·E2M1(q)` | u8 E8M0 | 4 × 32 |
//! | [`Mode::Mxfp8`] | `2^(s-127)·E4M3(q)` | u8 E8M0 | 8 × 32 |
//! | [`Mode::Nvfp4`] | `E4M3(s)·E2M1(q)` | u8 E4M3 | 4 × 16 |
//!
//! **Source**: OCP Microscaling Formats (MX) 1.0 for E2M1, E4M3 and E8M0; the rest from MLX's recorded results.

mod bits;
pub mod float;
mod matrix;
mod quantize;

use crate::{Error, Result};

pub use bits::{read_bits, write_bits};
pub use matrix::{QuantizedMatrix, Scales, dequantize};
pub use quantize::quantize;

/// How codes become values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `scale·q + bias` with unsigned integer codes.
    Affine,
    /// E2M1 elements, E8M0 scales.
    Mxfp4,
    /// E4M3 elements, E8M0 scales.
    Mxfp8,
    /// E2M1 elements, E4M3 scales.
    Nvfp4,
}

impl Mode {
    /// The name in config.json: `affine`, `mxfp4`, `mxfp8`, `nvfp4`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of this name in config.json.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4].into_iter().find(|mode| mode.name() == name)
    }
}

/// The dtype of affine scales and biases, and of dequantised values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageDtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
}

impl StorageDtype {
    /// `x` rounded to this dtype (nearest, ties to even) and widened again.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::BF16 => half::bf16::from_f32(x).to_f32(),
        }
    }

    /// The little-endian bytes of `x` rounded to this dtype.
    #[must_use]
    pub fn bytes(self, x: f32) -> Vec<u8> {
        match self {
            Self::F32 => x.to_le_bytes().to_vec(),
            Self::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            Self::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        }
    }
}

/// A quantised format. Its fields are those of `quantization` in config.json for a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Format {
    /// How codes become values.
    pub mode: Mode,
    /// Bits per code.
    pub bits: usize,
    /// Elements that share a scale.
    pub group_size: usize,
}

impl Format {
    /// An affine format.
    #[must_use]
    pub fn affine(bits: usize, group_size: usize) -> Self {
        Self { mode: Mode::Affine, bits, group_size }
    }

    /// The only format of a floating-point mode. For affine, MLX's default of 4 bits in groups of 64.
    #[must_use]
    pub fn of_mode(mode: Mode) -> Self {
        let (bits, group_size) = match mode {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        };
        Self { mode, bits, group_size }
    }

    /// All 21 formats of the table in the [module's documentation](self).
    #[must_use]
    pub fn all() -> Vec<Self> {
        let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|b| [32, 64, 128].map(|g| Self::affine(b, g)));
        affine.chain([Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(Self::of_mode)).collect()
    }

    /// Whether the format is one of [`Self::all`].
    ///
    /// # Errors
    /// [`Error::Unsupported`], naming the format.
    pub fn check(self) -> Result<()> {
        if Self::all().contains(&self) {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: format!(
                "quantisation mode {}, {} bits, group size {}",
                self.mode.name(),
                self.bits,
                self.group_size
            ),
        })
    }

    /// Number of 32-bit words in a row of `cols` elements.
    #[must_use]
    pub fn row_words(self, cols: usize) -> usize {
        cols * self.bits / 32
    }

    /// Number of groups, and so of scales, in a row of `cols` elements.
    #[must_use]
    pub fn row_groups(self, cols: usize) -> usize {
        cols / self.group_size
    }

    /// The name that the recordings use, such as `affine_b4_g64`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}_b{}_g{}", self.mode.name(), self.bits, self.group_size)
    }
}

//! A quantised matrix and its decoding.

use candle_core::{DType, Device, Tensor};

use super::float::{e2m1_to_f32, e4m3_to_f32, e8m0_to_f32};
use super::{Format, Mode, StorageDtype, read_bits};
use crate::{Error, Result};

/// One scale for each group, row after row.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// Affine: values, widened to `f32` (exact).
    Float(Vec<f32>),
    /// Floating-point modes: E8M0 or E4M3 codes.
    Codes(Vec<u8>),
}

/// A matrix `[rows, cols]` in a quantised format. For a stack `[n_experts, out, in]`, rows = `n_experts·out`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedMatrix {
    /// The format.
    pub format: Format,
    /// Number of rows, with all leading dimensions folded into it.
    pub rows: usize,
    /// Number of elements in a row.
    pub cols: usize,
    /// The packed words as little-endian bytes: `rows · cols · bits / 8` bytes.
    pub packed: Vec<u8>,
    /// `rows · cols / group_size` scales.
    pub scales: Scales,
    /// One bias for each group if the mode is affine; otherwise `None`.
    pub biases: Option<Vec<f32>>,
}

impl QuantizedMatrix {
    /// Checks that the parts belong together: a known format, `cols` a multiple of the group, the right lengths, and
    /// float scales and biases if and only if the mode is affine.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Quantized`].
    pub fn check(&self) -> Result<()> {
        self.format.check()?;
        let fail = |why: String| Err(Error::Quantized { name: self.format.name(), why });
        if !self.cols.is_multiple_of(self.format.group_size) {
            return fail(format!("{} columns are not a multiple of the group size", self.cols));
        }
        let n_bytes = self.rows * self.format.row_words(self.cols) * 4;
        if self.packed.len() != n_bytes {
            return fail(format!("{} packed bytes, want {n_bytes}", self.packed.len()));
        }
        let n_groups = self.rows * self.format.row_groups(self.cols);
        let n_scales = match &self.scales {
            Scales::Float(values) => values.len(),
            Scales::Codes(codes) => codes.len(),
        };
        if n_scales != n_groups {
            return fail(format!("{n_scales} scales, want {n_groups}"));
        }
        match (self.format.mode, &self.scales, &self.biases) {
            (Mode::Affine, Scales::Float(_), Some(biases)) if biases.len() == n_groups => Ok(()),
            (Mode::Affine, ..) => fail(format!("affine needs float scales and {n_groups} biases")),
            (_, Scales::Codes(_), None) => Ok(()),
            _ => fail("a floating-point mode needs u8 scales and no biases".into()),
        }
    }

    /// The code of one element.
    #[must_use]
    pub fn code(&self, row: usize, col: usize) -> u32 {
        read_bits(&self.packed, (row * self.cols + col) * self.format.bits, self.format.bits)
    }

    /// The scale and the bias of an element's group. The bias is 0 for the floating-point modes.
    #[must_use]
    pub fn scale_bias(&self, row: usize, col: usize) -> (f32, f32) {
        let group_idx = row * self.format.row_groups(self.cols) + col / self.format.group_size;
        let scale = match (&self.scales, self.format.mode) {
            (Scales::Float(values), _) => values[group_idx],
            (Scales::Codes(codes), Mode::Nvfp4) => e4m3_to_f32(codes[group_idx]),
            (Scales::Codes(codes), _) => e8m0_to_f32(codes[group_idx]),
        };
        (scale, self.biases.as_ref().map_or(0.0, |biases| biases[group_idx]))
    }

    /// The number that the scale multiplies: the code itself for affine, otherwise the small float that the code stands
    /// for.
    #[must_use]
    pub fn element(&self, row: usize, col: usize) -> f32 {
        let code = self.code(row, col);
        match self.format.mode {
            Mode::Affine => code as f32,
            Mode::Mxfp4 | Mode::Nvfp4 => e2m1_to_f32(code as u8),
            Mode::Mxfp8 => e4m3_to_f32(code as u8),
        }
    }

    /// `scale·element + bias`, rounded only to `f64`.
    #[must_use]
    pub fn value(&self, row: usize, col: usize) -> f64 {
        let (scale, bias) = self.scale_bias(row, col);
        f64::from(scale) * f64::from(self.element(row, col)) + f64::from(bias)
    }

    /// All values in `f64`, `[rows, cols]`: the exact meaning of the codes.
    #[must_use]
    pub fn dequantize_f64(&self) -> Vec<f64> {
        self.map(|row, col| self.value(row, col))
    }

    /// All values in `f32`, `[rows, cols]`. The product and the sum are rounded to `f32` one after the other.
    #[must_use]
    pub fn dequantize(&self) -> Vec<f32> {
        self.dequantize_in(StorageDtype::F32)
    }

    /// All values in the arithmetic of `dtype`, `[rows, cols]`. Product and sum are each rounded to it, as MLX does
    /// when it dequantises into that dtype. This is exact for the floating-point modes unless something overflows.
    #[must_use]
    pub fn dequantize_in(&self, dtype: StorageDtype) -> Vec<f32> {
        self.map(|row, col| {
            let (scale, bias) = self.scale_bias(row, col);
            let product = dtype.round(scale * self.element(row, col));
            if self.biases.is_some() { dtype.round(product + bias) } else { product }
        })
    }

    fn map<T>(&self, f: impl Fn(usize, usize) -> T) -> Vec<T> {
        (0..self.rows)
            .flat_map(|row| (0..self.cols).map(move |col| (row, col)))
            .map(|(r, c)| f(r, c))
            .collect()
    }
}

/// Dequantises tensors as a checkpoint stores them.
///
/// **Shapes** `packed [.., out, in·bits/32]`, `scales` and `biases` `[.., out, in/group_size]`; the result is
/// `[.., out, in]`. **Dtypes** packed is u32. Scales are u8 for the floating-point modes, otherwise f32, f16 or bf16,
/// and so are the biases. The result is f32. **Numerics** see [`QuantizedMatrix::dequantize`].
///
/// # Errors
/// Parts that do not belong together.
pub fn dequantize(
    packed: &Tensor,
    scales: &Tensor,
    biases: Option<&Tensor>,
    format: Format,
) -> Result<Tensor> {
    format.check()?;
    let mut shape = packed.dims().to_vec();
    let words = shape.pop().unwrap_or(0);
    let rows = shape.iter().product();
    let cols = words * 32 / format.bits;
    shape.push(cols);
    let floats = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?) };
    let matrix = QuantizedMatrix {
        format,
        rows,
        cols,
        packed: packed.flatten_all()?.to_vec1::<u32>()?.into_iter().flat_map(u32::to_le_bytes).collect(),
        scales: match scales.dtype() {
            DType::U8 => Scales::Codes(scales.flatten_all()?.to_vec1()?),
            _ => Scales::Float(floats(scales)?),
        },
        biases: biases.map(floats).transpose()?,
    };
    matrix.check()?;
    Ok(Tensor::from_vec(matrix.dequantize(), shape, &Device::Cpu)?)
}

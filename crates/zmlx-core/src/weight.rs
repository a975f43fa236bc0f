//! Weights as they are in host memory, before a backend takes them over.

mod convert;

use bytes::Bytes;

use crate::error::ensure;
use crate::quant::check_scale_dtype;
use crate::{DType, Error, QuantSpec, Result};
#[cfg(feature = "safetensors")]
pub use convert::QuantizedViews;

/// How the elements of a weight are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// Plain floats of this type.
    Dense(DType),
    /// Packed words with scales of the given type, and biases of the same type where the mode has them.
    Quantized {
        /// The format of the words.
        spec: QuantSpec,
        /// The type of scales and biases.
        scale_dtype: DType,
    },
}

impl WeightFormat {
    /// Weights of a row that cannot be had apart: 1 for dense weights.
    pub const fn group_size(self) -> usize {
        match self {
            Self::Dense(_) => 1,
            Self::Quantized { spec, .. } => spec.group_size(),
        }
    }

    /// Bytes of one row of `n_in` weights: words, scales and biases.
    pub const fn row_bytes(self, n_in: usize) -> usize {
        match self {
            Self::Dense(dtype) => n_in * dtype.size_bytes(),
            Self::Quantized { spec, scale_dtype } => {
                let per_group = scale_dtype.size_bytes() * if spec.has_biases() { 2 } else { 1 };
                spec.packed_bytes(n_in) + n_in / spec.group_size() * per_group
            }
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense(dtype) => write!(f, "{dtype:?}"),
            Self::Quantized { spec, .. } => write!(f, "{spec}"),
        }
    }
}

/// The buffers of one matrix `[n_out, n_in]`, or of a stack `[n_mats, n_out, n_in]` of them.
///
/// The bytes may lie at any address: files in the safetensors format do not align their tensors, and mapped
/// files are used in place.
#[derive(Clone, Debug)]
pub struct WeightBytes {
    /// Dense elements, or packed words.
    pub data: Bytes,
    /// One scale per group; empty for dense weights.
    pub scales: Bytes,
    /// One bias per group; empty for dense weights and modes without biases.
    pub biases: Bytes,
}

/// A matrix, or a bank of equally shaped matrices (one per expert or per head), in host memory.
///
/// **Shapes** `n_mats × [n_out, n_in]`, row-major; the output of a product with `x [.., n_in]` is `[.., n_out]`.
/// Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct HostWeight {
    format: WeightFormat,
    n_out: usize,
    n_in: usize,
    mats: Vec<WeightBytes>,
    /// The factor of each matrix's products; empty if there are none.
    factors: Vec<f32>,
}

impl HostWeight {
    /// A stack of `n_mats` matrices of `n_out` rows of `n_in` weights, stored one after the other.
    ///
    /// # Errors
    /// If `n_in` is not a multiple of the group size, or a buffer's length does not fit the shape.
    pub fn new(format: WeightFormat, [n_mats, n_out, n_in]: [usize; 3], bytes: WeightBytes) -> Result<Self> {
        const OP: &str = "host weight";
        ensure(n_mats > 0 && n_out > 0 && n_in > 0, OP, "shape", "no zero dimension", [n_mats, n_out, n_in])?;
        let n_elements = n_mats.checked_mul(n_out).and_then(|n| n.checked_mul(n_in));
        let n_elements = n_elements.filter(|n| n.checked_mul(8).is_some());
        ensure(n_elements.is_some(), OP, "shape", "an addressable size", [n_mats, n_out, n_in])?;
        let n_rows = n_mats * n_out;
        let (data, per_group, dtype) = match format {
            WeightFormat::Dense(dtype) => {
                ensure(dtype.is_float(), OP, "dtype", "f32, f16 or bf16", dtype)?;
                ((dtype, n_rows * n_in * dtype.size_bytes()), 0, dtype)
            }
            WeightFormat::Quantized { spec, scale_dtype } => {
                check_scale_dtype(spec, scale_dtype)?;
                let g = spec.group_size();
                ensure(
                    n_in.is_multiple_of(g),
                    OP,
                    "n_in",
                    format_args!("a multiple of the group size {g}"),
                    n_in,
                )?;
                let groups = n_rows * (n_in / g) * scale_dtype.size_bytes();
                ((DType::U32, n_rows * spec.packed_bytes(n_in)), groups, scale_dtype)
            }
        };
        let has_biases = matches!(format, WeightFormat::Quantized { spec, .. } if spec.has_biases());
        check_length("weight", data.0, &bytes.data, data.1)?;
        check_length("scales", dtype, &bytes.scales, per_group)?;
        check_length("biases", dtype, &bytes.biases, if has_biases { per_group } else { 0 })?;
        let part = |b: &Bytes, i: usize| {
            let n = b.len() / n_mats;
            b.slice(i * n..(i + 1) * n)
        };
        let mats = (0..n_mats)
            .map(|i| WeightBytes {
                data: part(&bytes.data, i),
                scales: part(&bytes.scales, i),
                biases: part(&bytes.biases, i),
            })
            .collect();
        Ok(Self { format, n_out, n_in, mats, factors: Vec::new() })
    }

    /// The weight with a factor for each matrix, which is nvfp4's second scale. `factors` has one value for each
    /// matrix.
    ///
    /// # Errors
    /// If the number of factors is not the number of matrices.
    pub fn with_factors(self, factors: Vec<f32>) -> Result<Self> {
        let n_mats = self.n_mats();
        ensure(factors.len() == n_mats, "host weight", "factors", n_mats, factors.len())?;
        Ok(Self { factors, ..self })
    }

    /// A dense vector or matrix of 32-bit floats, copied.
    ///
    /// # Errors
    /// As [`HostWeight::new`].
    pub fn from_f32(values: &[f32], n_out: usize, n_in: usize) -> Result<Self> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        Self::new(WeightFormat::Dense(DType::F32), [1, n_out, n_in], bytes.into())
    }

    /// One bank from several weights of the same format and shape, in order; shares their bytes.
    ///
    /// # Errors
    /// If the list is empty or the formats or shapes differ.
    pub fn stack(parts: Vec<Self>) -> Result<Self> {
        const OP: &str = "stack of weights";
        ensure(!parts.is_empty(), OP, "parts", "at least one", 0)?;
        let (format, n_out, n_in) = (parts[0].format, parts[0].n_out, parts[0].n_in);
        for p in &parts {
            ensure(
                (p.format, p.n_out, p.n_in) == (format, n_out, n_in),
                OP,
                "parts",
                format_args!("all {format} [{n_out}, {n_in}]"),
                (p.format, p.n_out, p.n_in),
            )?;
        }
        let has_factors = parts.iter().any(Self::has_factors);
        let factors = parts.iter().filter(|_| has_factors);
        let factors = factors.flat_map(|p| (0..p.n_mats()).map(|i| p.factor(i))).collect();
        Ok(Self { format, n_out, n_in, mats: parts.into_iter().flat_map(|p| p.mats).collect(), factors })
    }

    /// The rows `rows` of each matrix. They share the bytes of this weight.
    ///
    /// # Errors
    /// If the range is empty or reaches past the last row.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let n_out = self.n_out;
        let ok = rows.start < rows.end && rows.end <= n_out;
        ensure(ok, "rows of a weight", "rows", format_args!("within 0..{n_out}"), &rows)?;
        let part = |bytes: &Bytes| {
            let row_bytes = bytes.len() / n_out;
            bytes.slice(rows.start * row_bytes..rows.end * row_bytes)
        };
        let mats = self.mats.iter().map(|m| WeightBytes {
            data: part(&m.data),
            scales: part(&m.scales),
            biases: part(&m.biases),
        });
        Ok(Self { n_out: rows.len(), mats: mats.collect(), factors: self.factors.clone(), ..*self })
    }

    /// Copies these ranges of rows of each matrix, one range after the other.
    ///
    /// # Errors
    /// If a range is empty or reaches past the last row, or if there are no ranges.
    pub fn gather_rows(&self, ranges: &[std::ops::Range<usize>]) -> Result<Self> {
        let n_out = self.n_out;
        let are_there = ranges.iter().all(|rows| rows.start < rows.end && rows.end <= n_out);
        let want = format_args!("within 0..{n_out}");
        ensure(are_there && !ranges.is_empty(), "rows of a weight", "ranges", want, ranges)?;
        let part = |bytes: &Bytes| -> Bytes {
            let row_bytes = bytes.len() / n_out;
            let rows = |rows: &std::ops::Range<usize>| &bytes[rows.start * row_bytes..rows.end * row_bytes];
            ranges.iter().map(rows).collect::<Vec<_>>().concat().into()
        };
        let mats = self.mats.iter().map(|m| WeightBytes {
            data: part(&m.data),
            scales: part(&m.scales),
            biases: part(&m.biases),
        });
        let n_rows = ranges.iter().map(std::ops::Range::len).sum();
        Ok(Self { n_out: n_rows, mats: mats.collect(), factors: self.factors.clone(), ..*self })
    }

    /// The columns `columns` of each matrix: copied, as they do not lie in a row.
    ///
    /// # Errors
    /// If there are no such columns, or the range would cut a group of quantised weights.
    pub fn columns(&self, columns: std::ops::Range<usize>) -> Result<Self> {
        const OP: &str = "columns of a weight";
        let (n_in, group_size) = (self.n_in, self.format.group_size());
        let ok = columns.start < columns.end && columns.end <= n_in;
        ensure(ok, OP, "columns", format_args!("within 0..{n_in}"), &columns)?;
        let is_whole = columns.start.is_multiple_of(group_size) && columns.end.is_multiple_of(group_size);
        ensure(is_whole, OP, "columns", format_args!("whole groups of {group_size}"), &columns)?;
        // A row's bytes are those of its groups, one after the other.
        let groups = columns.start / group_size..columns.end / group_size;
        let n_groups = n_in / group_size;
        let part = |bytes: &Bytes| -> Bytes {
            if bytes.is_empty() {
                return Bytes::new();
            }
            let group_bytes = bytes.len() / (self.n_out * n_groups);
            let of_row = groups.start * group_bytes..groups.end * group_bytes;
            let rows = bytes.chunks_exact(n_groups * group_bytes).map(|row| &row[of_row.clone()]);
            rows.collect::<Vec<_>>().concat().into()
        };
        let mats = self.mats.iter().map(|m| WeightBytes {
            data: part(&m.data),
            scales: part(&m.scales),
            biases: part(&m.biases),
        });
        Ok(Self { n_in: columns.len(), mats: mats.collect(), factors: self.factors.clone(), ..*self })
    }

    /// The matrices `mats` of a bank, sharing their bytes.
    ///
    /// # Errors
    /// If there are no such matrices.
    pub fn mats(&self, mats: std::ops::Range<usize>) -> Result<Self> {
        let n_mats = self.n_mats();
        let ok = mats.start < mats.end && mats.end <= n_mats;
        ensure(ok, "matrices of a weight", "mats", format_args!("within 0..{n_mats}"), &mats)?;
        let factors = if self.has_factors() { self.factors[mats.clone()].to_vec() } else { Vec::new() };
        Ok(Self { mats: self.mats[mats].to_vec(), factors, ..*self })
    }

    /// How the elements are stored.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Number of matrices: 1, or the number of experts or heads.
    pub fn n_mats(&self) -> usize {
        self.mats.len()
    }

    /// Rows of each matrix: the width of the product.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Columns of each matrix: the width of the input.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// The buffers of matrix `i`.
    pub fn mat(&self, i: usize) -> &WeightBytes {
        &self.mats[i]
    }

    /// The factor of the products of matrix `i`: 1 unless the weight was given [factors](Self::with_factors).
    pub fn factor(&self, i: usize) -> f32 {
        self.factors.get(i).copied().unwrap_or(1.0)
    }

    /// True if the weight was given [factors](Self::with_factors).
    pub fn has_factors(&self) -> bool {
        !self.factors.is_empty()
    }

    /// The same weights as dense bf16, rounded once, without the factors: for backends that lack a kernel for a format.
    pub fn to_bf16(&self) -> Self {
        let n = self.n_out * self.n_in * 2;
        let all = self.to_f32_vec();
        let data: Bytes = all.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect();
        let mat = |i: usize| WeightBytes {
            data: data.slice(i * n..(i + 1) * n),
            scales: Bytes::new(),
            biases: Bytes::new(),
        };
        let mats = (0..self.n_mats()).map(mat).collect();
        Self { format: WeightFormat::Dense(DType::BF16), mats, factors: Vec::new(), ..*self }
    }

    /// Bytes of one matrix: words, scales and biases.
    pub fn mat_bytes(&self) -> usize {
        self.n_out * self.format.row_bytes(self.n_in)
    }

    /// All weights as floats, `n_mats · n_out · n_in` values: `scale · q + bias` rounded once to f32, and once more if
    /// there is a factor.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.mats.len() * self.n_out * self.n_in);
        for (i, m) in self.mats.iter().enumerate() {
            let from = out.len();
            match self.format {
                WeightFormat::Dense(dtype) => out.extend(dtype.to_f32_vec(&m.data)),
                WeightFormat::Quantized { spec, scale_dtype } => {
                    out.extend(crate::quant::dequantize(spec, scale_dtype, &m.data, &m.scales, &m.biases));
                }
            }
            if let Some(factor) = self.factors.get(i) {
                out[from..].iter_mut().for_each(|w| *w *= factor);
            }
        }
        out
    }
}

fn check_length(what: &'static str, dtype: DType, bytes: &Bytes, want_bytes: usize) -> Result<()> {
    if bytes.len() == want_bytes {
        Ok(())
    } else {
        Err(Error::BufferLength { what, dtype, n_bytes: bytes.len(), want_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of weights in every format, against the same parts of their values.
    #[test]
    fn columns_and_matrices() {
        let (n_mats, n_out, n_in) = (3, 2, 256);
        let values: Vec<f32> =
            (0..n_mats * n_out * n_in).map(|i| ((i * 7919) % 509) as f32 / 509.0 - 0.5).collect();
        let mut weights = vec![HostWeight::from_f32(&values[..n_out * n_in], n_out, n_in).unwrap()];
        let quantized =
            |spec: &QuantSpec| HostWeight::quantize(*spec, &values, [n_mats, n_out, n_in]).unwrap();
        weights.extend(QuantSpec::all().iter().map(quantized));
        for weight in weights {
            let all = weight.to_f32_vec();
            let row = |i: usize| &all[i * n_in..(i + 1) * n_in];
            for columns in [0..128, 128..256, 0..256] {
                let got = weight.columns(columns.clone()).unwrap();
                assert_eq!((got.n_mats(), got.n_out(), got.n_in()), (weight.n_mats(), n_out, columns.len()));
                let want: Vec<f32> =
                    (0..weight.n_mats() * n_out).flat_map(|i| row(i)[columns.clone()].to_vec()).collect();
                assert_eq!(got.to_f32_vec(), want, "{} {columns:?}", weight.format());
            }
            let last = weight.n_mats() - 1..weight.n_mats();
            let want = &all[last.start * n_out * n_in..];
            assert_eq!(weight.mats(last).unwrap().to_f32_vec(), want, "{}", weight.format());
            assert!(weight.mats(0..weight.n_mats() + 1).is_err() && weight.mats(1..1).is_err());
            assert!(weight.columns(0..257).is_err() && weight.columns(128..128).is_err());
            if weight.format().group_size() > 1 {
                let error = weight.columns(0..8).unwrap_err().to_string();
                assert!(error.contains("whole groups of"), "{error}");
            }
        }
    }

    #[test]
    fn factors_follow_their_matrices() {
        let one = |v: f32| HostWeight::from_f32(&[v, v], 1, 2).unwrap();
        let bank = HostWeight::stack(vec![one(1.0), one(2.0), one(3.0)]).unwrap();
        let bank = bank.with_factors(vec![10.0, 20.0, 30.0]).unwrap();
        assert_eq!(bank.mats(1..3).unwrap().to_f32_vec(), [40.0, 40.0, 90.0, 90.0]);
        assert_eq!(bank.columns(1..2).unwrap().to_f32_vec(), [10.0, 40.0, 90.0]);
    }
}

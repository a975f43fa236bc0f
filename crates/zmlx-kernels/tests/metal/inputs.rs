//! Random arrays as bytes, and what they mean.

use half::{bf16, f16};
use zmlx_kernels::{DType, QuantMode, QuantSpec};
use zmlx_oracle::quant::{Format, Mode, QuantizedMatrix, StorageDtype};
use zmlx_oracle::testing::{RandomQuantized, random_in, random_quantized};

/// An array as a kernel gets it.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Buffer {
    pub(crate) fn of_u32(values: &[u32], shape: &[usize]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DType::U32, shape: shape.to_vec(), bytes }
    }

    /// The values must be numbers of the type.
    pub(crate) fn of_floats(dtype: DType, values: &[f32], shape: &[usize]) -> Self {
        let bytes = values.iter().flat_map(|&v| storage(dtype).bytes(v)).collect();
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        self.dtype.to_f32_vec(&self.bytes)
    }

    pub(crate) fn words(&self) -> Vec<u32> {
        self.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

pub(crate) fn storage(dtype: DType) -> StorageDtype {
    match dtype {
        DType::F32 => StorageDtype::F32,
        DType::F16 => StorageDtype::F16,
        DType::BF16 => StorageDtype::BF16,
        other => panic!("not a float: {other:?}"),
    }
}

/// `v` rounded to the type.
pub(crate) fn round(dtype: DType, v: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(v).to_f32(),
        DType::BF16 => bf16::from_f32(v).to_f32(),
        _ => v,
    }
}

/// The largest relative error of rounding to the type.
pub(crate) fn half_ulp(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// A bank of experts `[n_experts, n_out, n_in]`.
pub(crate) struct Bank {
    pub(crate) format: QuantSpec,
    pub(crate) sizes: [usize; 3],
    scale_dtype: DType,
    random: RandomQuantized,
}

impl Bank {
    pub(crate) fn new(format: QuantSpec, dtype: DType, sizes: [usize; 3], seed: u64) -> Self {
        let mode = match format.mode() {
            QuantMode::Affine => Mode::Affine,
            QuantMode::Mxfp4 => Mode::Mxfp4,
            QuantMode::Mxfp8 => Mode::Mxfp8,
            QuantMode::Nvfp4 => Mode::Nvfp4,
        };
        let oracle = Format { mode, bits: format.bits(), group_size: format.group_size() };
        let random = random_quantized(oracle, storage(dtype), &sizes, seed);
        let scale_dtype = if mode == Mode::Affine { dtype } else { DType::U8 };
        Self { format, sizes, scale_dtype, random }
    }

    /// Weight, scales and biases, or scales again where there are none.
    pub(crate) fn buffers(&self) -> [Buffer; 3] {
        let [n_experts, n_out, n_in] = self.sizes;
        let weight = Buffer {
            dtype: DType::U32,
            shape: vec![n_experts, n_out, n_in * self.format.bits() / 32],
            bytes: self.random.weight.clone(),
        };
        let scales = Buffer {
            dtype: self.scale_dtype,
            shape: vec![n_experts, n_out, n_in / self.format.group_size()],
            bytes: self.random.scales.clone(),
        };
        let biases = Buffer {
            bytes: self.random.biases.clone().unwrap_or_else(|| self.random.scales.clone()),
            ..scales.clone()
        };
        [weight, scales, biases]
    }

    /// Its codes, scales and biases; row r of expert e is row e · n_out + r.
    pub(crate) fn matrix(&self) -> &QuantizedMatrix {
        &self.random.matrix
    }

    /// The product of `x` with a row, and the sum of its summands' sizes `|x|·(|scale·code| + |bias|)`.
    pub(crate) fn product(&self, x: &[f32], expert: usize, row: usize) -> (f64, f64) {
        let [_, n_out, n_in] = self.sizes;
        let row = expert * n_out + row;
        let values = &self.random.values_f64[row * n_in..][..n_in];
        let (mut sum, mut size) = (0.0, 0.0);
        for (col, (&x, &w)) in x.iter().zip(values).enumerate() {
            let bias = f64::from(self.matrix().scale_bias(row, col).1);
            sum += f64::from(x) * w;
            size += f64::from(x).abs() * ((w - bias).abs() + bias.abs());
        }
        (sum, size)
    }
}

/// Activations of mean 0 and variance 1.
pub(crate) fn activations(dtype: DType, shape: &[usize], seed: u64) -> Buffer {
    let values = random_in(storage(dtype), shape.iter().product(), 1.0, seed);
    Buffer::of_floats(dtype, &values, shape)
}

/// Every format, for tests of results.
pub(crate) fn formats() -> Vec<QuantSpec> {
    QuantSpec::all()
}

/// 4-bit affine in groups of 64.
pub(crate) fn four_bit() -> QuantSpec {
    QuantSpec::new(QuantMode::Affine, 4, 64).unwrap()
}

/// One format per way of reading codes, with every group size.
pub(crate) fn readings() -> Vec<QuantSpec> {
    let affine = [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 128), (6, 32), (8, 64)];
    let affine = affine.map(|(bits, group)| QuantSpec::new(QuantMode::Affine, bits, group).unwrap());
    let rest = formats().into_iter().filter(|f| f.mode() != QuantMode::Affine);
    affine.into_iter().chain(rest).collect()
}

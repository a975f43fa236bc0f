//! The weights of convolutions, and other conversions that files need if their convolutions are not converted.

use bytes::Bytes;
use zmlx_kernels::{DType, HostWeight, WeightBytes, WeightFormat};

use super::{Checkpoint, TensorReader, WeightShape, placeholder};
use crate::WeightProblem;
use crate::architecture::{ConvSpec, Storage};

impl Checkpoint {
    /// True if a convolution is in Hugging Face's layout. Then nothing in the file is converted, and norms whose
    /// weights are stored as differences from 1 still have these differences.
    pub(super) fn is_raw(&self) -> bool {
        let is_raw = |(name, shape): (&String, &[usize])| {
            let name = self.name_in_model(name);
            name.is_some_and(|name| name.ends_with("conv1d.weight")) && shape.last() != Some(&1)
        };
        self.tensors.iter().any(|(name, entry)| is_raw((name, &entry.shape)))
    }
}

impl TensorReader<'_> {
    /// The taps of a convolution in the layout of [`ConvWeights`](zmlx_kernels::ConvWeights), in their own type.
    pub fn conv_of(&mut self, spec: &ConvSpec) -> HostWeight {
        let ConvSpec { path, n_channels, kernel, .. } = spec;
        let weight = if self.checkpoint.synthetic.is_some() {
            let shape = WeightShape { storage: Storage::Dense, ..WeightShape::matrix(*n_channels, *kernel) };
            self.weight(path, path, shape)
        } else {
            self.stored_conv(spec)
        };
        let WeightFormat::Dense(dtype) = weight.format() else { return weight };
        if weight.n_out() != *n_channels {
            return weight;
        }
        let (size, from) = (dtype.size_bytes(), &weight.mat(0).data);
        let mut taps = Vec::with_capacity(from.len());
        for tap in 0..*kernel {
            for channel in 0..*n_channels {
                taps.extend_from_slice(&from[(channel * kernel + tap) * size..][..size]);
            }
        }
        self.row(path, dtype, taps.into())
    }

    /// The taps as they are in the file, `[n_channels, kernel]`. In the file a dimension of 1 precedes or follows the taps.
    pub(crate) fn stored_conv(&mut self, spec: &ConvSpec) -> HostWeight {
        let name = format!("{}.weight", spec.path);
        let Some(entry) = self.take(&name) else { return placeholder() };
        let Some(dtype) = entry.kernel_dtype().filter(|dtype| dtype.is_float()) else {
            return self.wrong_dtype(&name, entry, "F32, F16 or BF16");
        };
        let (n_channels, kernel) = (spec.n_channels, spec.kernel);
        if entry.shape != [n_channels, 1, kernel] && !self.has_shape(&name, entry, &[n_channels, kernel, 1]) {
            return placeholder();
        }
        let shape = WeightShape::matrix(n_channels, kernel);
        let bytes = WeightBytes { data: entry.bytes.clone(), scales: Bytes::new(), biases: Bytes::new() };
        self.host_weight(&spec.path, WeightFormat::Dense(dtype), shape, bytes)
    }

    /// A vector plus 1, rounded to its type, as converters compute it.
    pub(super) fn plus_one(&mut self, name: &str, weight: HostWeight) -> HostWeight {
        let WeightFormat::Dense(dtype) = weight.format() else { return weight };
        let sums = weight.to_f32_vec().into_iter().map(|w| w + 1.0);
        let data: Bytes = match dtype {
            DType::BF16 => sums.flat_map(|w| half::bf16::from_f32(w).to_le_bytes()).collect(),
            DType::F16 => sums.flat_map(|w| half::f16::from_f32(w).to_le_bytes()).collect(),
            _ => return HostWeight::from_f32(&sums.collect::<Vec<_>>(), 1, weight.n_in()).unwrap_or(weight),
        };
        self.row(name, dtype, data)
    }

    fn row(&mut self, name: &str, dtype: DType, data: Bytes) -> HostWeight {
        let len = data.len() / dtype.size_bytes();
        let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
        HostWeight::new(WeightFormat::Dense(dtype), [1, 1, len], bytes).unwrap_or_else(|e| {
            let (got, want) = (e.to_string(), format!("a vector of {len} values"));
            self.problem(WeightProblem::Format { name: name.into(), got, want })
        })
    }
}

//! Weights made from what a program has at hand: slices, quantised buffers, tensors of safetensors files.

use bytes::Bytes;
use half::{bf16, f16};

use super::{HostWeight, WeightBytes, WeightFormat};
use crate::quant::{Quantized, quantize};
use crate::{DType, QuantSpec, Result};

impl HostWeight {
    /// A dense vector or matrix of 16-bit IEEE floats, copied.
    ///
    /// # Errors
    /// As [`HostWeight::new`].
    pub fn from_f16(values: &[f16], n_out: usize, n_in: usize) -> Result<Self> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        Self::new(WeightFormat::Dense(DType::F16), [1, n_out, n_in], bytes.into())
    }

    /// A dense vector or matrix of bfloat16, copied.
    ///
    /// # Errors
    /// As [`HostWeight::new`].
    pub fn from_bf16(values: &[bf16], n_out: usize, n_in: usize) -> Result<Self> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        Self::new(WeightFormat::Dense(DType::BF16), [1, n_out, n_in], bytes.into())
    }

    /// Quantises floats. The affine modes store their scales and biases in bf16, as MLX does for models in bf16.
    /// [`quantize`] supports other types.
    ///
    /// **Shapes** `values` holds `n_mats · n_out · n_in` floats, row-major.
    ///
    /// # Errors
    /// If `n_in` is not a multiple of the group size, or `values` does not fill the shape.
    pub fn quantize(spec: QuantSpec, values: &[f32], shape: [usize; 3]) -> Result<Self> {
        let scale_dtype = if spec.has_biases() { DType::BF16 } else { DType::U8 };
        let quantized = quantize(spec, scale_dtype, values, shape[2])?;
        Self::new(WeightFormat::Quantized { spec, scale_dtype }, shape, quantized.into())
    }
}

impl From<Quantized> for WeightBytes {
    fn from(quantized: Quantized) -> Self {
        let Quantized { data, scales, biases } = quantized;
        Self { data: data.into(), scales: scales.into(), biases: biases.into() }
    }
}

/// The bytes of dense elements.
impl From<Vec<u8>> for WeightBytes {
    fn from(data: Vec<u8>) -> Self {
        Self { data: data.into(), scales: Bytes::new(), biases: Bytes::new() }
    }
}

#[cfg(feature = "safetensors")]
mod views {
    use bytes::Bytes;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::super::{HostWeight, WeightBytes, WeightFormat};
    use crate::check::ensure;
    use crate::{DType, QuantSpec, Result};

    const OP: &str = "weight from safetensors";

    /// The three tensors of a quantised weight in a safetensors file.
    #[derive(Clone, Copy, Debug)]
    pub struct QuantizedViews<'a> {
        /// The packed words, `u32`.
        pub words: &'a TensorView<'a>,
        /// The scales: floats, or `u8` in modes without biases.
        pub scales: &'a TensorView<'a>,
        /// The biases, in modes that have them.
        pub biases: Option<&'a TensorView<'a>>,
    }

    impl HostWeight {
        /// A dense weight from a tensor of a safetensors file, copied.
        ///
        /// **Shapes** `[n_in]`, `[n_out, n_in]` or `[n_mats, n_out, n_in]`.
        ///
        /// # Errors
        /// If the elements are not f32, f16 or bf16, or there are not one to three dimensions.
        pub fn from_view(view: &TensorView<'_>) -> Result<Self> {
            let shape = matrices(view.shape())?;
            Self::new(WeightFormat::Dense(dtype(view)?), shape, view.data().to_vec().into())
        }

        /// A quantised weight from its tensors in a safetensors file, copied.
        ///
        /// **Shapes** words `[.., n_out, n_in · bits / 32]`, scales and biases `[.., n_out, n_in / group_size]`, with
        /// at most one dimension before `n_out`.
        ///
        /// # Errors
        /// If a type or shape does not fit the format.
        pub fn from_quantized_views(spec: QuantSpec, views: QuantizedViews<'_>) -> Result<Self> {
            let QuantizedViews { words, scales, biases } = views;
            let [n_mats, n_out, n_groups] = matrices(scales.shape())?;
            ensure(words.dtype() == Dtype::U32, OP, "words", "u32", words.dtype())?;
            let same = biases.is_none_or(|b| b.shape() == scales.shape() && b.dtype() == scales.dtype());
            ensure(same, OP, "biases", "type and shape of the scales", biases.map(TensorView::shape))?;
            let copied = |view: &TensorView<'_>| Bytes::copy_from_slice(view.data());
            let bytes = WeightBytes {
                data: copied(words),
                scales: copied(scales),
                biases: biases.map_or_else(Bytes::new, copied),
            };
            let format = WeightFormat::Quantized { spec, scale_dtype: dtype(scales)? };
            Self::new(format, [n_mats, n_out, n_groups.saturating_mul(spec.group_size())], bytes)
        }
    }

    /// The shape as `[n_mats, n_out, n_in]`.
    fn matrices(shape: &[usize]) -> Result<[usize; 3]> {
        match *shape {
            [n_in] => Ok([1, 1, n_in]),
            [n_out, n_in] => Ok([1, n_out, n_in]),
            [n_mats, n_out, n_in] => Ok([n_mats, n_out, n_in]),
            _ => ensure(false, OP, "shape", "one to three dimensions", shape).map(|()| [0; 3]),
        }
    }

    fn dtype(view: &TensorView<'_>) -> Result<DType> {
        match view.dtype() {
            Dtype::F32 => Ok(DType::F32),
            Dtype::F16 => Ok(DType::F16),
            Dtype::BF16 => Ok(DType::BF16),
            Dtype::U8 => Ok(DType::U8),
            other => ensure(false, OP, "dtype", "f32, f16, bf16 or u8", other).map(|()| DType::U8),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::QuantMode;

        fn floats(n: usize) -> Vec<u8> {
            (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
        }

        #[test]
        fn dense_tensors() {
            let data = floats(12);
            let view = |shape: &[usize]| TensorView::new(Dtype::F32, shape.to_vec(), &data).unwrap();
            for (shape, want) in [(&[12][..], [1, 1, 12]), (&[3, 4], [1, 3, 4]), (&[3, 2, 2], [3, 2, 2])] {
                let weight = HostWeight::from_view(&view(shape)).unwrap();
                assert_eq!([weight.n_mats(), weight.n_out(), weight.n_in()], want);
                assert_eq!(weight.to_f32_vec()[11], 11.0);
            }
            assert!(HostWeight::from_view(&view(&[1, 3, 2, 2])).is_err());
            let ids = TensorView::new(Dtype::I32, vec![12], &data).unwrap();
            assert!(HostWeight::from_view(&ids).unwrap_err().to_string().contains("f32, f16, bf16"));
        }

        #[test]
        fn quantised_tensors() {
            let values: Vec<f32> = (0..128).map(|i| (i % 16) as f32).collect();
            for spec in [(QuantMode::Affine, 4, 64), (QuantMode::Mxfp4, 4, 32)] {
                let spec = QuantSpec::new(spec.0, spec.1, spec.2).unwrap();
                let want = HostWeight::quantize(spec, &values, [1, 2, 64]).unwrap();
                let parts = want.mat(0);
                let n_groups = 64 / spec.group_size();
                let dtype = if spec.has_biases() { Dtype::BF16 } else { Dtype::U8 };
                let words = TensorView::new(Dtype::U32, vec![2, 8], &parts.data).unwrap();
                let scales = TensorView::new(dtype, vec![2, n_groups], &parts.scales).unwrap();
                let biases = TensorView::new(dtype, vec![2, n_groups], &parts.biases).ok();
                let biases = biases.as_ref().filter(|_| spec.has_biases());
                let views = QuantizedViews { words: &words, scales: &scales, biases };
                let got = HostWeight::from_quantized_views(spec, views).unwrap();
                assert_eq!(got.to_f32_vec(), want.to_f32_vec());
                assert!(
                    HostWeight::from_quantized_views(spec, QuantizedViews { words: &scales, ..views })
                        .is_err()
                );
            }
        }
    }
}

#[cfg(feature = "safetensors")]
pub use views::QuantizedViews;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QuantMode;

    #[test]
    fn slices_of_every_float() {
        let values = [1.0f32, -2.5, 0.0, 8.0];
        let weights = [
            HostWeight::from_f32(&values, 2, 2),
            HostWeight::from_f16(&values.map(f16::from_f32), 2, 2),
            HostWeight::from_bf16(&values.map(bf16::from_f32), 2, 2),
        ];
        for weight in weights {
            assert_eq!(weight.unwrap().to_f32_vec(), values);
        }
        assert!(HostWeight::from_f16(&[f16::ONE], 1, 2).is_err());
    }

    #[test]
    fn quantised_floats_come_back() {
        let values: Vec<f32> = (0..96).map(|i| (i % 8) as f32).collect();
        let spec = QuantSpec::new(QuantMode::Affine, 4, 32).unwrap();
        let weight = HostWeight::quantize(spec, &values, [3, 1, 32]).unwrap();
        assert_eq!((weight.n_mats(), weight.n_out(), weight.n_in()), (3, 1, 32));
        assert!(weight.to_f32_vec().iter().zip(&values).all(|(got, want)| (got - want).abs() <= 0.25));
        assert!(HostWeight::quantize(spec, &values, [1, 3, 33]).is_err());
        assert!(HostWeight::quantize(spec, &values, [4, 1, 32]).is_err());
    }
}

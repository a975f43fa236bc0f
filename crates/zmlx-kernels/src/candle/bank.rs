//! Weights in MLX's quantised formats, on a device of candle.

use candle_core::{DType, Device, Error, Result, Tensor, safetensors::MmapedSafetensors};
#[cfg(target_os = "macos")]
use candle_core::{MetalDevice, Storage};
use safetensors::View;

use super::{dtype, refused};
use crate::cpu::CpuWeight;
#[cfg(target_os = "macos")]
use crate::metal::BankOperands;
use crate::{Backend, HostWeight, QuantSpec, QuantizedViews, WeightBytes, WeightFormat};

const WHAT: &str = "quantised bank";

/// Quantised matrices `n_mats × [n_out, n_in]` of one format: one matrix, or one for each expert. Cloning shares the memory.
///
/// | array | shape | type |
/// |---|---|---|
/// | weight | `[n_mats, n_out, n_in · bits / 32]` | u32 |
/// | scales | `[n_mats, n_out, n_in / group_size]` | f32, f16 or bf16; u8 in the floating-point modes |
/// | biases | as scales; only affine formats have them | as scales |
///
/// A single matrix may also be without the first dimension.
#[derive(Clone, Debug)]
pub struct QuantizedBank {
    spec: QuantSpec,
    /// Matrices, rows, columns.
    sizes: [usize; 3],
    stored: Stored,
}

#[derive(Clone, Debug)]
enum Stored {
    Cpu(CpuWeight),
    /// Weight, scales and biases (scales again without biases), each of three dimensions and contiguous.
    #[cfg_attr(not(target_os = "macos"), expect(dead_code, reason = "only Metal reads them"))]
    Metal([Tensor; 3]),
}

impl QuantizedBank {
    /// The weight of three tensors of an MLX checkpoint, on their device. On the CPU they are copied into the bank.
    ///
    /// # Errors
    /// If shapes or types do not fit each other or the format, or the device is neither the CPU nor Metal.
    pub fn from_tensors(
        weight: &Tensor,
        scales: &Tensor,
        biases: Option<&Tensor>,
        spec: QuantSpec,
    ) -> Result<Self> {
        let device = weight.device();
        if weight.dtype() != DType::U32 {
            return Err(refused(WHAT, "weight", "u32", weight.dtype()));
        }
        let shape = match *scales.dims() {
            [n_out, n_groups] => [1, n_out, n_groups],
            [n_mats, n_out, n_groups] => [n_mats, n_out, n_groups],
            _ => return Err(refused(WHAT, "scales", "[n_mats, n_out, groups]", scales.dims())),
        };
        let [n_mats, n_out, n_groups] = shape;
        if n_mats == 0 || n_out == 0 || n_groups == 0 {
            return Err(refused(WHAT, "scales", "no zero dimension", scales.dims()));
        }
        let n_in = n_groups.saturating_mul(spec.group_size());
        let words = [&scales.dims()[..scales.rank() - 1], &[spec.packed_bytes(n_in) / 4]].concat();
        if weight.dims() != words {
            return Err(refused(WHAT, "weight", &format!("{words:?}"), weight.dims()));
        }
        if biases.is_some() != spec.has_biases() {
            let word = |has| if has { "biases" } else { "no biases" };
            let want = format!("{}, as the format is {spec}", word(spec.has_biases()));
            return Err(refused(WHAT, "biases", &want, word(biases.is_some())));
        }
        for (what, tensor) in [("scales", Some(scales)), ("biases", biases)] {
            let Some(tensor) = tensor else { continue };
            if (tensor.dims(), tensor.dtype()) != (scales.dims(), scales.dtype()) {
                let want = format!("{:?} of {:?}, as scales", scales.dims(), scales.dtype());
                return Err(refused(WHAT, what, &want, (tensor.dims(), tensor.dtype())));
            }
            if !tensor.device().same_device(device) {
                return Err(refused(WHAT, what, "the device of weight", tensor.device().location()));
            }
        }
        let format = WeightFormat::Quantized { spec, scale_dtype: dtype(WHAT, "scales", scales.dtype())? };
        if device.is_cpu() {
            let bytes =
                |tensor: &Tensor| -> Result<Vec<u8>> { Ok(View::data(&tensor.contiguous()?).into_owned()) };
            let bytes = WeightBytes {
                data: bytes(weight)?.into(),
                scales: bytes(scales)?.into(),
                biases: biases.map(bytes).transpose()?.unwrap_or_default().into(),
            };
            let host = HostWeight::new(format, [n_mats, n_out, n_in], bytes).map_err(Error::wrap)?;
            return Self::from_host(host, device);
        }
        let whole = |tensor: &Tensor, last: usize| tensor.reshape((n_mats, n_out, last))?.contiguous();
        let arrays = [
            whole(weight, spec.packed_bytes(n_in) / 4)?,
            whole(scales, n_groups)?,
            whole(biases.unwrap_or(scales), n_groups)?,
        ];
        Self::on_device(spec, [n_mats, n_out, n_in], arrays)
    }

    /// The tensors `PREFIX.weight`, `PREFIX.scales` and, if the format has them, `PREFIX.biases` of a checkpoint's files.
    ///
    /// # Errors
    /// If one is missing, or as [`Self::from_tensors`].
    pub fn load(files: &MmapedSafetensors, prefix: &str, spec: QuantSpec, device: &Device) -> Result<Self> {
        let view = |part: &str| files.get(&format!("{prefix}.{part}"));
        let (words, scales) = (view("weight")?, view("scales")?);
        let biases = spec.has_biases().then(|| view("biases")).transpose()?;
        let views = QuantizedViews { words: &words, scales: &scales, biases: biases.as_ref() };
        let host = HostWeight::from_quantized_views(spec, views);
        host.map_err(Error::wrap)
            .and_then(|host| Self::from_host(host, device))
            .map_err(|e| e.context(prefix.to_owned()))
    }

    /// A weight of host memory. The CPU uses its bytes in place; they may be those of a mapped file.
    ///
    /// # Errors
    /// If the weight is not quantised, the device is neither the CPU nor Metal, or it is Metal and the weight has factors.
    pub fn from_host(weight: HostWeight, device: &Device) -> Result<Self> {
        let WeightFormat::Quantized { spec, scale_dtype } = weight.format() else {
            return Err(refused(WHAT, "weight", "a quantised format", weight.format()));
        };
        let sizes = [weight.n_mats(), weight.n_out(), weight.n_in()];
        if device.is_cpu() {
            let weight = super::cpu::backend()?.upload(weight).map_err(Error::wrap)?;
            return Ok(Self { spec, sizes, stored: Stored::Cpu(weight) });
        }
        if weight.has_factors() {
            return Err(refused(WHAT, "weight", "no factors, as Metal's kernels have none", "factors"));
        }
        let [n_mats, n_out, n_in] = sizes;
        let array = |part: fn(&WeightBytes) -> &[u8], dtype, last: usize| {
            let bytes: Vec<u8> = (0..n_mats).flat_map(|i| part(weight.mat(i)).iter().copied()).collect();
            Tensor::from_raw_buffer(&bytes, dtype, &[n_mats, n_out, last], device)
        };
        let of_scales = match scale_dtype {
            crate::DType::F32 => DType::F32,
            crate::DType::F16 => DType::F16,
            crate::DType::BF16 => DType::BF16,
            crate::DType::U8 => DType::U8,
            crate::DType::U32 => DType::U32,
        };
        let scales = array(|m| &m.scales, of_scales, n_in / spec.group_size())?;
        let biases = match spec.has_biases() {
            true => array(|m| &m.biases, of_scales, n_in / spec.group_size())?,
            false => scales.clone(),
        };
        let words = array(|m| &m.data, DType::U32, spec.packed_bytes(n_in) / 4)?;
        Self::on_device(spec, sizes, [words, scales, biases])
    }

    fn on_device(spec: QuantSpec, sizes: [usize; 3], arrays: [Tensor; 3]) -> Result<Self> {
        if !arrays[0].device().is_metal() {
            return Err(refused(WHAT, "device", "the CPU or Metal", arrays[0].device().location()));
        }
        Ok(Self { spec, sizes, stored: Stored::Metal(arrays) })
    }

    /// The format.
    pub fn spec(&self) -> QuantSpec {
        self.spec
    }

    /// The number of matrices: 1, or the number of experts.
    pub fn n_mats(&self) -> usize {
        self.sizes[0]
    }

    /// Rows of each matrix: the width of its result.
    pub fn n_out(&self) -> usize {
        self.sizes[1]
    }

    /// Columns of each matrix: the width of its input.
    pub fn n_in(&self) -> usize {
        self.sizes[2]
    }

    /// `[n_mats, n_out, n_in]`.
    pub(super) fn sizes(&self) -> [usize; 3] {
        self.sizes
    }

    pub(super) fn on_cpu(&self, op: &'static str) -> Result<&CpuWeight> {
        match &self.stored {
            Stored::Cpu(weight) => Ok(weight),
            Stored::Metal(_) => {
                Err(refused(op, "x", "a tensor on Metal, as the weight", "a tensor on the CPU"))
            }
        }
    }
}

#[cfg(target_os = "macos")]
pub(super) struct OnMetal<'a> {
    op: &'static str,
    arrays: [(candle_core::StorageRef<'a>, &'a candle_core::Layout); 3],
}

#[cfg(target_os = "macos")]
impl QuantizedBank {
    /// The arrays, read-locked, if they are on that device.
    pub(super) fn on_metal(&self, op: &'static str, device: &MetalDevice) -> Result<OnMetal<'_>> {
        match &self.stored {
            Stored::Metal(arrays) if arrays[0].device().same_device(&Device::Metal(device.clone())) => {
                Ok(OnMetal { op, arrays: [0, 1, 2].map(|i| arrays[i].storage_and_layout()) })
            }
            Stored::Metal(_) => Err(refused(op, "x", "the Metal device of the weight", "another one")),
            Stored::Cpu(_) => {
                Err(refused(op, "x", "a tensor on the CPU, as the weight", "a tensor on Metal"))
            }
        }
    }
}

#[cfg(target_os = "macos")]
impl OnMetal<'_> {
    pub(super) fn operands(&self) -> Result<BankOperands<'_, candle_metal_kernels::metal::Buffer>> {
        let operand = |(i, what): (usize, _)| {
            let (storage, layout) = &self.arrays[i];
            match &**storage {
                Storage::Metal(storage) => super::device::operand(self.op, what, storage, layout),
                _ => Err(refused(self.op, what, "a tensor on Metal", "another one")),
            }
        };
        Ok([operand((0, "weight"))?, operand((1, "scales"))?, operand((2, "biases"))?])
    }
}

//! Between candle's CPU tensors and those of the CPU backend, which computes in f32.

use std::sync::LazyLock;

use candle_core::{CpuStorage, DType, Error, Layout, Result, backend::BackendStorage};
use half::{bf16, f16};

use super::refused;
use crate::Backend;
use crate::cpu::{CpuBackend, CpuIndices, CpuTensor};

/// One team of threads for all ops of the process.
static BACKEND: LazyLock<crate::Result<CpuBackend>> = LazyLock::new(|| CpuBackend::new(None));

pub(super) fn backend() -> Result<&'static CpuBackend> {
    BACKEND.as_ref().map_err(|e| Error::wrap(e.clone()))
}

/// An argument of an op: contiguous elements.
pub(super) struct Argument<'a> {
    op: &'static str,
    what: &'static str,
    storage: &'a CpuStorage,
    layout: &'a Layout,
    elements: std::ops::Range<usize>,
}

impl<'a> Argument<'a> {
    pub(super) fn new(
        op: &'static str,
        what: &'static str,
        storage: &'a CpuStorage,
        layout: &'a Layout,
    ) -> Result<Self> {
        match layout.contiguous_offsets() {
            Some((start, end)) => Ok(Self { op, what, storage, layout, elements: start..end }),
            None => Err(refused(op, what, "a contiguous tensor", layout.stride())),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    /// The values as f32, in this shape of as many elements.
    pub(super) fn tensor(&self, b: &CpuBackend, shape: &[usize]) -> Result<CpuTensor> {
        let at = self.elements.clone();
        let y = match self.storage {
            CpuStorage::F32(v) => b.tensor(&v[at], shape),
            CpuStorage::F16(v) => b.tensor(&v[at].iter().map(|v| v.to_f32()).collect::<Vec<_>>(), shape),
            CpuStorage::BF16(v) => b.tensor(&v[at].iter().map(|v| v.to_f32()).collect::<Vec<_>>(), shape),
            other => return Err(refused(self.op, self.what, "f32, f16 or bf16", other.dtype())),
        };
        y.map_err(Error::wrap)
    }

    /// The values as indices.
    pub(super) fn indices(&self, b: &CpuBackend) -> Result<CpuIndices> {
        match self.storage {
            CpuStorage::U32(v) => {
                b.indices(&v[self.elements.clone()], self.layout.dims()).map_err(Error::wrap)
            }
            other => Err(refused(self.op, self.what, "u32", other.dtype())),
        }
    }
}

/// The values rounded to the type, which is that of an argument.
pub(super) fn result(b: &CpuBackend, y: &CpuTensor, dtype: DType) -> Result<CpuStorage> {
    let mut values = Vec::new();
    b.read(y, &mut values).map_err(Error::wrap)?;
    Ok(match dtype {
        DType::F16 => CpuStorage::F16(values.into_iter().map(f16::from_f32).collect()),
        DType::BF16 => CpuStorage::BF16(values.into_iter().map(bf16::from_f32).collect()),
        _ => CpuStorage::F32(values),
    })
}

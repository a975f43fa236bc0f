//! A safetensors file: its validated header, and the positions of its tensors.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use zmlx_kernels::DType;

use crate::{Error, Result};

/// The position of a tensor in its file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Bytes,
    pub(super) shard_idx: usize,
}

impl Entry {
    /// The element type, if it is a type that weights, scales or packed words can have.
    pub(super) fn kernel_dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::U8 => Some(DType::U8),
            Dtype::U32 => Some(DType::U32),
            _ => None,
        }
    }
}

/// Adds the tensors of the file `name` to `tensors`. `read_before` contains the names of the earlier shards.
///
/// The header's own consistency (JSON, offsets that cover the file without gap or overlap, sizes that follow from
/// shape and type) is checked by the safetensors crate.
pub(super) fn read(
    name: &str,
    shard_idx: usize,
    file: &Bytes,
    read_before: &[String],
    tensors: &mut BTreeMap<String, Entry>,
) -> Result<()> {
    const LENGTH_BYTES: usize = 8;
    let unsound = |source| Error::Shard { file: name.into(), source };
    let (header_bytes, metadata) = SafeTensors::read_metadata(file).map_err(unsound)?;
    let data = file.slice(LENGTH_BYTES + header_bytes..);
    for (tensor, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        if start > end || end > data.len() {
            return Err(unsound(SafeTensorError::InvalidOffset(tensor)));
        }
        let (dtype, shape) = (info.dtype, info.shape.clone());
        match tensors.entry(tensor) {
            Slot::Vacant(slot) => {
                slot.insert(Entry { dtype, shape, bytes: data.slice(start..end), shard_idx });
            }
            Slot::Occupied(slot) => {
                let first = read_before.get(slot.get().shard_idx).map_or(name, String::as_str).to_owned();
                return Err(Error::DuplicateTensor { name: slot.key().clone(), first, second: name.into() });
            }
        }
    }
    Ok(())
}

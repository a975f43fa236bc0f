//! A safetensors file that is read as a whole, with typed access.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// A shape, and its elements in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Array<T> {
    /// The shape.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<T>,
}

impl<T> Array<T> {
    /// The elements with index `row` in the first dimension.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[T] {
        let len: usize = self.shape.iter().skip(1).product();
        &self.data[row * len..(row + 1) * len]
    }
}

#[derive(Debug, Clone)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// The tensors of a safetensors file, such as `<model>-taps.safetensors` or one of `ops/`.
#[derive(Debug, Clone)]
pub struct TensorFile {
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Errors
    /// An unreadable or broken file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::from_bytes(&path.display().to_string(), &bytes)
    }

    /// Reads the bytes of a file, which errors call `what`.
    ///
    /// # Errors
    /// A broken file.
    pub fn from_bytes(what: &str, bytes: &[u8]) -> Result<Self> {
        let fail = |source| Error::SafeTensors { what: what.to_owned(), source };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(fail)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(bytes).map_err(fail)?;
        let entries = file.iter().map(|(name, view)| {
            let entry =
                Entry { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            (name.to_owned(), entry)
        });
        Ok(Self { metadata, entries: entries.collect() })
    }

    /// A value of the header's metadata, such as `weights_sha256`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| Error::Missing { name: name.to_owned() })
    }

    /// The dtype of a tensor as the file names it, such as `BF16`.
    ///
    /// # Errors
    /// No such tensor.
    pub fn dtype(&self, name: &str) -> Result<String> {
        Ok(self.entry(name)?.dtype.to_string())
    }

    /// The stored bytes of a tensor, little-endian, and its shape.
    ///
    /// # Errors
    /// No such tensor.
    pub fn bytes(&self, name: &str) -> Result<Array<u8>> {
        let entry = self.entry(name)?;
        Ok(Array { shape: entry.shape.clone(), data: entry.bytes.clone() })
    }

    /// A tensor of floats (F32, F16, BF16), widened to `f32`.
    ///
    /// # Errors
    /// No such tensor, or another dtype.
    pub fn floats(&self, name: &str) -> Result<Array<f32>> {
        let entry = self.entry(name)?;
        let data = match entry.dtype {
            Dtype::F32 => entry.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => {
                entry.bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
            }
            Dtype::BF16 => {
                entry.bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            other => return Err(wrong_dtype(name, other, "F32, F16 or BF16")),
        };
        Ok(Array { shape: entry.shape.clone(), data })
    }

    /// A tensor of non-negative integers (U8, I32, U32), widened to `u32`.
    ///
    /// # Errors
    /// No such tensor, another dtype, or a negative number.
    pub fn ints(&self, name: &str) -> Result<Array<u32>> {
        let entry = self.entry(name)?;
        let words = || entry.bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect::<Vec<_>>();
        let data = match entry.dtype {
            Dtype::U8 => entry.bytes.iter().map(|&b| u32::from(b)).collect(),
            Dtype::U32 => words(),
            Dtype::I32 => {
                let words = words();
                if words.iter().any(|&w| w > i32::MAX as u32) {
                    return Err(wrong_dtype(name, entry.dtype, "no negative numbers"));
                }
                words
            }
            other => return Err(wrong_dtype(name, other, "U8, I32 or U32")),
        };
        Ok(Array { shape: entry.shape.clone(), data })
    }
}

fn wrong_dtype(name: &str, got: Dtype, want: &'static str) -> Error {
    Error::Dtype { name: name.to_owned(), got: got.to_string(), want }
}

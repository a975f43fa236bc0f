//! Random weights as the bytes of a file, at unfavourable addresses, with their values in `f64`.

use std::io::Write;

use bytes::Bytes;
use zmlx_core::{DType, HostWeight, QuantMode, WeightBytes, WeightFormat};
use zmlx_oracle::quant::{Format, Mode, StorageDtype};
use zmlx_oracle::testing::{random_in, random_quantized};

/// Where the bytes of a weight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an odd address, at the end of the allocation.
    Odd,
    /// At the end of a page that is followed by nothing readable, so reading further is a fault.
    PageEnd,
}

/// A multiple of every platform's page size.
const PAGES: usize = 64 * 1024;

/// A weight as bytes that can still be changed.
#[derive(Clone)]
pub struct Raw {
    /// How the elements are stored.
    pub format: WeightFormat,
    /// `n_mats, n_out, n_in`.
    pub shape: [usize; 3],
    /// Dense elements, or packed words.
    pub data: Vec<u8>,
    /// The scales of the groups.
    pub scales: Vec<u8>,
    /// The biases of the groups, in formats that have them.
    pub biases: Vec<u8>,
    /// The exact values of the bytes.
    pub values: Vec<f64>,
}

/// A weight and its values.
pub struct TestWeight {
    /// The weight in the form that a backend takes.
    pub host: HostWeight,
    /// Number of matrices.
    pub n_mats: usize,
    /// Rows of each matrix.
    pub n_out: usize,
    /// Columns of each matrix.
    pub n_in: usize,
    /// The exact values, `[n_mats, n_out, n_in]`.
    pub values: Vec<f64>,
}

fn storage(dtype: DType) -> StorageDtype {
    match dtype {
        DType::F16 => StorageDtype::F16,
        DType::BF16 => StorageDtype::BF16,
        _ => StorageDtype::F32,
    }
}

impl Raw {
    /// Values of about ±0.1; in quantised formats every code occurs.
    pub fn random(format: WeightFormat, shape: [usize; 3], seed: u64) -> Self {
        match format {
            WeightFormat::Dense(dtype) => {
                let values = random_in(storage(dtype), shape.iter().product(), 0.1, seed);
                let data = values.iter().flat_map(|v| storage(dtype).bytes(*v)).collect();
                let values = values.into_iter().map(f64::from).collect();
                Self { format, shape, data, scales: Vec::new(), biases: Vec::new(), values }
            }
            WeightFormat::Quantized { spec, scale_dtype } => {
                let mode = match spec.mode() {
                    QuantMode::Affine => Mode::Affine,
                    QuantMode::Mxfp4 => Mode::Mxfp4,
                    QuantMode::Mxfp8 => Mode::Mxfp8,
                    QuantMode::Nvfp4 => Mode::Nvfp4,
                };
                let their = Format { mode, bits: spec.bits(), group_size: spec.group_size() };
                let w = random_quantized(their, storage(scale_dtype), &shape, seed);
                let (data, scales, biases) = (w.weight, w.scales, w.biases.unwrap_or_default());
                Self { format, shape, data, scales, biases, values: w.values_f64 }
            }
        }
    }

    /// Turns every value of one matrix into NaN. All bits set means NaN in f32, f16, bf16, e8m0 and e4m3.
    pub fn spoil(&mut self, mat: usize) {
        let n_mats = self.shape[0];
        let part = if self.scales.is_empty() { &mut self.data } else { &mut self.scales };
        let n = part.len() / n_mats;
        part[mat * n..(mat + 1) * n].fill(0xff);
        let n = self.values.len() / n_mats;
        self.values[mat * n..(mat + 1) * n].fill(f64::NAN);
    }

    /// The weight with its bytes at such a place.
    pub fn at(self, place: Place) -> TestWeight {
        let put = |bytes: &[u8]| match place {
            _ if bytes.is_empty() => Bytes::new(),
            Place::Odd => at_odd_address(bytes),
            Place::PageEnd => at_page_end(bytes),
        };
        let bytes =
            WeightBytes { data: put(&self.data), scales: put(&self.scales), biases: put(&self.biases) };
        let [n_mats, n_out, n_in] = self.shape;
        let host = HostWeight::new(self.format, self.shape, bytes).unwrap();
        TestWeight { host, n_mats, n_out, n_in, values: self.values }
    }
}

impl TestWeight {
    /// A random weight at an odd address.
    pub fn random(format: WeightFormat, shape: [usize; 3], seed: u64) -> Self {
        Raw::random(format, shape, seed).at(Place::Odd)
    }

    /// The values of one matrix.
    pub fn mat(&self, i: usize) -> &[f64] {
        let n = self.n_out * self.n_in;
        &self.values[i * n..(i + 1) * n]
    }
}

/// Puts the bytes at an odd address, at the end of an allocation.
pub fn at_odd_address(bytes: &[u8]) -> Bytes {
    // The allocator chooses an even or an odd address. For an even one, allocate one byte more.
    for skip in [1, 2] {
        let mut larger = Vec::with_capacity(skip + bytes.len());
        larger.resize(skip, 0xa5);
        larger.extend_from_slice(bytes);
        let part = Bytes::from(larger).slice(skip..);
        if !part.as_ptr().addr().is_multiple_of(2) {
            return part;
        }
    }
    panic!("the allocator gave an odd address first and an even one then");
}

/// Puts the bytes at the end of a mapped file. One more page is mapped than the file has, so reading it is a fault.
pub fn at_page_end(bytes: &[u8]) -> Bytes {
    let n_bytes = bytes.len().next_multiple_of(PAGES);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xa5; n_bytes - bytes.len()]).unwrap();
    file.write_all(bytes).unwrap();
    // SAFETY: the file has no name, so nothing else changes it. Only the existing part is handed out.
    let map = unsafe { memmap2::MmapOptions::new().len(n_bytes + PAGES).map(&file).unwrap() };
    Bytes::from_owner(map).slice(n_bytes - bytes.len()..n_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_what_they_say() {
        for n in [1, 2, 63, 4096, 70_000] {
            let bytes: Vec<u8> = (0..n).map(|i| i as u8).collect();
            let odd = at_odd_address(&bytes);
            assert!(!odd.as_ptr().addr().is_multiple_of(2) && odd == bytes);
            let end = at_page_end(&bytes);
            assert!((end.as_ptr().addr() + n).is_multiple_of(4096) && end == bytes);
        }
    }
}

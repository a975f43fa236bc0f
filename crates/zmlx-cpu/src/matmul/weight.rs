//! Weights of the CPU backend.

use std::sync::atomic::{AtomicBool, Ordering};

use super::kernels::{Kernels, kernels};
use super::layout::Row;
use crate::level::{Activations, Level};
use zmlx_core::check::ensure;
use zmlx_core::{Error, HostWeight, Result, will_need};

/// A weight of the CPU backend: the host's bytes in place, with the kernels for their format.
#[derive(Clone)]
pub struct CpuWeight(std::sync::Arc<Inner>);

struct Inner {
    n_mats: usize,
    n_out: usize,
    n_in: usize,
    parts: Vec<WeightPart>,
    /// Which matrices have been used. The system is asked to read a whole matrix when it is first used.
    is_used: Vec<AtomicBool>,
    /// The values of matrices of one row: norm weights, biases, banks of biases.
    vector: Option<Vec<f32>>,
}

/// Rows `first_row..` of every matrix.
#[derive(Clone)]
pub(super) struct WeightPart {
    pub(super) host: HostWeight,
    pub(super) first_row: usize,
    pub(super) kernels: Kernels,
    /// The level and the rounding for which the kernels were chosen.
    made_for: (Level, Activations),
    /// Bytes of a row's data, scales and biases.
    pub(super) row_bytes: [usize; 3],
}

impl WeightPart {
    /// The buffers of a row.
    pub(super) fn row(&self, mat: usize, row: usize) -> Row {
        let bytes = self.host.mat(mat);
        let [data, scales, biases] = self.row_bytes;
        Row {
            data: bytes.data[row * data..].as_ptr(),
            scales: bytes.scales[row * scales..].as_ptr(),
            biases: bytes.biases[row * biases..].as_ptr(),
        }
    }

    /// Number of rows of each matrix, from the first on, that kernels can read in place: the bytes that kernels read
    /// after them exist too.
    pub(super) fn n_in_place(&self) -> usize {
        let layout = &self.kernels.layout;
        if layout.needs_zeros {
            return 0;
        }
        let n_behind = layout
            .overread
            .iter()
            .zip(self.row_bytes)
            .filter(|(overread, _)| **overread > 0)
            .map(|(overread, row_bytes)| overread.div_ceil(row_bytes));
        self.host.n_out().saturating_sub(n_behind.max().unwrap_or(0))
    }
}

impl CpuWeight {
    pub(crate) fn new(level: Level, activations: Activations, host: HostWeight) -> Self {
        let kernels = kernels(level, activations, host.format(), host.n_in());
        let row_bytes = {
            let first = host.mat(0);
            [&first.data, &first.scales, &first.biases].map(|b| b.len() / host.n_out())
        };
        let is_vector = host.n_out() == 1;
        Self(std::sync::Arc::new(Inner {
            n_mats: host.n_mats(),
            n_out: host.n_out(),
            n_in: host.n_in(),
            vector: is_vector.then(|| host.to_f32_vec()),
            is_used: unused(host.n_mats()),
            parts: vec![WeightPart {
                host,
                first_row: 0,
                kernels,
                made_for: (level, activations),
                row_bytes,
            }],
        }))
    }

    pub(crate) fn concat_rows(weights: &[&Self]) -> Result<Self> {
        const OP: &str = "concat_rows";
        ensure(!weights.is_empty(), OP, "parts", "at least one", 0)?;
        let (n_mats, n_in) = (weights[0].n_mats(), weights[0].n_in());
        let (mut parts, mut n_out) = (Vec::new(), 0);
        for w in weights {
            let got = (w.n_mats(), w.n_in());
            ensure(got == (n_mats, n_in), OP, "parts", format_args!("{n_mats} matrices {n_in} wide"), got)?;
            // Activations are prepared once for all parts, so their kernels must agree.
            let made_for = |w: &Self| w.0.parts[0].made_for;
            let want = format_args!("weights of one level, as the first: {:?}", made_for(weights[0]));
            ensure(made_for(w) == made_for(weights[0]), OP, "parts", want, made_for(w))?;
            parts
                .extend(w.0.parts.iter().map(|p| WeightPart { first_row: p.first_row + n_out, ..p.clone() }));
            let sum = n_out.checked_add(w.n_out()).filter(|n: &usize| n.checked_mul(n_in).is_some());
            ensure(sum.is_some(), OP, "parts", "an addressable size", [n_out, w.n_out(), n_in])?;
            n_out = sum.unwrap_or(n_out);
        }
        Ok(Self(std::sync::Arc::new(Inner {
            n_mats,
            n_out,
            n_in,
            parts,
            is_used: unused(n_mats),
            vector: None,
        })))
    }

    /// Asks the system to read a matrix that is about to be used for the first time.
    pub(super) fn announce(&self, mat: usize) {
        if !self.0.is_used[mat].swap(true, Ordering::Relaxed) {
            for part in &self.0.parts {
                let bytes = part.host.mat(mat);
                [&bytes.data, &bytes.scales, &bytes.biases].into_iter().for_each(|b| will_need(b));
            }
        }
    }

    /// The parts that its rows consist of.
    pub(super) fn parts(&self) -> &[WeightPart] {
        &self.0.parts
    }

    /// Number of matrices.
    pub fn n_mats(&self) -> usize {
        self.0.n_mats
    }

    /// Rows of each matrix.
    pub fn n_out(&self) -> usize {
        self.0.n_out
    }

    /// Columns of each matrix.
    pub fn n_in(&self) -> usize {
        self.0.n_in
    }

    pub(crate) fn vector(&self, op: &'static str, len: usize) -> Result<&[f32]> {
        self.vectors(op, 1, len)
    }

    /// The values of `n_mats` vectors of length `len`, one after the other.
    pub(crate) fn vectors(&self, op: &'static str, n_mats: usize, len: usize) -> Result<&[f32]> {
        let shape = [self.n_mats(), self.n_out(), self.n_in()];
        ensure(shape == [n_mats, 1, len], op, "weight", format_args!("[{n_mats}, 1, {len}]"), shape)?;
        self.0.vector.as_deref().ok_or_else(|| Error::Unsupported {
            op,
            backend: crate::NAME,
            why: "the vector is a concatenation".into(),
        })
    }

    /// Writes row `row` of the first matrix, dequantised.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let part = self.0.parts.iter().rfind(|p| p.first_row <= row).expect("the first part begins at row 0");
        let (bytes, row) = (part.host.mat(0), row - part.first_row);
        let cut = |b: &bytes::Bytes| {
            let n = b.len() / part.host.n_out();
            b.slice(row * n..(row + 1) * n)
        };
        match part.host.format() {
            zmlx_core::WeightFormat::Dense(dtype) => {
                let size = dtype.size_bytes();
                for (o, b) in out.iter_mut().zip(cut(&bytes.data).chunks_exact(size)) {
                    *o = dtype.read_f32(b);
                }
            }
            zmlx_core::WeightFormat::Quantized { spec, scale_dtype } => {
                let (data, scales, biases) = (cut(&bytes.data), cut(&bytes.scales), cut(&bytes.biases));
                let mut out = out.iter_mut();
                zmlx_core::quant::dequantize_each(spec, scale_dtype, [&data, &scales, &biases], |weight| {
                    *out.next().expect("a row has n_in weights") = weight;
                });
            }
        }
        if part.host.has_factors() {
            out.iter_mut().for_each(|w| *w *= part.host.factor(0));
        }
    }
}

fn unused(n_mats: usize) -> Vec<AtomicBool> {
    (0..n_mats).map(|_| AtomicBool::new(false)).collect()
}

impl std::fmt::Debug for CpuWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CpuWeight({} × [{}, {}])", self.n_mats(), self.n_out(), self.n_in())
    }
}

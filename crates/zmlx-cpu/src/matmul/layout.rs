//! What the kernels know about the rows of a weight: where their data, scales and biases are, and how far kernels read.

use super::decoders::{Decoder, MAX_OVERREAD};
use super::elements::Element;
use crate::simd::Simd;
use zmlx_core::{DType, QuantMode, WeightFormat};

/// The largest number of lanes in a vector.
const MAX_LANES: usize = 16;
/// How many bytes ahead of their use weights are prefetched in each run, into the second-level cache.
pub(super) const PREFETCH_BYTES: usize = 2048;

/// The buffers of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) data: *const u8,
    pub(super) scales: *const u8,
    pub(super) biases: *const u8,
}

impl Row {
    pub(super) const NULL: Self =
        Self { data: std::ptr::null(), scales: std::ptr::null(), biases: std::ptr::null() };

    /// The row that is `n` rows after this one.
    ///
    /// # Safety
    /// It is in the same matrix, whose rows take `row_bytes` of data, scales and biases.
    pub(super) unsafe fn add(self, n: usize, row_bytes: [usize; 3]) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                data: self.data.add(n * row_bytes[0]),
                scales: self.scales.add(n * row_bytes[1]),
                biases: self.biases.add(n * row_bytes[2]),
            }
        }
    }
}

/// Copies of rows for kernels that would otherwise read past the end of the buffers.
#[derive(Default)]
pub(super) struct PaddedRows(Vec<u8>);

impl PaddedRows {
    /// Makes room for `n` rows.
    pub(super) fn reserve(&mut self, layout: &RowLayout, row_bytes: [usize; 3], n: usize) {
        let len = n * (row_bytes.iter().sum::<usize>() + layout.overread.iter().sum::<usize>());
        self.0.reserve(len.saturating_sub(self.0.len()));
    }

    /// Copies rows that take `row_bytes` of data, scales and biases. Each copy is followed by zeros for what the
    /// kernels read past its end.
    ///
    /// # Safety
    /// The rows are readable.
    pub(super) unsafe fn copy<const N: usize>(
        &mut self,
        layout: &RowLayout,
        row_bytes: [usize; 3],
        rows: [Row; N],
    ) -> [Row; N] {
        let lens = [0, 1, 2].map(|i| row_bytes[i] + layout.overread[i]);
        self.0.clear();
        self.0.resize(N * lens.iter().sum::<usize>(), 0);
        let mut rest = &mut self.0[..];
        rows.map(|row| {
            let from = [row.data, row.scales, row.biases];
            let [data, scales, biases] = [0, 1, 2].map(|i| {
                let (copy, behind) = std::mem::take(&mut rest).split_at_mut(lens[i]);
                rest = behind;
                // SAFETY: the row has these bytes (the caller's promise), and the copy has room for them.
                unsafe { std::ptr::copy_nonoverlapping(from[i], copy.as_mut_ptr(), row_bytes[i]) };
                copy.as_ptr()
            });
            Row { data, scales, biases }
        })
    }
}

/// How scales (and biases) are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleKind {
    None,
    /// Scales and biases of affine codes, as floats.
    Float(DType),
    /// Scales without biases, as powers of two.
    E8m0,
    /// Scales without biases, as e4m3 codes.
    E4m3,
}

impl ScaleKind {
    fn of(format: WeightFormat) -> Self {
        match format {
            WeightFormat::Dense(_) => Self::None,
            WeightFormat::Quantized { spec, scale_dtype } => match spec.mode() {
                QuantMode::Affine => Self::Float(scale_dtype),
                QuantMode::Mxfp4 | QuantMode::Mxfp8 => Self::E8m0,
                QuantMode::Nvfp4 => Self::E4m3,
            },
        }
    }

    /// Bytes of one scale.
    #[inline(always)]
    pub(super) fn size_bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Float(dtype) => dtype.size_bytes(),
            Self::E8m0 | Self::E4m3 => 1,
        }
    }

    /// Whether there are biases. If not, the format's offset takes their place.
    #[inline(always)]
    pub(super) fn has_biases(self) -> bool {
        matches!(self, Self::Float(_))
    }
}

/// What a kernel must know about the rows of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowLayout {
    /// Number of weights in a row.
    pub(super) n_in: usize,
    /// Bytes of a row's data.
    pub(super) row_bytes: usize,
    pub(super) n_groups: usize,
    /// Weights per scale; 0 without scales.
    pub(super) group_size: usize,
    pub(super) scales: ScaleKind,
    /// Bytes of one scale.
    pub(super) scale_bytes: usize,
    /// [`Decoder::OFFSET`].
    pub(super) offset: i8,
    /// Number of chunks in a row of weights or activations.
    pub(super) n_chunks: usize,
    /// [`Decoder::LOADS`], as a value that the compiler does not know.
    pub(super) n_loads: usize,
    /// Bytes after a row's data, scales and biases that kernels read with the last chunk and the last vector of groups.
    pub(super) overread: [usize; 3],
    /// Whether the data must be followed by zeros. With integers anything may follow, because the activations there are
    /// zero.
    pub(super) needs_zeros: bool,
    /// Number of lanes of a chunk's vectors that share a scale, which is also the number of chunks in a vector of
    /// groups: a power of two.
    pub(super) lanes_per_group: usize,
    /// Number of groups in a row, rounded up to whole vectors; 0 without scales.
    pub(super) padded_groups: usize,
    /// Number of floats in a plane of a prepared row: whole chunks.
    pub(super) plane: usize,
    /// Number of floats in all planes.
    pub(super) n_values: usize,
    /// Number of floats in a prepared row.
    pub(super) stride: usize,
}

impl RowLayout {
    pub(super) fn new<S: Simd, D: Decoder<S>>(format: WeightFormat, n_in: usize) -> Self {
        let scales = ScaleKind::of(format);
        let n_vecs = D::LOADS * D::CELLS;
        let lane_weights = n_vecs * D::Element::WEIGHTS;
        let chunk = lane_weights * S::LANES;
        let (group_size, row_bytes) = match format {
            WeightFormat::Dense(dtype) => (0, n_in * dtype.size_bytes()),
            WeightFormat::Quantized { spec, .. } => (spec.group_size(), spec.packed_bytes(n_in)),
        };
        let n_groups = n_in.checked_div(group_size).unwrap_or(0);
        let n_chunks = n_in.div_ceil(chunk);
        let plane = n_chunks * n_vecs * S::LANES;
        let n_values = D::Element::PLANES * plane;
        let padded_groups = if D::SCALED { n_groups.next_multiple_of(S::LANES) } else { 0 };
        let data_overread =
            n_chunks * D::LOADS * D::LOAD_BYTES - row_bytes + if D::OVERREAD { MAX_OVERREAD } else { 0 };
        let scales_overread = (padded_groups - n_groups) * scales.size_bytes();
        Self {
            n_in,
            row_bytes,
            n_groups,
            group_size,
            scales,
            scale_bytes: scales.size_bytes(),
            offset: D::OFFSET,
            n_chunks,
            n_loads: D::LOADS,
            overread: [data_overread, scales_overread, if scales.has_biases() { scales_overread } else { 0 }],
            needs_zeros: !D::Element::X_SCALED && !n_in.is_multiple_of(chunk),
            lanes_per_group: (group_size / lane_weights).max(1),
            padded_groups,
            plane,
            n_values,
            // For each group its sum, and for integers also its scale and the common term of its pairs.
            stride: n_values + padded_groups * if D::Element::X_SCALED { 3 } else { 1 },
        }
    }

    /// For lane j of chunk c of a vector of groups, at index `c · LANES + j`: the index of its group in the vector.
    #[inline(always)]
    pub(super) fn group_of_lane(&self) -> &'static [u32] {
        &GROUP_OF_LANE[self.lanes_per_group.trailing_zeros() as usize]
    }

    /// Bytes of a row's scales, which is also the size of its biases.
    #[inline(always)]
    pub(super) fn scales_bytes(&self) -> usize {
        self.n_groups * self.scale_bytes
    }

    /// Number of floats of scales for each sum of a dot. Whole vectors can be read from any group on.
    #[inline(always)]
    pub(super) fn scales_stride(&self) -> usize {
        self.padded_groups + MAX_LANES
    }

    /// Whether the format has biases, or its integers have an offset.
    pub(super) fn is_biased(&self) -> bool {
        self.scales.has_biases() || self.offset != 0
    }
}

/// The number of possible values of `lanes_per_group`, which are powers of two.
const N_LANE_COUNTS: usize = 6;

/// The group of each lane, by the logarithm of the number of lanes that share a scale.
static GROUP_OF_LANE: [[u32; 16 << (N_LANE_COUNTS - 1)]; N_LANE_COUNTS] = {
    let mut groups = [[0; 16 << (N_LANE_COUNTS - 1)]; N_LANE_COUNTS];
    let mut log2 = 0;
    while log2 < N_LANE_COUNTS {
        let mut lane = 0;
        while lane < groups[log2].len() {
            groups[log2][lane] = (lane >> log2) as u32;
            lane += 1;
        }
        log2 += 1;
    }
    groups
};

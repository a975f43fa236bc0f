//! What the kernels know of a weight's rows: where their data, scales and biases lie, and how far they read.

use super::decoders::{Decoder, MAX_OVERREAD};
use super::elements::Element;
use crate::simd::Simd;
use zmlx_core::{DType, QuantMode, WeightFormat};

/// Most lanes of a vector.
const MAX_LANES: usize = 16;
/// Weight bytes fetched ahead of use in each run, into the second-level cache.
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

    /// The row `n` rows further on.
    ///
    /// # Safety
    /// It lies within the same matrix, whose rows take `row_bytes` of data, scales and biases.
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

/// Copies of rows behind which kernels would read what they may not.
#[derive(Default)]
pub(super) struct PaddedRows(Vec<u8>);

impl PaddedRows {
    /// Makes room for `n` rows.
    pub(super) fn reserve(&mut self, layout: &RowLayout, row_bytes: [usize; 3], n: usize) {
        let len = n * (row_bytes.iter().sum::<usize>() + layout.overread.iter().sum::<usize>());
        self.0.reserve(len.saturating_sub(self.0.len()));
    }

    /// Copies of some rows that take `row_bytes` of data, scales and biases, with zeros behind each for what the kernels read.
    ///
    /// # Safety
    /// The rows can be read.
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
                // SAFETY: the row has these bytes (the caller's promise), and the copy room for them.
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
    /// Scales and biases, of affine codes.
    Float(DType),
    /// Scales alone, as powers of two.
    E8m0,
    /// Scales alone, of eight bits.
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

    /// Bytes of a scale.
    #[inline(always)]
    pub(super) fn size_bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Float(dtype) => dtype.size_bytes(),
            Self::E8m0 | Self::E4m3 => 1,
        }
    }

    /// Whether there are biases, else they are those of the offset.
    #[inline(always)]
    pub(super) fn has_biases(self) -> bool {
        matches!(self, Self::Float(_))
    }
}

/// What a kernel must know of a weight's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowLayout {
    /// Weights of a row.
    pub(super) n_in: usize,
    /// Bytes of a row's data.
    pub(super) row_bytes: usize,
    pub(super) n_groups: usize,
    /// 0 without scales.
    pub(super) group_size: usize,
    pub(super) scales: ScaleKind,
    /// Bytes of a scale.
    pub(super) scale_bytes: usize,
    /// [`Decoder::OFFSET`].
    pub(super) offset: i8,
    /// Chunks of a row or activations.
    pub(super) n_chunks: usize,
    /// [`Decoder::LOADS`], as a number that the compiler does not know.
    pub(super) n_loads: usize,
    /// Bytes behind a row's data, scales and biases that kernels read with its last chunk and its last vector of groups.
    pub(super) overread: [usize; 3],
    /// Whether there must be zeros behind the data: of integers activations that are zero take care of what there is.
    pub(super) needs_zeros: bool,
    /// Lanes that share a scale, in the vectors of a chunk, and chunks of a vector of groups: a power of two.
    pub(super) lanes_per_group: usize,
    /// Groups of a row, rounded up to whole vectors; 0 without scales.
    pub(super) padded_groups: usize,
    /// Floats that a plane of a prepared row's values takes: whole chunks.
    pub(super) plane: usize,
    /// Floats that all planes take.
    pub(super) n_values: usize,
    /// Floats of a prepared row.
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
            // Of each group the sum and, of integers, the scale and what pairs have in common.
            stride: n_values + padded_groups * if D::Element::X_SCALED { 3 } else { 1 },
        }
    }

    /// Of lane j of chunk c of a vector of groups, entry `c · LANES + j`: its group in the vector.
    #[inline(always)]
    pub(super) fn group_of_lane(&self) -> &'static [u32] {
        &GROUP_OF_LANE[self.lanes_per_group.trailing_zeros() as usize]
    }

    /// Bytes of a row's scales, and of its biases.
    #[inline(always)]
    pub(super) fn scales_bytes(&self) -> usize {
        self.n_groups * self.scale_bytes
    }

    /// Floats of scales that each sum of a dot has: whole vectors can be read from any group on.
    #[inline(always)]
    pub(super) fn scales_stride(&self) -> usize {
        self.padded_groups + MAX_LANES
    }

    /// Whether the format has biases, or the integers an offset.
    pub(super) fn is_biased(&self) -> bool {
        self.scales.has_biases() || self.offset != 0
    }
}

/// Most lanes that share a scale, as a power of two, and one more.
const N_LANE_COUNTS: usize = 6;

/// By the logarithm of the lanes that share a scale: the group of each lane.
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

//! What the kernels know of a weight's rows, and how they read a row's scales.

#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::sync::LazyLock;

use super::cells::{Cells, MAX_OVERREAD};
use super::elements::Element;
use crate::simd::Simd;
use zmlx_core::quant::float::e4m3_to_f32;
use zmlx_core::{DType, QuantMode, WeightFormat};

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
    fn size_bytes(self) -> usize {
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
    scales: ScaleKind,
    /// Bytes of a scale.
    scale_bytes: usize,
    /// [`Cells::OFFSET`].
    offset: i8,
    /// Chunks of a row or activations.
    pub(super) n_chunks: usize,
    /// [`Cells::LOADS`], as a number that the compiler does not know.
    pub(super) n_loads: usize,
    /// Bytes behind a row's data, scales and biases that kernels read with its last chunk and its last vector of groups.
    pub(super) overread: [usize; 3],
    /// Whether there must be zeros behind the data: of integers activations that are zero take care of what there is.
    pub(super) needs_zeros: bool,
    /// Lanes that share a scale, in the vectors of a chunk, and chunks of a vector of groups: a power of two.
    pub(super) lanes_per_group: usize,
    /// Of zipped words, the group of each lane of a chunk.
    pub(super) zipped_groups: [u32; 8],
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
    pub(super) fn new<S: Simd, C: Cells<S>>(format: WeightFormat, n_in: usize) -> Self {
        let scales = ScaleKind::of(format);
        let n_vecs = C::LOADS * C::CELLS;
        let lane_weights = n_vecs * C::Element::WEIGHTS;
        let chunk = lane_weights * S::LANES;
        let (group_size, row_bytes) = match format {
            WeightFormat::Dense(dtype) => (0, n_in * dtype.size_bytes()),
            WeightFormat::Quantized { spec, .. } => (spec.group_size(), spec.packed_bytes(n_in)),
        };
        let mut zipped_groups = [0; 8];
        if C::Element::ZIPPED {
            let groups = |load, lane| C::word(load, lane) * (lane_weights / C::LOADS) / group_size;
            zipped_groups = std::array::from_fn(|lane| groups(0, lane) as u32);
            assert!(
                (0..8).all(|lane| groups(0, lane) == groups(1, lane)),
                "the lanes' words are of one group"
            );
        }
        let n_groups = n_in.checked_div(group_size).unwrap_or(0);
        let n_chunks = n_in.div_ceil(chunk);
        let plane = n_chunks * n_vecs * S::LANES;
        let n_values = C::Element::PLANES * plane;
        let padded_groups = if C::SCALED { n_groups.next_multiple_of(S::LANES) } else { 0 };
        let data_overread =
            n_chunks * C::LOADS * C::LOAD_BYTES - row_bytes + if C::OVERREAD { MAX_OVERREAD } else { 0 };
        let scales_overread = (padded_groups - n_groups) * scales.size_bytes();
        Self {
            n_in,
            row_bytes,
            n_groups,
            group_size,
            scales,
            scale_bytes: scales.size_bytes(),
            offset: C::OFFSET,
            n_chunks,
            n_loads: C::LOADS,
            overread: [data_overread, scales_overread, if scales.has_biases() { scales_overread } else { 0 }],
            needs_zeros: !C::Element::X_SCALED && !n_in.is_multiple_of(chunk),
            lanes_per_group: (group_size / lane_weights).max(1),
            zipped_groups,
            padded_groups,
            plane,
            n_values,
            // Of each group the sum and, of integers, the scale and what pairs have in common.
            stride: n_values + padded_groups * if C::Element::X_SCALED { 3 } else { 1 },
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

/// What a kernel knows of scales when it is compiled.
pub(super) trait Scales {
    /// How they are stored, if that is known.
    const KIND: Option<ScaleKind>;

    /// Bytes of a scale.
    #[inline(always)]
    fn size_bytes(layout: &RowLayout) -> usize {
        match Self::KIND {
            Some(kind) => kind.size_bytes(),
            None => layout.scale_bytes,
        }
    }

    /// Whether there are biases, else they are those of the offset.
    #[inline(always)]
    fn has_biases(layout: &RowLayout) -> bool {
        Self::KIND.unwrap_or(layout.scales).has_biases()
    }
}

/// Scales and biases in bf16.
pub(super) struct Bf16;
/// Scales as powers of two.
pub(super) struct E8m0;
/// Scales of eight bits.
pub(super) struct E4m3;
/// Scales as the layout says, or none.
pub(super) struct Any;

impl Scales for Bf16 {
    const KIND: Option<ScaleKind> = Some(ScaleKind::Float(DType::BF16));
}
impl Scales for E8m0 {
    const KIND: Option<ScaleKind> = Some(ScaleKind::E8m0);
}
impl Scales for E4m3 {
    const KIND: Option<ScaleKind> = Some(ScaleKind::E4m3);
}
impl Scales for Any {
    const KIND: Option<ScaleKind> = None;
}

/// The scales and biases of a vector of groups, which begin `at` bytes behind those of the row: of the first `n` groups, then zeros, or
/// if `WHOLE` of all.
///
/// # Safety
/// The row is as the layout says, has the first group, and a whole vector of scales can be read.
#[inline(always)]
pub(super) unsafe fn group_scales<S: Simd, K: Scales, const WHOLE: bool>(
    s: S,
    layout: &RowLayout,
    row: &Row,
    at: usize,
    n: usize,
) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    let [scales, biases] = unsafe {
        match K::KIND {
            Some(kind) => load_scales(s, kind, layout, row, at),
            None => load_any_scales::<S>(layout, row, at),
        }
    };
    if WHOLE { [scales, biases] } else { [s.first(scales, n), s.first(biases, n)] }
}

/// [`load_scales`] as the layout says. Code of its own, once for each instruction set: inlined it would make every kernel longer.
///
/// # Safety
/// As [`group_scales`]; the processor has the instructions of `S`.
#[inline(never)]
unsafe fn load_any_scales<S: Simd>(layout: &RowLayout, row: &Row, at: usize) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // SAFETY: as above.
            unsafe { load_scales(s, layout.scales, layout, row, at) }
        },
    )
}

/// # Safety
/// As [`group_scales`].
#[inline(always)]
unsafe fn load_scales<S: Simd>(s: S, kind: ScaleKind, layout: &RowLayout, row: &Row, at: usize) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (p, biases) = (row.scales.add(at), row.biases.wrapping_add(at));
        let scales = match kind {
            ScaleKind::None => s.splat(0.0),
            ScaleKind::Float(DType::F32) => return [s.load(p.cast()), s.load(biases.cast())],
            ScaleKind::Float(DType::F16) => return [s.load_f16(p), s.load_f16(biases)],
            ScaleKind::Float(_) => return [s.load_bf16(p), s.load_bf16(biases)],
            ScaleKind::E8m0 => s.load_e8m0(p),
            ScaleKind::E4m3 => load_e4m3(s, p),
        };
        [scales, s.mul(scales, s.splat(f32::from(layout.offset)))]
    }
}

/// # Safety
/// `LANES` codes are readable at `p`.
#[inline(always)]
unsafe fn load_e4m3<S: Simd>(s: S, p: *const u8) -> S::F {
    // SAFETY: the caller's promise; no vector has more than 16 lanes.
    unsafe {
        if !has_e4m3_nan(p, S::LANES) {
            return s.mul(s.load_e4m3(p), s.splat(256.0));
        }
        let mut scales = [0f32; 16];
        for i in 0..S::LANES {
            scales[i] = E4M3[usize::from(p.add(i).read())];
        }
        s.load(scales.as_ptr())
    }
}

/// Whether one of `n` codes, a multiple of 8, is that of NaN.
///
/// # Safety
/// They are readable at `p`.
#[inline(always)]
unsafe fn has_e4m3_nan(p: *const u8, n: usize) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut carries = 0;
    for i in 0..n / 8 {
        // SAFETY: the caller's promise.
        let codes = unsafe { p.cast::<u64>().add(i).read_unaligned() };
        // Without the sign the code of NaN is the largest, which one more carries into the sign's place.
        carries |= (codes & (0x7f * EACH)) + EACH;
    }
    carries & (0x80 * EACH) != 0
}

static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| e4m3_to_f32(code as u8)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_scales_are_found_wherever_they_are() {
        for code in 0..=u8::MAX {
            for at in 0..16 {
                let mut codes = [0xfe; 16];
                codes[at] = code;
                // SAFETY: there are 16 codes.
                let found = unsafe { has_e4m3_nan(codes.as_ptr(), 16) };
                assert_eq!(found, e4m3_to_f32(code).is_nan(), "{code:#x} at {at}");
            }
        }
    }
}

//! What the kernels know of a weight's rows, and how they read a row's scales.

#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::sync::LazyLock;

use super::cells::{Cells, MAX_OVERREAD};
use super::elements::Element;
use crate::DType;
use crate::cpu::simd::Simd;
use crate::quant::float::e4m3_to_f32;
use crate::weight::WeightFormat;

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
    Float(DType),
    E8m0,
    E4m3,
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
    pub(super) fn new<S: Simd, C: Cells<S>, K: Scales<S>>(format: WeightFormat, n_in: usize) -> Self {
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
        let scales_overread = (padded_groups - n_groups) * K::BYTES;
        Self {
            n_in,
            row_bytes,
            n_groups,
            group_size,
            scales: K::KIND,
            scale_bytes: K::BYTES,
            offset: C::OFFSET,
            n_chunks,
            n_loads: C::LOADS,
            overread: [data_overread, scales_overread, if K::BIASED { scales_overread } else { 0 }],
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
        matches!(self.scales, ScaleKind::Float(_)) || self.offset != 0
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

/// How the scales and biases of a vector of groups are read.
pub(super) trait Scales<S: Simd> {
    /// Which implementation this is.
    const KIND: ScaleKind;
    /// Bytes of a scale.
    const BYTES: usize;
    /// Whether there are biases, else they are those of the offset.
    const BIASED: bool;

    /// Those that begin `at` bytes behind a row's.
    ///
    /// # Safety
    /// As many as a vector has are readable.
    unsafe fn load(s: S, layout: &RowLayout, row: &Row, at: usize) -> [S::F; 2];
}

/// No scales.
pub(super) struct None;
/// Scales and biases of affine codes.
pub(super) struct F32;
/// Scales and biases of affine codes.
pub(super) struct F16;
/// Scales and biases of affine codes.
pub(super) struct Bf16;
/// Scales alone, as powers of two.
pub(super) struct E8m0;
/// Scales alone, of eight bits.
pub(super) struct E4m3;

impl<S: Simd> Scales<S> for None {
    const KIND: ScaleKind = ScaleKind::None;
    const BYTES: usize = 0;
    const BIASED: bool = false;

    #[inline(always)]
    unsafe fn load(s: S, _: &RowLayout, _: &Row, _: usize) -> [S::F; 2] {
        [s.splat(0.0); 2]
    }
}

macro_rules! scales {
    ($name:ident, $kind:expr, $bytes:literal, $biased:literal, |$s:ident, $p:ident| $load:expr) => {
        impl<S: Simd> Scales<S> for $name {
            const KIND: ScaleKind = $kind;
            const BYTES: usize = $bytes;
            const BIASED: bool = $biased;

            #[inline(always)]
            unsafe fn load($s: S, layout: &RowLayout, row: &Row, at: usize) -> [S::F; 2] {
                // SAFETY: the caller's promise.
                unsafe {
                    let $p = row.scales.add(at);
                    let scales = $load;
                    if $biased {
                        let $p = row.biases.add(at);
                        [scales, $load]
                    } else {
                        [scales, $s.mul(scales, $s.splat(f32::from(layout.offset)))]
                    }
                }
            }
        }
    };
}
scales!(F32, ScaleKind::Float(DType::F32), 4, true, |s, p| s.load(p.cast()));
scales!(F16, ScaleKind::Float(DType::F16), 2, true, |s, p| s.load_f16(p));
scales!(Bf16, ScaleKind::Float(DType::BF16), 2, true, |s, p| s.load_bf16(p));
scales!(E8m0, ScaleKind::E8m0, 1, false, |s, p| s.load_e8m0(p));
scales!(E4m3, ScaleKind::E4m3, 1, false, |s, p| load_e4m3(s, p));

/// The scales and biases of a row's vector of groups from `g` on, with zeros past the last group.
///
/// # Safety
/// The row is as the layout says, has the group, and whole vectors of its scales can be read.
#[inline(always)]
pub(super) unsafe fn group_scales<S: Simd>(s: S, layout: &RowLayout, row: &Row, g: usize) -> [S::F; 2] {
    let at = g * layout.scale_bytes;
    // SAFETY: the caller's promise.
    let mut loaded = unsafe {
        match layout.scales {
            ScaleKind::None => None::load(s, layout, row, at),
            ScaleKind::Float(DType::F32) => F32::load(s, layout, row, at),
            ScaleKind::Float(DType::F16) => F16::load(s, layout, row, at),
            ScaleKind::Float(_) => Bf16::load(s, layout, row, at),
            ScaleKind::E8m0 => E8m0::load(s, layout, row, at),
            ScaleKind::E4m3 => E4m3::load(s, layout, row, at),
        }
    };
    if layout.n_groups - g < S::LANES {
        for kind in 0..2 {
            loaded[kind] = s.first(loaded[kind], layout.n_groups - g);
        }
    }
    loaded
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

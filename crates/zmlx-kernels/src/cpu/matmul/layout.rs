//! What the kernels know of a weight's rows, and how they read a row's scales.

#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::sync::LazyLock;

use super::cells::Cells;
use super::elements::Element;
use crate::cpu::simd::Simd;
use crate::quant::float::e4m3_to_f32;
use crate::weight::WeightFormat;
use crate::{DType, QuantMode};

/// Bytes of scales and of biases that are fetched ahead: some rows.
pub(super) const PREFETCH_SCALES: usize = 256;
/// Bytes behind a row's scales that reading whole vectors may take in: the largest vector's.
pub(super) const SCALES_OVERREAD: usize = 64;

/// The buffers of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) data: *const u8,
    pub(super) scales: *const u8,
    pub(super) biases: *const u8,
    /// Whether [`SCALES_OVERREAD`] bytes behind the scales and the biases are readable, and
    /// [`MAX_OVERREAD`](super::cells::MAX_OVERREAD) behind the data; of several successive rows, behind all of them.
    pub(super) can_overread: bool,
}

impl Row {
    /// The row `n` rows further on.
    ///
    /// # Safety
    /// It lies within the same matrix, whose rows take `row_bytes` of data, scales and biases, and the overread is as said.
    pub(super) unsafe fn add(self, n: usize, row_bytes: [usize; 3], can_overread: bool) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                data: self.data.add(n * row_bytes[0]),
                scales: self.scales.add(n * row_bytes[1]),
                biases: self.biases.add(n * row_bytes[2]),
                can_overread,
            }
        }
    }
}

/// How scales (and biases) are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScaleKind {
    None,
    Float(DType),
    E8m0,
    E4m3,
}

impl ScaleKind {
    /// Bytes of a scale.
    const fn size_bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Float(dtype) => dtype.size_bytes(),
            Self::E8m0 | Self::E4m3 => 1,
        }
    }

    /// Arrays of scales and biases that there are.
    const fn n_arrays(self) -> usize {
        match self {
            Self::None => 0,
            Self::Float(_) => 2,
            Self::E8m0 | Self::E4m3 => 1,
        }
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
    /// Whole chunks of a row, and those that can be read in place without overread; the others go through a padded copy.
    n_whole: usize,
    n_direct: usize,
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
    pub(super) fn new<S: Simd, C: Cells<S>>(format: WeightFormat, n_in: usize) -> Self {
        let n_vecs = C::LOADS * C::CELLS;
        let lane_weights = n_vecs * C::Element::WEIGHTS;
        let chunk = lane_weights * S::LANES;
        let (group_size, scales, row_bytes) = match format {
            WeightFormat::Dense(dtype) => (0, ScaleKind::None, n_in * dtype.size_bytes()),
            WeightFormat::Quantized { spec, scale_dtype } => {
                let kind = match spec.mode() {
                    QuantMode::Affine => ScaleKind::Float(scale_dtype),
                    QuantMode::Nvfp4 => ScaleKind::E4m3,
                    QuantMode::Mxfp4 | QuantMode::Mxfp8 => ScaleKind::E8m0,
                };
                (spec.group_size(), kind, spec.packed_bytes(n_in))
            }
        };
        let n_groups = n_in.checked_div(group_size).unwrap_or(0);
        let n_chunks = n_in.div_ceil(chunk);
        let plane = n_chunks * n_vecs * S::LANES;
        let n_values = C::Element::PLANES * plane;
        let padded_groups = if C::SCALED { n_groups.next_multiple_of(S::LANES) } else { 0 };
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
            n_whole: n_in / chunk,
            n_direct: if C::OVERREAD { n_chunks - 1 } else { n_in / chunk },
            lanes_per_group: (group_size / lane_weights).max(1),
            padded_groups,
            plane,
            n_values,
            stride: n_values + padded_groups * if C::Element::X_SCALED { 2 } else { 1 },
        }
    }

    /// Of lane j of chunk c of a vector of groups, entry `c · LANES + j`: its group in the vector.
    #[inline(always)]
    pub(super) fn group_of_lane(&self) -> &'static [u32] {
        &GROUP_OF_LANE[self.lanes_per_group.trailing_zeros() as usize]
    }

    /// Chunks that can be read in place, of rows with the overread behind them or without.
    #[inline(always)]
    pub(super) fn n_direct(&self, can_overread: bool) -> usize {
        if can_overread { self.n_whole } else { self.n_direct }
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

/// The scales and biases of some rows' groups from `g`, a multiple of `LANES`, on: of each row a vector, with zeros past the
/// last group. A format without biases has those of the offset. The rows' scales begin `from` bytes behind those of `rows`.
///
/// # Safety
/// The rows are as the layout says and have group `g`.
#[inline(always)]
pub(super) unsafe fn group_scales<S: Simd, const R: usize>(
    s: S,
    layout: &RowLayout,
    rows: &[Row; R],
    from: usize,
    g: usize,
    copies: &mut ScaleCopies<R>,
) -> [[S::F; R]; 2] {
    let n = S::LANES.min(layout.n_groups - g);
    let mut at = [[std::ptr::null(); 2]; R];
    for r in 0..R {
        at[r][0] = rows[r].scales.wrapping_add(from + g * layout.scale_bytes);
        at[r][1] = rows[r].biases.wrapping_add(from + g * layout.scale_bytes);
    }
    if n < S::LANES {
        for r in 0..R {
            if !rows[r].can_overread {
                // SAFETY: the row has these groups.
                unsafe { copy_groups(layout, n, &mut at[r], &mut copies[r]) };
            }
        }
    }
    // SAFETY: what is read are the rows' groups and the overread, or copies of the groups.
    let mut loaded = unsafe {
        match layout.scales {
            ScaleKind::None => [[s.splat(0.0); R]; 2],
            ScaleKind::Float(DType::F32) => biased(
                s,
                &at,
                #[inline(always)]
                |p| s.load(p.cast()),
            ),
            ScaleKind::Float(DType::F16) => biased(
                s,
                &at,
                #[inline(always)]
                |p| s.load_f16(p),
            ),
            ScaleKind::Float(_) => biased(
                s,
                &at,
                #[inline(always)]
                |p| s.load_bf16(p),
            ),
            ScaleKind::E8m0 => unbiased(
                s,
                layout.offset,
                &at,
                #[inline(always)]
                |p| s.load_e8m0(p),
            ),
            ScaleKind::E4m3 => unbiased(
                s,
                layout.offset,
                &at,
                #[inline(always)]
                |p| load_e4m3(s, p),
            ),
        }
    };
    if n < S::LANES {
        for r in 0..R {
            for kind in 0..2 {
                loaded[kind][r] = s.first(loaded[kind][r], n);
            }
        }
    }
    loaded
}

/// What `load` gives of the rows' scales and biases.
#[inline(always)]
fn biased<S: Simd, const R: usize>(
    s: S,
    at: &[[*const u8; 2]; R],
    load: impl Fn(*const u8) -> S::F,
) -> [[S::F; R]; 2] {
    let mut loaded = [[s.splat(0.0); R]; 2];
    for r in 0..R {
        for kind in 0..2 {
            s.prefetch_l2(at[r][kind].wrapping_add(PREFETCH_SCALES));
            loaded[kind][r] = load(at[r][kind]);
        }
    }
    loaded
}

/// What `load` gives of the rows' scales, and these times `offset`.
#[inline(always)]
fn unbiased<S: Simd, const R: usize>(
    s: S,
    offset: i8,
    at: &[[*const u8; 2]; R],
    load: impl Fn(*const u8) -> S::F,
) -> [[S::F; R]; 2] {
    let mut loaded = [[s.splat(0.0); R]; 2];
    for r in 0..R {
        s.prefetch_l2(at[r][0].wrapping_add(PREFETCH_SCALES));
        loaded[0][r] = load(at[r][0]);
        loaded[1][r] = s.mul(loaded[0][r], s.splat(f32::from(offset)));
    }
    loaded
}

/// Of rows without the overread behind them the last groups' scales and biases, and room behind these.
pub(super) type ScaleCopies<const R: usize> = [[[u8; SCALES_OVERREAD]; 2]; R];

/// Points `at` to copies of `n` of a row's scales (and biases) with the overread behind them.
///
/// # Safety
/// These are readable.
#[cold]
unsafe fn copy_groups(
    layout: &RowLayout,
    n: usize,
    at: &mut [*const u8; 2],
    copies: &mut [[u8; SCALES_OVERREAD]; 2],
) {
    for (at, copy) in at.iter_mut().zip(copies).take(layout.scales.n_arrays()) {
        // SAFETY: the caller's promise; a vector of scales takes no more than the overread.
        unsafe { std::ptr::copy_nonoverlapping(*at, copy.as_mut_ptr(), n * layout.scale_bytes) };
        *at = copy.as_ptr();
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

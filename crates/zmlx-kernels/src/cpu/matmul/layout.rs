//! What the kernels know of a weight's rows, and how they read a row's scales.

use std::sync::LazyLock;

use super::cells::Cells;
use super::elements::Element;
use crate::cpu::simd::Simd;
use crate::quant::float::e4m3_to_f32;
use crate::weight::WeightFormat;
use crate::{DType, QuantMode};

/// Bytes of scales and of biases that are fetched ahead: some rows.
const PREFETCH_SCALES: usize = 256;
/// Bytes behind a row's scales that reading whole vectors may take in: the largest vector's.
pub(super) const SCALES_OVERREAD: usize = 64;

/// The buffers of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) data: *const u8,
    pub(super) scales: *const u8,
    pub(super) biases: *const u8,
    /// Whether [`SCALES_OVERREAD`] bytes behind the scales and the biases are readable.
    pub(super) can_overread: bool,
}

impl Row {
    /// The row `n` rows further on.
    ///
    /// # Safety
    /// It lies within the same matrix, whose rows take `row_bytes` of data, scales and biases, and the overread is as
    /// said.
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
    /// [`Cells::OFFSET`].
    offset: i8,
    /// Chunks of a row or activations.
    pub(super) n_chunks: usize,
    /// [`Cells::LOADS`], as a number that the compiler does not know.
    pub(super) n_loads: usize,
    /// Chunks that can be read in place; the others go through a padded copy.
    pub(super) n_direct: usize,
    /// Lanes that share a scale, in the vectors of a chunk: a power of two, its logarithm.
    pub(super) log2_lanes_per_group: u32,
    /// Groups of a row, rounded up to whole vectors and one more; 0 without scales.
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
        // One vector of zeros more than needed, so that scales may be loaded as a vector from any group.
        let padded_groups = if C::SCALED { n_groups.next_multiple_of(S::LANES) + S::LANES } else { 0 };
        Self {
            n_in,
            row_bytes,
            n_groups,
            group_size,
            scales,
            offset: C::OFFSET,
            n_chunks,
            n_loads: C::LOADS,
            n_direct: if C::OVERREAD { n_chunks - 1 } else { n_in / chunk },
            log2_lanes_per_group: (group_size / lane_weights).checked_ilog2().unwrap_or(0),
            padded_groups,
            plane,
            n_values,
            stride: n_values + padded_groups * if C::Element::X_SCALED { 2 } else { 1 },
        }
    }

    /// Whether the format has biases, or the integers an offset.
    pub(super) fn is_biased(&self) -> bool {
        matches!(self.scales, ScaleKind::Float(_)) || self.offset != 0
    }
}

/// Writes `f(first_group, scales, biases)` for the row's scales and biases as floats, by vectors of groups, padded with
/// zeros. A format without biases has those of the offset.
///
/// # Safety
/// The row is as the layout says; `out` has room for the padded groups.
#[inline(always)]
pub(super) unsafe fn scales<S: Simd>(
    s: S,
    layout: &RowLayout,
    row: &Row,
    out: *mut f32,
    mut f: impl FnMut(usize, S::F, S::F) -> S::F,
) {
    let n = layout.n_groups;
    let n_whole = n / S::LANES * S::LANES;
    // SAFETY: reads stay below n groups and the overread, writes below the padded groups (which are at least n).
    unsafe {
        match layout.scales {
            ScaleKind::None => {}
            ScaleKind::E8m0 | ScaleKind::E4m3 => {
                for g in (0..n).step_by(S::LANES) {
                    let mut codes = [0u8; 16];
                    let mut at = row.scales.add(g);
                    s.prefetch(at.wrapping_add(PREFETCH_SCALES));
                    if n - g < S::LANES && !row.can_overread {
                        std::ptr::copy_nonoverlapping(at, codes.as_mut_ptr(), n - g);
                        at = codes.as_ptr();
                    }
                    let scales = if layout.scales == ScaleKind::E8m0 {
                        s.load_e8m0(at)
                    } else if !has_e4m3_nan(at, S::LANES) {
                        s.mul(s.load_e4m3(at), s.splat(256.0))
                    } else {
                        let mut scales = [0f32; 16];
                        for (i, scale) in scales[..S::LANES].iter_mut().enumerate() {
                            *scale = E4M3[usize::from(at.add(i).read())];
                        }
                        s.load(scales.as_ptr())
                    };
                    let scales = s.first(scales, S::LANES.min(n - g));
                    s.store(out.add(g), f(g, scales, s.mul(scales, s.splat(f32::from(layout.offset)))));
                }
            }
            ScaleKind::Float(dtype) => {
                let size = dtype.size_bytes();
                for g in (0..n_whole).step_by(S::LANES) {
                    let (scales, biases) = (row.scales.add(g * size), row.biases.add(g * size));
                    s.prefetch(scales.wrapping_add(PREFETCH_SCALES));
                    s.prefetch(biases.wrapping_add(PREFETCH_SCALES));
                    s.store(out.add(g), f(g, load_scales(s, dtype, scales), load_scales(s, dtype, biases)));
                }
                if n_whole < n {
                    let (scales, biases) = (row.scales.add(n_whole * size), row.biases.add(n_whole * size));
                    s.prefetch(scales.wrapping_add(PREFETCH_SCALES));
                    s.prefetch(biases.wrapping_add(PREFETCH_SCALES));
                    let (scales, biases) = if row.can_overread {
                        let n = n - n_whole;
                        let (scales, biases) = (load_scales(s, dtype, scales), load_scales(s, dtype, biases));
                        (s.first(scales, n), s.first(biases, n))
                    } else {
                        let mut rest = [[0f32; 16]; 2];
                        for (rest, from) in rest.iter_mut().zip([scales, biases]) {
                            for (g, v) in rest[..n - n_whole].iter_mut().enumerate() {
                                *v = read_scale(dtype, from.add(g * size));
                            }
                        }
                        (s.load(rest[0].as_ptr()), s.load(rest[1].as_ptr()))
                    };
                    s.store(out.add(n_whole), f(n_whole, scales, biases));
                }
            }
        }
        if layout.scales != ScaleKind::None {
            s.store(out.add(layout.padded_groups - S::LANES), s.splat(0.0));
        }
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

/// # Safety
/// A vector of `dtype` is readable at `p`.
#[inline(always)]
unsafe fn load_scales<S: Simd>(s: S, dtype: DType, p: *const u8) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 => s.load(p.cast()),
            DType::F16 => s.load_f16(p),
            _ => s.load_bf16(p),
        }
    }
}

/// # Safety
/// A value of `dtype` is readable at `p`.
#[inline(always)]
unsafe fn read_scale(dtype: DType, p: *const u8) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DType::F32 => f32::from_bits(u32::from_le(p.cast::<u32>().read_unaligned())),
            DType::F16 => half::f16::from_bits(u16::from_le(p.cast::<u16>().read_unaligned())).to_f32(),
            _ => f32::from_bits(u32::from(u16::from_le(p.cast::<u16>().read_unaligned())) << 16),
        }
    }
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

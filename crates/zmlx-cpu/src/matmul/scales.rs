//! How kernels read the scales and biases of a row's groups, one vector of groups at a time.

use std::sync::LazyLock;

use super::layout::{Row, RowLayout, ScaleKind};
use crate::simd::Simd;
use zmlx_core::DType;
use zmlx_core::quant::float::e4m3_to_f32;

/// What a kernel knows about scales when it is compiled.
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

    /// Whether there are biases. If not, the format's offset takes their place.
    #[inline(always)]
    fn has_biases(layout: &RowLayout) -> bool {
        Self::KIND.unwrap_or(layout.scales).has_biases()
    }
}

/// Scales and biases in bf16.
pub(super) struct Bf16Scales;
/// Scales as powers of two.
pub(super) struct E8m0Scales;
/// Scales as e4m3 codes.
pub(super) struct E4m3Scales;
/// Scales as the layout says, if there are any.
pub(super) struct AnyScales;

impl Scales for Bf16Scales {
    const KIND: Option<ScaleKind> = Some(ScaleKind::Float(DType::BF16));
}
impl Scales for E8m0Scales {
    const KIND: Option<ScaleKind> = Some(ScaleKind::E8m0);
}
impl Scales for E4m3Scales {
    const KIND: Option<ScaleKind> = Some(ScaleKind::E4m3);
}
impl Scales for AnyScales {
    const KIND: Option<ScaleKind> = None;
}

/// The scales and biases of a vector of groups, which begin `at` bytes after the row's first. With `WHOLE` these are
/// those of all groups, otherwise those of the first `n` groups, then zeros.
///
/// # Safety
/// The row is as the layout says and has the first group, and a whole vector of scales is readable.
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

/// [`load_scales`] as the layout says. It is a function of its own for each instruction set, because inlining it would
/// make every kernel longer.
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
#[allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]
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

/// Whether one of `n` codes is the code of NaN. `n` is a multiple of 8.
///
/// # Safety
/// The codes are readable at `p`.
#[inline(always)]
unsafe fn has_e4m3_nan(p: *const u8, n: usize) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut carries = 0;
    for i in 0..n / 8 {
        // SAFETY: the caller's promise.
        let codes = unsafe { p.cast::<u64>().add(i).read_unaligned() };
        // Without its sign, the code of NaN is the largest one. Adding one carries into the place of the sign.
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

//! The instances of the inner kernels, one for each instruction set and format.

use super::decoders::{Decoder, DenseBf16, DenseF16, DenseF32, E2m1, E4m3, OddBits, PowerOfTwoBits};
use super::dots::{DotFn, MAX_DOTS, dot};
use super::elements::Integers;
use super::layout::RowLayout;
use super::prepare::{CellOrder, Prepare};
use super::scales::{AnyScales, Bf16Scales, E4m3Scales, E8m0Scales, Scales};
#[cfg(target_arch = "x86_64")]
use super::tiles::{ByAmx, ByPairs};
use super::tiles::{ByVectors, Multiply, PackFn, TileFn, tile, tile_rows};
use super::ways::Ways;
use crate::level::{Activations, Level};
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::scalar::Scalar;
use zmlx_core::{DType, QuantMode, QuantSpec, WeightFormat};

/// Puts a row of activations into the order of a kernel and appends the sums and scales of its groups.
///
/// # Safety
/// `x` has the layout's number of inputs, and `out` has room for its stride. The processor has the instance's
/// instructions.
pub(super) type PrepareFn = unsafe fn(layout: &RowLayout, x: *const f32, out: *mut f32);

/// The kernels of one format at one level, and the layout of its rows. They are function pointers, called once for some
/// rows (kilobytes of weights), never for each element.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) layout: RowLayout,
    /// The largest number of rows of activations for which dots are used.
    pub(super) max_dots: usize,
    /// The kernels for few rows of activations: for one, two and four.
    pub(super) dot: [DotFn; 3],
    pub(super) prepare_dot: PrepareFn,
    /// The kernel for many rows of activations.
    pub(super) tile: TileFn,
    pub(super) prepare_tile: PrepareFn,
    pub(super) pack: PackFn,
    /// Number of rows of the weight that a call of `tile` takes.
    pub(super) tile_rows: usize,
}

/// The kernels for a weight.
pub(super) fn kernels(level: Level, activations: Activations, format: WeightFormat, n_in: usize) -> Kernels {
    // This crate's unit tests multiply nothing. With all instances they would take minutes longer to compile.
    let level = if cfg!(test) { Level::Scalar } else { level };
    match level {
        Level::Scalar => on::<Scalar, ByVectors, ByVectors>(activations, format, n_in),
        #[cfg(all(target_arch = "x86_64", not(test)))]
        Level::Avx2 => on::<Avx2, ByPairs, ByVectors>(activations, format, n_in),
        #[cfg(all(target_arch = "x86_64", not(test)))]
        Level::Avx512 => on::<Avx512<false>, ByPairs, ByVectors>(activations, format, n_in),
        #[cfg(all(target_arch = "x86_64", not(test)))]
        Level::Avx512Vnni => on::<Avx512<true>, ByVectors, ByVectors>(activations, format, n_in),
        #[cfg(all(target_arch = "x86_64", not(test)))]
        Level::Zen4 => on::<Avx512<true>, ByPairs, ByVectors>(activations, format, n_in),
        #[cfg(all(target_arch = "x86_64", not(test)))]
        Level::Amx => on::<Avx512<true>, ByAmx, ByAmx>(activations, format, n_in),
        #[cfg(all(target_arch = "aarch64", not(test)))]
        Level::Neon => on::<Neon, ByVectors, ByVectors>(activations, format, n_in),
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

/// The kernels on vectors of `S`. Many rows of activations are multiplied by `M` (16 bits) or `M8` (8 bits).
fn on<S: Ways, M, M8: Multiply<S, Integers<4, 1>>>(
    activations: Activations,
    format: WeightFormat,
    n_in: usize,
) -> Kernels
where
    M: Multiply<S, S::Int16> + Multiply<S, S::Int16ForBytes>,
{
    let (spec, scale_dtype) = match format {
        WeightFormat::Dense(DType::F32) => {
            return of::<S, DenseF32, AnyScales, ByVectors>(format, n_in);
        }
        WeightFormat::Dense(DType::F16) => {
            return of::<S, DenseF16, AnyScales, ByVectors>(format, n_in);
        }
        WeightFormat::Dense(_) => return of::<S, DenseBf16, AnyScales, ByVectors>(format, n_in),
        WeightFormat::Quantized { spec, scale_dtype } => (spec, scale_dtype),
    };
    match (spec.mode(), activations) {
        (QuantMode::Mxfp8, _) => of::<S, E4m3, E8m0Scales, ByVectors>(format, n_in),
        (QuantMode::Mxfp4, Activations::Int16) => {
            of::<S, E2m1<S::Int16ForBytes>, E8m0Scales, M>(format, n_in)
        }
        (QuantMode::Mxfp4, Activations::Int8) => of::<S, E2m1<Integers<4, 1>>, E8m0Scales, M8>(format, n_in),
        (QuantMode::Nvfp4, Activations::Int16) => of::<S, E2m1<S::Int16>, E4m3Scales, M>(format, n_in),
        (QuantMode::Nvfp4, Activations::Int8) => of::<S, E2m1<Integers<4, 1>>, E4m3Scales, M8>(format, n_in),
        (QuantMode::Affine, _) => match scale_dtype {
            DType::BF16 => affine::<S, Bf16Scales, M, M8>(spec, activations, format, n_in),
            _ => affine::<S, AnyScales, M, M8>(spec, activations, format, n_in),
        },
    }
}

/// Kernels for affine weights with scales as `K`.
fn affine<S: Ways, K: Scales, M, M8: Multiply<S, Integers<4, 1>>>(
    spec: QuantSpec,
    activations: Activations,
    format: WeightFormat,
    n_in: usize,
) -> Kernels
where
    M: Multiply<S, S::Int16> + Multiply<S, S::Int16ForBytes>,
{
    match (spec.bits(), activations) {
        (8, _) => of::<S, PowerOfTwoBits<8, S::Int16>, K, M>(format, n_in),
        (_, Activations::Int16) => narrow::<S, S::Int16, S::Int16ForBytes, K, M>(spec, format, n_in),
        (_, Activations::Int8) => narrow::<S, Integers<4, 1>, Integers<4, 1>, K, M8>(spec, format, n_in),
    }
}

/// Kernels for affine weights of less than 8 bits. `B` is as [`Ways::Int16ForBytes`].
fn narrow<S: Ways, E: Prepare<S>, B: Prepare<S>, K: Scales, M: Multiply<S, E> + Multiply<S, B>>(
    spec: QuantSpec,
    format: WeightFormat,
    n_in: usize,
) -> Kernels {
    // Long chunks if a group has room for them, because the sums of a chunk are scaled once.
    let is_long = spec.group_size() >= 64;
    match spec.bits() {
        2 if is_long => of::<S, PowerOfTwoBits<2, B>, K, M>(format, n_in),
        2 => of::<S, PowerOfTwoBits<2, E>, K, M>(format, n_in),
        3 if is_long => of::<S, S::ThreeBits<E, 64>, K, M>(format, n_in),
        3 => of::<S, S::ThreeBits<E, 32>, K, M>(format, n_in),
        4 => of::<S, PowerOfTwoBits<4, E>, K, M>(format, n_in),
        5 if is_long => of::<S, OddBits<5, E, 64>, K, M>(format, n_in),
        5 => of::<S, OddBits<5, E, 32>, K, M>(format, n_in),
        _ if is_long => of::<S, OddBits<6, E, 64>, K, M>(format, n_in),
        _ => of::<S, OddBits<6, E, 32>, K, M>(format, n_in),
    }
}

fn of<S: Simd, D: Decoder<S>, K: Scales, M: Multiply<S, D::Element>>(
    format: WeightFormat,
    n_in: usize,
) -> Kernels
where
    D::Element: Prepare<S>,
{
    Kernels {
        layout: RowLayout::new::<S, D>(format, n_in),
        max_dots: const {
            assert!(M::MAX_DOTS <= MAX_DOTS);
            M::MAX_DOTS
        },
        dot: [dot::<S, D, K, 1, 4>, dot::<S, D, K, 2, 4>, dot::<S, D, K, 4, 2>],
        prepare_dot: prepare_dot::<S, D>,
        pack: M::pack::<D>,
        tile: tile::<S, D, M>,
        prepare_tile: prepare_tile::<S, D, M>,
        tile_rows: tile_rows::<S>(),
    }
}

/// The [`PrepareFn`] for dots.
unsafe fn prepare_dot<S: Simd, D: Decoder<S>>(layout: &RowLayout, x: *const f32, out: *mut f32)
where
    D::Element: Prepare<S>,
{
    // SAFETY: the caller's promise.
    unsafe { prepare::<S, D>(layout, CellOrder::Vectors, x, out) }
}

/// The [`PrepareFn`] for tiles.
unsafe fn prepare_tile<S: Simd, D: Decoder<S>, M: Multiply<S, D::Element>>(
    layout: &RowLayout,
    x: *const f32,
    out: *mut f32,
) where
    D::Element: Prepare<S>,
{
    // SAFETY: the caller's promise.
    unsafe { prepare::<S, D>(layout, M::ORDER, x, out) }
}

/// # Safety
/// As [`PrepareFn`].
#[inline(always)]
unsafe fn prepare<S: Simd, D: Decoder<S>>(layout: &RowLayout, order: CellOrder, x: *const f32, out: *mut f32)
where
    D::Element: Prepare<S>,
{
    // SAFETY: the caller promises the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // SAFETY: x has n_in values and out room for the stride (the caller's promise).
            let (x, out) = unsafe {
                (
                    std::slice::from_raw_parts(x, layout.n_in),
                    std::slice::from_raw_parts_mut(out, layout.stride),
                )
            };
            D::Element::prepare::<D>(layout, order, x, out);
        },
    );
}

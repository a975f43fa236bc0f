//! The instances of the inner kernels: one per instruction set and format.

use super::cells::{Cells, DenseBf16, DenseF16, DenseF32, E2m1, E4m3, OddBits, PowerOfTwoBits};
use super::dots::{DotFn, dot};
use super::elements::{Element, Integers, Order};
use super::layout::RowLayout;
use super::tiles::{TileFn, tile, tile_rows};
use crate::cpu::level::{Activations, Level};
use crate::cpu::simd::Simd;
use crate::cpu::simd::scalar::Scalar;
use crate::weight::WeightFormat;
use crate::{DType, QuantMode};

/// Puts a row of activations into the order of a kernel and appends the sums and scales of its groups.
///
/// # Safety
/// `x` has the layout's number of inputs, `out` room for its stride; the processor has the instance's instructions.
pub(super) type PrepareFn = unsafe fn(layout: &RowLayout, x: *const f32, out: *mut f32);

/// The kernels of one format at one level, and what they know of its rows: function pointers that are called once per
/// some rows (kilobytes of weights), never per element.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    pub(super) layout: RowLayout,
    /// For few rows of activations: one, two or four.
    pub(super) dot: [DotFn; 3],
    pub(super) prepare_dot: PrepareFn,
    /// For many.
    pub(super) tile: TileFn,
    pub(super) prepare_tile: PrepareFn,
    /// Rows of the weight that a call of `tile` takes.
    pub(super) tile_rows: usize,
}

/// The kernels for a weight.
pub(super) fn kernels(level: Level, activations: Activations, format: WeightFormat, n_in: usize) -> Kernels {
    match level {
        Level::Scalar => on::<Scalar>(activations, format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => on::<crate::cpu::simd::avx2::Avx2>(activations, format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => on::<crate::cpu::simd::avx512::Avx512<false>>(activations, format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => on::<crate::cpu::simd::avx512::Avx512<true>>(activations, format, n_in),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => on::<crate::cpu::simd::neon::Neon>(activations, format, n_in),
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

fn on<S: Simd>(activations: Activations, format: WeightFormat, n_in: usize) -> Kernels {
    match format {
        WeightFormat::Quantized { spec, .. } if activations == Activations::Int8 => {
            match (spec.mode(), spec.bits()) {
                (QuantMode::Affine, 2) => of::<S, PowerOfTwoBits<2, 4>>(format, n_in),
                (QuantMode::Affine, 3) => of_odd::<S, 3, 4>(format, n_in),
                (QuantMode::Affine, 4) => of::<S, PowerOfTwoBits<4, 4>>(format, n_in),
                (QuantMode::Affine, 5) => of_odd::<S, 5, 4>(format, n_in),
                (QuantMode::Affine, 6) => of_odd::<S, 6, 4>(format, n_in),
                (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => of::<S, E2m1<4>>(format, n_in),
                (QuantMode::Affine | QuantMode::Mxfp8, _) => on::<S>(Activations::Int16, format, n_in),
            }
        }
        WeightFormat::Dense(DType::F32) => of::<S, DenseF32>(format, n_in),
        WeightFormat::Dense(DType::F16) => of::<S, DenseF16>(format, n_in),
        WeightFormat::Dense(_) => of::<S, DenseBf16>(format, n_in),
        WeightFormat::Quantized { spec, .. } => match (spec.mode(), spec.bits()) {
            (QuantMode::Affine, 2) => of::<S, PowerOfTwoBits<2, 2>>(format, n_in),
            (QuantMode::Affine, 3) => of_odd::<S, 3, 2>(format, n_in),
            (QuantMode::Affine, 4) => of::<S, PowerOfTwoBits<4, 2>>(format, n_in),
            (QuantMode::Affine, 5) => of_odd::<S, 5, 2>(format, n_in),
            (QuantMode::Affine, 6) => of_odd::<S, 6, 2>(format, n_in),
            (QuantMode::Affine, _) => of::<S, PowerOfTwoBits<8, 2>>(format, n_in),
            (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => of::<S, E2m1<2>>(format, n_in),
            (QuantMode::Mxfp8, _) => of::<S, E4m3>(format, n_in),
        },
    }
}

fn of<S: Simd, C: Cells<S>>(format: WeightFormat, n_in: usize) -> Kernels {
    Kernels {
        layout: RowLayout::new::<S, C>(format, n_in),
        dot: [dot::<S, C, 1, 4>, dot::<S, C, 2, 4>, dot::<S, C, 4, 2>],
        prepare_dot: prepare::<S, C, false>,
        tile: tile::<S, C>,
        prepare_tile: prepare::<S, C, true>,
        tile_rows: tile_rows::<S>(),
    }
}

/// Long chunks where a group has room for them: a chunk's sums are scaled once.
fn of_odd<S: Simd, const BITS: usize, const N: usize>(format: WeightFormat, n_in: usize) -> Kernels
where
    Integers<N>: Element<S>,
{
    match format {
        WeightFormat::Quantized { spec, .. } if spec.group_size() >= 64 => {
            of::<S, OddBits<BITS, N, 64>>(format, n_in)
        }
        _ => of::<S, OddBits<BITS, N, 32>>(format, n_in),
    }
}

/// The [`PrepareFn`] for dots or for tiles.
unsafe fn prepare<S: Simd, C: Cells<S>, const TILES: bool>(layout: &RowLayout, x: *const f32, out: *mut f32) {
    // SAFETY: the caller vouches for the instructions.
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
            let order = if TILES { Order::Words } else { Order::Vectors };
            C::Element::prepare::<C>(layout, order, x, out);
        },
    );
}

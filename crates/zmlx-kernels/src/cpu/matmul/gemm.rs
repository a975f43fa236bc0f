//! Many rows of activations times a tile of dequantised rows.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use crate::cpu::level::Level;
use crate::cpu::simd::Simd;
use crate::cpu::simd::scalar::Scalar;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 12;
/// Rows of activations, and rows of the tile, that one step multiplies: 4 · 3 sums fill the 16 registers of AVX2.
const X_STEP: usize = 4;
const ROW_STEP: usize = 3;
/// Floats of a row that one pass takes: four rows of activations and the tile then stay in the first-level cache.
const BLOCK: usize = 512;

/// `out[x][row] = Σ_k tile[row][k] · xs[x][k]` over `stride` floats, for all `xs` and `TILE_ROWS` rows.
///
/// # Safety
/// `tile` has `TILE_ROWS · stride` floats, each of `xs` has `stride`, a multiple of the lanes; the processor has the
/// instance's instructions.
pub(crate) type GemmFn =
    unsafe fn(tile: *const f32, stride: usize, xs: &[*const f32], out: &mut [[f32; TILE_ROWS]]);

/// The instance for a level.
pub(crate) fn gemm(level: Level) -> GemmFn {
    match level {
        Level::Scalar => gemm_tile::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => gemm_tile::<crate::cpu::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => gemm_tile::<crate::cpu::simd::avx512::Avx512<false>>,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => gemm_tile::<crate::cpu::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

unsafe fn gemm_tile<S: Simd>(
    tile: *const f32,
    stride: usize,
    xs: &[*const f32],
    out: &mut [[f32; TILE_ROWS]],
) {
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            out.fill([0.0; TILE_ROWS]);
            for from in (0..stride).step_by(BLOCK) {
                let to = (from + BLOCK).min(stride);
                for (xs, out) in xs.chunks(X_STEP).zip(out.chunks_mut(X_STEP)) {
                    // A short last step repeats its last row; the repeated sums are not stored.
                    let x: [*const f32; X_STEP] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)]);
                    for row in (0..TILE_ROWS).step_by(ROW_STEP) {
                        let mut sums = [[s.splat(0.0); ROW_STEP]; X_STEP];
                        for k in (from..to).step_by(S::LANES) {
                            // SAFETY: k + LANES ≤ stride, as both are multiples of LANES.
                            unsafe {
                                let mut w = [s.splat(0.0); ROW_STEP];
                                for r in 0..ROW_STEP {
                                    w[r] = s.load(tile.add((row + r) * stride + k));
                                }
                                for i in 0..X_STEP {
                                    let x = s.load(x[i].add(k));
                                    for r in 0..ROW_STEP {
                                        sums[i][r] = s.fma(w[r], x, sums[i][r]);
                                    }
                                }
                            }
                        }
                        for (out, sums) in out.iter_mut().zip(&sums) {
                            for r in 0..ROW_STEP {
                                out[row + r] += s.sum(sums[r]);
                            }
                        }
                    }
                }
            }
        },
    );
}

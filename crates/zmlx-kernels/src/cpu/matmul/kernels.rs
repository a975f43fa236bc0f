//! The inner kernels: four rows of a weight times one to four rows of activations, and a row turned into floats.
//!
//! Each is generic over instruction set and format; [`few`] and [`many`] give the instances for a weight, as function
//! pointers that are called once per four rows (some kilobytes of weights), never per element.
#![allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]

use std::sync::LazyLock;

use super::decode::{
    Decode, DenseBf16, DenseF16, DenseF32, E2m1, E4m3, MAX_OVERREAD, OddBits, PowerOfTwoBits,
};
use super::floats::Floats;
use super::integers::Integers;
use crate::cpu::level::Level;
use crate::cpu::simd::Simd;
use crate::cpu::simd::scalar::Scalar;
use crate::quant::float::{e4m3_to_f32, e8m0_to_f32};
use crate::weight::WeightFormat;
use crate::{DType, QuantMode};

/// Rows of a weight that a dot kernel takes at once.
pub(crate) const ROWS: usize = 4;
/// Most rows of activations that a dot kernel takes at once.
pub(crate) const MAX_X: usize = 4;
/// Largest chunk of any format and level, in bytes.
const MAX_CHUNK_BYTES: usize = 256;
/// Weight bytes fetched ahead of use in each row.
const PREFETCH_BYTES: usize = 1024;
/// As [`PREFETCH_BYTES`], of scales and of biases: some rows ahead.
const PREFETCH_SCALES: usize = 256;

/// Chunks of rows times chunks of activations: how a format is multiplied.
pub(super) trait Sums<S: Simd> {
    /// Weights of a chunk whose products are added up in one 32-bit lane.
    const LANE_WEIGHTS: usize;
    /// Bytes of a chunk.
    const CHUNK_BYTES: usize;
    /// Whether weights have scales (and perhaps biases).
    const SCALED: bool;
    /// Whether reading a chunk reads past it, up to [`MAX_OVERREAD`] bytes.
    const OVERREAD: bool;
    /// Whether activations have a scale for each group of weights, behind the sums of the groups.
    const X_SCALED: bool;
    /// Bytes of a prepared activation: 4, or 2.
    const X_BYTES: usize;

    /// `sums[m][r] = Σ w[r][k] · x[m][k]` over the chunk of each row, lane by lane, before scale and bias.
    ///
    /// `n` is a loop bound that the compiler does not know: with several rows of activations an unrolled loop would
    /// be reordered until nothing fits the registers.
    ///
    /// # Safety
    /// A chunk, and the overread, are readable at each of `at`, and a chunk of prepared activations at each of `x`.
    unsafe fn sum_chunk<const X: usize, const R: usize>(
        s: S,
        n: usize,
        at: &[*const u8; R],
        x: &[*const f32; X],
    ) -> [[S::F; R]; X];

    /// Puts a row of activations, `layout.n_in` of them, into the order of [`Sums::sum_chunk`]: values, then for each
    /// group their sum, then its scale. `out` has `layout.stride` floats.
    fn prepare(layout: &RowLayout, x: &[f32], out: &mut [f32]);
}

/// The buffers of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) data: *const u8,
    pub(crate) scales: *const u8,
    pub(crate) biases: *const u8,
    /// Whether [`SCALES_OVERREAD`] bytes behind the scales and the biases are readable.
    pub(crate) can_overread: bool,
}

/// Bytes behind a row's scales that reading whole vectors may take in: the largest vector's.
pub(crate) const SCALES_OVERREAD: usize = 64;

impl Row {
    /// The row `n` rows further on.
    ///
    /// # Safety
    /// It lies within the same matrix, whose rows take `row_bytes` of data, scales and biases, and the overread is as
    /// said.
    pub(crate) unsafe fn add(self, n: usize, row_bytes: [usize; 3], can_overread: bool) -> Self {
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
pub(crate) struct RowLayout {
    /// Weights of a row.
    pub(super) n_in: usize,
    /// Weights of a row or activations: whole chunks.
    n_chunks: usize,
    /// Vectors of a chunk.
    n_vecs: usize,
    /// Chunks that can be read in place; the others go through a padded copy.
    n_direct: usize,
    /// Bytes of a row's data.
    row_bytes: usize,
    n_groups: usize,
    pub(super) group_size: usize,
    /// Lanes that share a scale, in successive vectors of one lane per chunk: a power of two, its logarithm.
    log2_lanes_per_group: u32,
    scales: ScaleKind,
    /// Groups of a row, rounded up to whole vectors and one more; 0 without scales.
    pub(super) padded_groups: usize,
    /// Floats that a prepared row's values take.
    pub(super) n_values: usize,
    /// Floats of a prepared row, and of a dequantised row.
    pub(super) stride: usize,
}

impl RowLayout {
    /// Floats of a prepared row, and of a dequantised row.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Floats of scratch that the kernels need.
    pub(crate) fn scratch_len(&self) -> usize {
        ROWS * self.padded_groups
    }
}

/// `out[x][row] = Σ_k weight[row][k] · x[k]` for four rows and as many prepared rows of activations as the instance
/// takes. `scratch` has room for [`RowLayout::scratch_len`] floats.
///
/// # Safety
/// Rows and activations are as the layout says; the processor has the instance's instructions.
pub(crate) type DotFn = unsafe fn(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    x: &[*const f32; MAX_X],
    scratch: *mut f32,
    out: &mut [[f32; ROWS]; MAX_X],
);

/// Puts a row of activations into the weight's order and appends the sums of its groups.
///
/// # Safety
/// `x` has the layout's number of inputs, `out` room for its stride.
pub(crate) type PrepareFn = unsafe fn(layout: &RowLayout, x: *const f32, out: *mut f32);

/// Turns a row into floats in the weight's order, followed by the biases: its dot product with a prepared row of
/// activations is the row's output.
///
/// # Safety
/// As [`DotFn`]; `out` has room for the layout's stride.
pub(crate) type DequantizeFn = unsafe fn(layout: &RowLayout, row: &Row, scratch: *mut f32, out: *mut f32);

/// The kernels of one format at one level, and what they know of its rows.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// For one, two and four rows of activations.
    pub(crate) dot: [DotFn; 3],
    pub(crate) prepare: PrepareFn,
    pub(crate) layout: RowLayout,
}

/// The kernels for few rows of activations: on integers where the format has them, with activations of 16 bits.
pub(crate) fn few(level: Level, format: WeightFormat, n_in: usize) -> Kernels {
    match level {
        Level::Scalar => few_on::<Scalar>(format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => few_on::<crate::cpu::simd::avx2::Avx2>(format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => few_on::<crate::cpu::simd::avx512::Avx512<false>>(format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => few_on::<crate::cpu::simd::avx512::Avx512<true>>(format, n_in),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => few_on::<crate::cpu::simd::neon::Neon>(format, n_in),
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

/// The kernels for many rows of activations, on floats, and how a row is turned into floats.
pub(crate) fn many(level: Level, format: WeightFormat, n_in: usize) -> (Kernels, DequantizeFn) {
    match level {
        Level::Scalar => many_on::<Scalar>(format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => many_on::<crate::cpu::simd::avx2::Avx2>(format, n_in),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => many_on::<crate::cpu::simd::avx512::Avx512<false>>(format, n_in),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => many_on::<crate::cpu::simd::neon::Neon>(format, n_in),
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

fn few_on<S: Simd>(format: WeightFormat, n_in: usize) -> Kernels {
    let WeightFormat::Quantized { spec, .. } = format else { return many_on::<S>(format, n_in).0 };
    match (spec.mode(), spec.bits()) {
        (QuantMode::Affine, 2) => dots::<S, Integers<PowerOfTwoBits<2>>>(format, n_in),
        (QuantMode::Affine, 3) => dots::<S, Integers<OddBits<3>>>(format, n_in),
        (QuantMode::Affine, 4) => dots::<S, Integers<PowerOfTwoBits<4>>>(format, n_in),
        (QuantMode::Affine, 5) => dots::<S, Integers<OddBits<5>>>(format, n_in),
        (QuantMode::Affine, 6) => dots::<S, Integers<OddBits<6>>>(format, n_in),
        (QuantMode::Affine, _) => dots::<S, Integers<PowerOfTwoBits<8>>>(format, n_in),
        (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => dots::<S, Integers<E2m1>>(format, n_in),
        // Its values span more than 16 bits.
        (QuantMode::Mxfp8, _) => many_on::<S>(format, n_in).0,
    }
}

fn many_on<S: Simd>(format: WeightFormat, n_in: usize) -> (Kernels, DequantizeFn) {
    match format {
        WeightFormat::Dense(DType::F32) => floats::<S, DenseF32>(format, n_in),
        WeightFormat::Dense(DType::F16) => floats::<S, DenseF16>(format, n_in),
        WeightFormat::Dense(_) => floats::<S, DenseBf16>(format, n_in),
        WeightFormat::Quantized { spec, .. } => match (spec.mode(), spec.bits()) {
            (QuantMode::Affine, 2) => floats::<S, PowerOfTwoBits<2>>(format, n_in),
            (QuantMode::Affine, 3) => floats::<S, OddBits<3>>(format, n_in),
            (QuantMode::Affine, 4) => floats::<S, PowerOfTwoBits<4>>(format, n_in),
            (QuantMode::Affine, 5) => floats::<S, OddBits<5>>(format, n_in),
            (QuantMode::Affine, 6) => floats::<S, OddBits<6>>(format, n_in),
            (QuantMode::Affine, _) => floats::<S, PowerOfTwoBits<8>>(format, n_in),
            (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => floats::<S, E2m1>(format, n_in),
            (QuantMode::Mxfp8, _) => floats::<S, E4m3>(format, n_in),
        },
    }
}

fn floats<S: Simd, D: Decode<S>>(format: WeightFormat, n_in: usize) -> (Kernels, DequantizeFn) {
    (dots::<S, Floats<D>>(format, n_in), dequantize::<S, D>)
}

fn dots<S: Simd, P: Sums<S>>(format: WeightFormat, n_in: usize) -> Kernels {
    const { assert!(P::CHUNK_BYTES <= MAX_CHUNK_BYTES) };
    let chunk = P::LANE_WEIGHTS * S::LANES;
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
    let n_values = n_chunks * chunk * P::X_BYTES / 4;
    // One vector of zeros more than needed, so that scales may be loaded as a vector from any group.
    let padded_groups = if P::SCALED { n_groups.next_multiple_of(S::LANES) + S::LANES } else { 0 };
    let layout = RowLayout {
        n_in,
        n_chunks,
        n_vecs: P::LANE_WEIGHTS,
        n_direct: if P::OVERREAD { n_chunks - 1 } else { n_in / chunk },
        row_bytes,
        n_groups,
        group_size,
        log2_lanes_per_group: (group_size / P::LANE_WEIGHTS).checked_ilog2().unwrap_or(0),
        scales,
        padded_groups,
        n_values,
        stride: n_values + padded_groups * if P::X_SCALED { 2 } else { 1 },
    };
    Kernels {
        dot: [dot::<S, P, 1, 4>, dot::<S, P, 2, 4>, dot::<S, P, 4, 2>],
        prepare: prepare::<S, P>,
        layout,
    }
}

/// The [`DotFn`] for `X` rows of activations, `R` rows of the weight at a time: `X · R` sums stay in registers.
unsafe fn dot<S: Simd, P: Sums<S>, const X: usize, const R: usize>(
    layout: &RowLayout,
    rows: &[Row; ROWS],
    x: &[*const f32; MAX_X],
    scratch: *mut f32,
    out: &mut [[f32; ROWS]; MAX_X],
) {
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // In vector code loops, not functions of arrays: those are code of their own, without the level's
            // instructions, unless the compiler inlines them.
            let mut few_x = [x[0]; X];
            few_x.copy_from_slice(&x[..X]);
            for first in (0..ROWS).step_by(R) {
                let mut few_rows = [rows[first]; R];
                few_rows.copy_from_slice(&rows[first..first + R]);
                // SAFETY: the buffers are as the layout says (the caller's promise).
                let total = unsafe { dot_rows::<S, P, X, R>(s, layout, &few_rows, &few_x, scratch) };
                for m in 0..X {
                    for r in 0..R {
                        out[m][first + r] = s.sum(total[m][r]);
                    }
                }
            }
        },
    );
}

/// The lanes' sums of `R` rows with `X` rows of activations.
///
/// # Safety
/// As [`DotFn`].
#[inline(always)]
unsafe fn dot_rows<S: Simd, P: Sums<S>, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    rows: &[Row; R],
    x: &[*const f32; X],
    scratch: *mut f32,
) -> [[S::F; R]; X] {
    let padded_groups = layout.padded_groups;
    let mut total = [[s.splat(0.0); R]; X];
    // SAFETY: the buffers are as the layout says (the caller's promise); the padded copies hold a chunk and the
    // overread.
    unsafe {
        if P::SCALED {
            for r in 0..R {
                scales(
                    s,
                    layout,
                    &rows[r],
                    scratch.add(r * padded_groups),
                    #[inline(always)]
                    |g, scales, biases| {
                        for m in 0..X {
                            total[m][r] = s.fma(biases, s.load(x[m].add(layout.n_values + g)), total[m][r]);
                        }
                        if P::X_SCALED && X == 1 {
                            // One row of activations: its scales are multiplied in once, not chunk by chunk.
                            s.mul(scales, s.load(x[0].add(layout.n_values + padded_groups + g)))
                        } else {
                            scales
                        }
                    },
                );
            }
        }
        let mut scale_rows = ScaleRows { rows: [scratch.cast_const(); R], idx: scale_lanes(s, layout) };
        let mut at = [rows[0].data; R];
        for r in 0..R {
            scale_rows.rows[r] = scratch.add(r * padded_groups);
            at[r] = rows[r].data;
        }
        for c in 0..layout.n_direct {
            for at in &at {
                s.prefetch(at.wrapping_add(PREFETCH_BYTES));
            }
            add_chunk::<S, P, X, R>(s, (layout, c), &at, x, &scale_rows, &mut total);
            for at in &mut at {
                *at = at.add(P::CHUNK_BYTES);
            }
        }
        for c in layout.n_direct..layout.n_chunks {
            let mut padded = [[0u8; MAX_CHUNK_BYTES + MAX_OVERREAD]; R];
            let from = c * P::CHUNK_BYTES;
            for r in 0..R {
                let n = layout.row_bytes - from;
                std::ptr::copy_nonoverlapping(rows[r].data.add(from), padded[r].as_mut_ptr(), n);
                at[r] = padded[r].as_ptr();
            }
            add_chunk::<S, P, X, R>(s, (layout, c), &at, x, &scale_rows, &mut total);
        }
    }
    total
}

/// The rows' scales as floats, and which of a vector of them each lane takes.
struct ScaleRows<S: Simd, const R: usize> {
    rows: [*const f32; R],
    idx: S::I,
}

/// Adds chunk `c`'s products to the sums.
///
/// # Safety
/// `at` holds the chunk of each row, `x` the activations and `scale_rows` the scales, as the layout says.
#[inline(always)]
unsafe fn add_chunk<S: Simd, P: Sums<S>, const X: usize, const R: usize>(
    s: S,
    (layout, c): (&RowLayout, usize),
    at: &[*const u8; R],
    x: &[*const f32; X],
    scale_rows: &ScaleRows<S, R>,
    total: &mut [[S::F; R]; X],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let x_at = c * P::LANE_WEIGHTS * S::LANES * P::X_BYTES / 4;
        let mut x_chunks = *x;
        for x in &mut x_chunks {
            *x = x.add(x_at);
        }
        let sums = P::sum_chunk(s, layout.n_vecs, at, &x_chunks);
        let mut x_scales = [s.splat(1.0); X];
        if P::X_SCALED && X > 1 {
            for m in 0..X {
                let scales = x[m].add(layout.n_values + layout.padded_groups);
                x_scales[m] = chunk_scale(s, layout, scales, c, scale_rows.idx);
            }
        }
        for r in 0..R {
            if P::SCALED {
                let scale = chunk_scale(s, layout, scale_rows.rows[r], c, scale_rows.idx);
                for m in 0..X {
                    let scale = if P::X_SCALED && X > 1 { s.mul(scale, x_scales[m]) } else { scale };
                    total[m][r] = s.fma(sums[m][r], scale, total[m][r]);
                }
            } else {
                for m in 0..X {
                    total[m][r] = s.add(sums[m][r], total[m][r]);
                }
            }
        }
    }
}

/// The [`DequantizeFn`].
unsafe fn dequantize<S: Simd, D: Decode<S>>(layout: &RowLayout, row: &Row, scratch: *mut f32, out: *mut f32) {
    // SAFETY: the caller vouches for the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            // SAFETY: the buffers are as the layout says (the caller's promise).
            unsafe {
                if D::SCALED {
                    let biases_out = out.add(layout.n_values);
                    s.store(biases_out.add(layout.padded_groups - S::LANES), s.splat(0.0));
                    scales(
                        s,
                        layout,
                        row,
                        scratch,
                        #[inline(always)]
                        |g, scales, biases| {
                            s.store(biases_out.add(g), biases);
                            scales
                        },
                    );
                }
                let scale_idx = scale_lanes(s, layout);
                let mut padded = [0u8; MAX_CHUNK_BYTES + MAX_OVERREAD];
                for c in 0..layout.n_chunks {
                    let from = c * D::CHUNK_BYTES;
                    let mut at = row.data.add(from);
                    if c >= layout.n_direct {
                        let n = layout.row_bytes - from;
                        std::ptr::copy_nonoverlapping(at, padded.as_mut_ptr(), n);
                        at = padded.as_ptr();
                    }
                    let scale =
                        if D::SCALED { chunk_scale(s, layout, scratch, c, scale_idx) } else { s.splat(1.0) };
                    for i in 0..D::VECS {
                        let w = D::decode(s, at, i);
                        s.store(
                            out.add((c * D::VECS + i) * S::LANES),
                            if D::SCALED { s.mul(w, scale) } else { w },
                        );
                    }
                }
            }
        },
    );
}

/// The [`PrepareFn`].
unsafe fn prepare<S: Simd, P: Sums<S>>(layout: &RowLayout, x: *const f32, out: *mut f32) {
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
            P::prepare(layout, x, out);
        },
    );
}

/// Which of the scales loaded from a chunk's first group each lane takes.
#[inline(always)]
fn scale_lanes<S: Simd>(s: S, layout: &RowLayout) -> S::I {
    let mut idx = [0u32; 16];
    for j in 0..16 {
        idx[j] = j as u32 >> layout.log2_lanes_per_group;
    }
    // SAFETY: 16 words are readable, and no vector has more lanes.
    unsafe { s.load_words(idx.as_ptr().cast()) }
}

/// The scale of each lane of chunk `c`.
///
/// # Safety
/// `scales` holds the row's scales, padded as the layout says.
#[inline(always)]
unsafe fn chunk_scale<S: Simd>(s: S, layout: &RowLayout, scales: *const f32, c: usize, idx: S::I) -> S::F {
    // SAFETY: the first group of a chunk exists, and a whole vector behind it is readable.
    unsafe {
        let first = scales.add((c * S::LANES) >> layout.log2_lanes_per_group);
        if 1 << layout.log2_lanes_per_group >= S::LANES {
            s.splat(first.read())
        } else {
            s.permute(s.load(first), idx)
        }
    }
}

/// Writes `f(first_group, scales, biases)` for the row's scales and biases as floats, by vectors of groups, padded with
/// zeros. A format without biases has zeros.
///
/// # Safety
/// The row is as the layout says; `out` has room for the padded groups.
#[inline(always)]
unsafe fn scales<S: Simd>(
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
                let table = if layout.scales == ScaleKind::E8m0 { &E8M0 } else { &E4M3 };
                for g in (0..n).step_by(S::LANES) {
                    let mut scales = [0f32; 16];
                    for (i, scale) in scales[..S::LANES.min(n - g)].iter_mut().enumerate() {
                        *scale = table[usize::from(row.scales.add(g + i).read())];
                    }
                    s.store(out.add(g), f(g, s.load(scales.as_ptr()), s.splat(0.0)));
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

static E8M0: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| e8m0_to_f32(code as u8)));
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| e4m3_to_f32(code as u8)));

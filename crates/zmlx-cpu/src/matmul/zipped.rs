//! Zipped words, for vectors whose sums of products of bytes have 16 bits (AVX2, 2 bits and mxfp4).
//!
//! Two products of bytes with both planes of activations are summed in 16 bits; to become 32 bits, sums of neighbouring lanes
//! are added. Then a lane's neighbours must be of its group. So a chunk is two vectors of words, zipped: of each half of both,
//! the first vector has the first two words, the other the last two. Lane by lane both are of the same groups, and their sums
//! become sums of 32 bits together. Activations are prepared in the same order ([`word`]).
//!
//! Whether words are zipped is known to the compiler ([`Element::ZIPPED`]); what differs then is in this module, but for the
//! load itself, which is a matter of the instruction set.

use super::decoders::Decoder;
use super::elements::Element;
use super::layout::{PREFETCH_BYTES, RowLayout};
use crate::simd::{Simd, prefetch};

/// Lanes of the vectors that zip.
const LANES: usize = 8;

/// Which of a chunk's words is in a lane of vector `load`, zipped or not.
#[inline(always)]
pub(super) fn word<S: Simd, D: Decoder<S>>(load: usize, lane: usize) -> usize {
    if D::Element::ZIPPED { zipped_word(load, lane) } else { load * S::LANES + lane }
}

const fn zipped_word(load: usize, lane: usize) -> usize {
    lane / 2 % 2 * LANES + lane / 4 * 4 + 2 * load + lane % 2
}

/// Most lanes of a vector that share a scale, as a power of two, and one more.
const N_LANE_COUNTS: usize = 3;

/// By the logarithm of the lanes of a chunk's vector that share a scale: the group of each lane, the same in both vectors.
static GROUPS_OF_LANES: [[u32; LANES]; N_LANE_COUNTS] = {
    let mut groups = [[0; LANES]; N_LANE_COUNTS];
    // A single lane's words would not be of one group.
    let mut log2 = 1;
    while log2 < N_LANE_COUNTS {
        let mut lane = 0;
        while lane < LANES {
            let words_per_group = 2 << log2;
            let group = zipped_word(0, lane) / words_per_group;
            assert!(group == zipped_word(1, lane) / words_per_group);
            groups[log2][lane] = group as u32;
            lane += 1;
        }
        log2 += 1;
    }
    groups
};

/// The group of each lane of a chunk.
#[inline(always)]
fn groups_of_lanes(layout: &RowLayout) -> &'static [u32; LANES] {
    &GROUPS_OF_LANES[layout.lanes_per_group.trailing_zeros() as usize]
}

/// Where the scales of sum `idx` begin: those of each sum lie together, as rows are multiplied one after the other.
#[inline(always)]
pub(super) fn scales_at(layout: &RowLayout, idx: usize) -> usize {
    idx * layout.scales_stride()
}

/// Adds the dots of the rows at `rows` with `x` to their sums, lane by lane. Sum `m · R + r` has its scales at [`scales_at`].
///
/// Row after row, with two rows of activations at most: sums of more, for each plane, would not fit the registers.
///
/// # Safety
/// As [`DotFn`](super::dots::DotFn); words are zipped.
#[allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]
#[inline(always)]
pub(super) unsafe fn add_dots<S: Simd, D: Decoder<S>, const X: usize, const R: usize>(
    s: S,
    layout: &RowLayout,
    rows: [*const u8; R],
    x: &[*const f32; X],
    scales: *const f32,
    total: &mut [[S::F; R]; X],
) {
    const { assert!(!D::Element::ZIPPED || (S::LANES == LANES && D::LOADS == 2)) };
    for r in 0..R {
        // SAFETY: the caller's promise.
        unsafe {
            let scales = scales.add(scales_at(layout, r));
            if X == 1 {
                let [sums] = dot::<S, D, 1>(s, layout, rows[r], [x[0]], [scales]);
                total[0][r] = s.add(total[0][r], sums);
            }
            for m in (0..X / 2 * 2).step_by(2) {
                let stride = scales_at(layout, R);
                let scales = [scales.add(m * stride), scales.add((m + 1) * stride)];
                let [a, b] = dot::<S, D, 2>(s, layout, rows[r], [x[m], x[m + 1]], scales);
                total[m][r] = s.add(total[m][r], a);
                total[m + 1][r] = s.add(total[m + 1][r], b);
            }
        }
    }
}

/// The lanes' sums of the row at `row` times its scales, those of each row of activations.
///
/// # Safety
/// As [`add_dots`].
#[allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]
#[inline(always)]
unsafe fn dot<S: Simd, D: Decoder<S>, const X: usize>(
    s: S,
    layout: &RowLayout,
    row: *const u8,
    mut x: [*const f32; X],
    mut scales: [*const f32; X],
) -> [S::F; X] {
    let mut total = [s.splat(0.0); X];
    let mut at = row;
    // SAFETY: the buffers are as the layout says (the caller's promise).
    unsafe {
        let groups = s.load_words(groups_of_lanes(layout).as_ptr().cast());
        let n_groups = S::LANES >> layout.lanes_per_group.trailing_zeros();
        // Of one row of activations a chunk's sums are scaled after the next one's products, which need not wait for them: e2m1 codes
        // with 16 instead of 15 GB/s from the cache (Zen 3, 2026-11). For two rows there are no registers.
        let mut last = [(D::Element::zero(s), s.splat(0.0)); X];
        for _ in 0..layout.n_chunks {
            let sums = sum_chunk::<S, D, X>(s, layout, &mut at, &mut x);
            for m in 0..X {
                let next = (sums[m], s.permute(s.load(scales[m]), groups));
                scales[m] = scales[m].wrapping_add(n_groups);
                let (sum, scale) = if X == 1 { last[m] } else { next };
                last[m] = next;
                total[m] = s.fma(D::Element::total(s, sum), scale, total[m]);
            }
        }
        if X == 1 {
            let (sum, scale) = last[0];
            total[0] = s.fma(D::Element::total(s, sum), scale, total[0]);
        }
    }
    total
}

/// `sums[m] = Σ w[k] · x[m][k]` over a chunk of the row, lane by lane, before scale and bias; moves on to the next.
///
/// # Safety
/// A chunk is readable at `at`, and a chunk of prepared activations at each of `x`.
#[allow(clippy::needless_range_loop, reason = "iterators may become calls without the level's instructions")]
#[inline(always)]
unsafe fn sum_chunk<S: Simd, D: Decoder<S>, const X: usize>(
    s: S,
    layout: &RowLayout,
    at: &mut *const u8,
    x: &mut [*const f32; X],
) -> [<D::Element as Element<S>>::Sum; X] {
    let mut sums = [D::Element::zero(s); X];
    for load in 0..D::LOADS {
        // SAFETY: the caller's promise.
        let words = unsafe {
            if load * D::LOAD_BYTES % 64 < D::LOAD_BYTES {
                // A line once, and between the loads.
                prefetch(at.wrapping_add(PREFETCH_BYTES + load * D::LOAD_BYTES));
            }
            D::Element::load_zipped(s, *at, load)
        };
        let mut cells = s.splat_i(0);
        // Both planes of some cells, then those of the next.
        for step in 0..D::Element::PLANES * D::CELLS {
            let (p, i) = (step % D::Element::PLANES, step / D::Element::PLANES);
            if p == 0 {
                cells = D::cells(s, words, i);
            }
            for m in 0..X {
                let x = x[m].wrapping_add(p * layout.plane + (load * D::CELLS + i) * S::LANES);
                // SAFETY: the caller's promise.
                let x = unsafe { s.load_words(x.cast()) };
                sums[m] = D::Element::add(s, sums[m], cells, x, p);
            }
        }
    }
    *at = at.wrapping_add(D::LOADS * D::LOAD_BYTES);
    for m in 0..X {
        x[m] = x[m].wrapping_add(D::LOADS * D::CELLS * S::LANES);
    }
    sums
}

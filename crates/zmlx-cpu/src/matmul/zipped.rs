//! Zipped words, for vectors that sum products of bytes in 16 bits (AVX2, with 2 bits and mxfp4).
//!
//! Two products of bytes with both planes of activations are summed in 16 bits. To get 32 bits, neighbouring lanes are
//! added, so these must be in the same group. That is why a chunk is two vectors of words, which are zipped: from each
//! half of both, the first zipped vector takes the first two words, and the second takes the last two. Then the same
//! lanes of both vectors are in the same groups, and their sums can become 32 bits wide together. Activations are
//! prepared in the same order ([`word`]).
//!
//! The compiler knows whether words are zipped ([`Element::ZIPPED`]). The code for zipped words is in this module,
//! except for the load, which depends on the instruction set.

use super::decoders::Decoder;
use super::elements::Element;
use super::layout::{PREFETCH_BYTES, RowLayout};
use crate::simd::{Simd, prefetch};

/// Number of lanes of the vectors that are zipped.
const LANES: usize = 8;

/// The index in the chunk of the word in lane `lane` of vector `load`, zipped or not.
#[inline(always)]
pub(super) fn word<S: Simd, D: Decoder<S>>(load: usize, lane: usize) -> usize {
    if D::Element::ZIPPED { zipped_word(load, lane) } else { load * S::LANES + lane }
}

const fn zipped_word(load: usize, lane: usize) -> usize {
    lane / 2 % 2 * LANES + lane / 4 * 4 + 2 * load + lane % 2
}

/// The number of possible values of `lanes_per_group`, which are powers of two.
const N_LANE_COUNTS: usize = 3;

/// The group of each lane, by the logarithm of the number of lanes of a chunk's vector that share a scale. It is the
/// same in both vectors.
static GROUPS_OF_LANES: [[u32; LANES]; N_LANE_COUNTS] = {
    let mut groups = [[0; LANES]; N_LANE_COUNTS];
    // The words of a single lane can belong to different groups, so this begins with two lanes.
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

/// Where the scales of sum `idx` begin. The scales of each sum are contiguous, because rows are multiplied one after
/// the other.
#[inline(always)]
pub(super) fn scales_at(layout: &RowLayout, idx: usize) -> usize {
    idx * layout.scales_stride()
}

/// Adds the dots of the rows at `rows` with `x` to their sums, lane by lane. The scales of sum `m · R + r` are at
/// [`scales_at`].
///
/// It takes one row after the other, with at most two rows of activations. With more, the sums of each plane would not
/// fit into the registers.
///
/// # Safety
/// As [`DotFn`](super::dots::DotFn). The words are zipped.
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

/// The sums of the row at `row`, still in lanes, times the row's scales for each row of activations.
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
        // With one row of activations, a chunk's sums are scaled after the next chunk's products, which do not depend
        // on them. This makes e2m1 codes from the cache faster: 16 instead of 15 GB/s (Zen 3, 2026-11). With two rows
        // there are not enough registers.
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

/// `sums[m] = Σ w[k] · x[m][k]` over a chunk of the row, lane by lane, before scale and bias. Moves on to the next
/// chunk.
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
                // Each cache line is prefetched once, and the prefetches are spread over the loads.
                prefetch(at.wrapping_add(PREFETCH_BYTES + load * D::LOAD_BYTES));
            }
            D::Element::load_zipped(s, *at, load)
        };
        let mut cells = s.splat_i(0);
        // Both planes of some cells, then both planes of the next cells.
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

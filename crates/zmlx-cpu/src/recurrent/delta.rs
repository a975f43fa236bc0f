//! The kernel of the gated delta rule: one pass over some rows of a state.
//!
//! Each row `s` of S belongs to one element of the value. With the decayed row `g·s`, `m = g·(s·k)` and
//! `δ = β·(v - m)`, the new row is `g·s + δ·k`. Its product with q is `g·(s·q) + δ·(k·q)`. Both sums are computed while
//! the row is first read, so it comes from memory only once. Several rows are computed together: they share the loads
//! of k and q, and their sums are independent of each other.

use super::state::Place;
use crate::level::Level;
use crate::simd::Simd;
use crate::simd::scalar::Scalar;
use std::ops::Range;

/// Number of rows that are computed together.
const ROWS: usize = 4;

/// The inputs of all tokens of a step, with a fixed number of floats per token: normed keys and queries, `stride`
/// floats for each key head; the product of each key with its query; decay and write strength of each value head.
#[derive(Clone, Copy)]
pub(super) struct Prepared<'a> {
    pub(super) values: &'a [f32],
    pub(super) n_k_heads: usize,
    pub(super) n_v_heads: usize,
    /// Number of floats in a key or query, padded with zeros. A row of the state has the same size.
    pub(super) stride: usize,
}

impl<'a> Prepared<'a> {
    /// Number of floats per token.
    pub(super) fn len_of(n_k_heads: usize, n_v_heads: usize, stride: usize) -> usize {
        2 * n_k_heads * stride + n_k_heads + 2 * n_v_heads
    }

    #[inline(always)]
    fn of(&self, token: usize, k_head: usize, v_head: usize) -> Token<'a> {
        let (n, stride) = (self.n_k_heads, self.stride);
        let token = &self.values[token * Self::len_of(n, self.n_v_heads, stride)..];
        let (vectors, scalars) = token.split_at(2 * n * stride);
        Token {
            k: &vectors[k_head * stride..][..stride],
            q: &vectors[(n + k_head) * stride..][..stride],
            kq: scalars[k_head],
            decay: scalars[n + v_head],
            strength: scalars[n + self.n_v_heads + v_head],
        }
    }
}

/// The inputs of one token for one head.
struct Token<'a> {
    k: &'a [f32],
    q: &'a [f32],
    kq: f32,
    decay: f32,
    strength: f32,
}

/// The tokens of a span, for one head.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) prepared: Prepared<'a>,
    /// The index of the span's first token among all tokens of the step, and the number of its tokens.
    pub(super) first: usize,
    pub(super) n_tokens: usize,
    pub(super) k_head: usize,
    pub(super) v_head: usize,
    /// The values of the head's first row for token 0 of the step. Each row uses one element of each token's value.
    pub(super) v: &'a [f32],
    /// The distance between the values of two tokens.
    pub(super) v_stride: usize,
    /// Where the result of the head's first row for token 0 of the step goes, and the distance between the results of
    /// two tokens.
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
    /// The head's first row in both states.
    pub(super) place: Place,
    /// Whether the new state is written past the caches, because much else is read before it is used.
    pub(super) is_streamed: bool,
}

/// Computes some rows of a head for all tokens of the span.
///
/// # Safety
/// The processor has the level's instructions. Both states have the rows, which begin on cache lines. Nothing else
/// accesses these rows or their results.
pub(super) type RowsFn = unsafe fn(&Head<'_>, rows: Range<usize>);

/// The instance of the kernel for a level.
pub(super) fn rows(level: Level) -> RowsFn {
    match level {
        Level::Scalar => rows_on::<Scalar>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => rows_on::<crate::simd::avx2::Avx2>,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni | Level::Zen4 | Level::Amx => {
            rows_on::<crate::simd::avx512::Avx512<false>>
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon => rows_on::<crate::simd::neon::Neon>,
        #[allow(unreachable_patterns, reason = "which levels exist depends on the architecture")]
        _ => unreachable!("level {level:?} does not exist on this architecture"),
    }
}

unsafe fn rows_on<S: Simd>(head: &Head<'_>, rows: Range<usize>) {
    // SAFETY: the caller guarantees that the processor has the instructions.
    let s = unsafe { S::assume() };
    s.vectorize(
        #[inline(always)]
        || {
            let mut row = rows.start;
            // SAFETY: the caller's promise.
            unsafe {
                while row + ROWS <= rows.end {
                    head.block::<S, ROWS>(s, row);
                    row += ROWS;
                }
                while row < rows.end {
                    head.block::<S, 1>(s, row);
                    row += 1;
                }
            }
        },
    );
}

impl Head<'_> {
    /// `R` rows (1 or 4) from `row` on.
    ///
    /// # Safety
    /// As [`RowsFn`].
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize>(&self, s: S, row: usize) {
        let stride = self.prepared.stride;
        let at = row * stride;
        // SAFETY: both states have the rows.
        let (current, next) = unsafe { (self.place.current.add(at), self.place.next.add(at)) };
        let is_streamed = self.is_streamed && self.n_tokens == 1;
        for t in 0..self.n_tokens {
            let token = self.prepared.of(self.first + t, self.k_head, self.v_head);
            let from = if t == 0 { current } else { next.cast_const() };
            let (mut of_k, mut of_q) = ([s.splat(0.0); R], [s.splat(0.0); R]);
            let mut j = 0;
            while j < stride {
                // SAFETY: rows, key and query have `stride` floats, a whole number of vectors.
                unsafe {
                    let (k, q) = (s.load(token.k.as_ptr().add(j)), s.load(token.q.as_ptr().add(j)));
                    for r in 0..R {
                        let state = s.load(from.add(r * stride + j));
                        of_k[r] = s.fma(state, k, of_k[r]);
                        of_q[r] = s.fma(state, q, of_q[r]);
                    }
                }
                j += S::LANES;
            }
            let (of_k, of_q) = (sums(s, of_k), sums(s, of_q));
            let decay = s.splat(token.decay);
            let mut changes = [s.splat(0.0); R];
            for r in 0..R {
                let v = self.v[(self.first + t) * self.v_stride + row + r];
                let change = token.strength * (v - token.decay * of_k[r]);
                changes[r] = s.splat(change);
                let y = token.decay * of_q[r] + change * token.kq;
                // SAFETY: this is the result of this row and token.
                unsafe { *self.y.add((self.first + t) * self.y_stride + row + r) = y };
            }
            let mut j = 0;
            while j < stride {
                // SAFETY: as above. Rows begin on cache lines.
                unsafe {
                    let k = s.load(token.k.as_ptr().add(j));
                    for (r, change) in changes.iter().enumerate() {
                        let at = r * stride + j;
                        let state = s.fma(*change, k, s.mul(decay, s.load(from.add(at))));
                        if is_streamed {
                            s.stream(next.add(at), state);
                        } else {
                            s.store(next.add(at), state);
                        }
                    }
                }
                j += S::LANES;
            }
        }
    }
}

/// The sums of the lanes of `R` vectors; R is 1 or 4.
#[inline(always)]
fn sums<S: Simd, const R: usize>(s: S, v: [S::F; R]) -> [f32; R] {
    let mut out = [0.0; R];
    if R == 4 {
        out.copy_from_slice(&s.sums([v[0], v[1 % R], v[2 % R], v[3 % R]]));
    } else {
        for r in 0..R {
            out[r] = s.sum(v[r]);
        }
    }
    out
}

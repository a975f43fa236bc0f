//! Products on floats: any format, activations in f32.

use super::decode::Decode;
use super::kernels::{RowLayout, Sums};
use crate::cpu::simd::Simd;

/// The floats of a decoder.
pub(super) struct Floats<D>(std::marker::PhantomData<D>);

/// Floats of the largest chunk.
const MAX_CHUNK: usize = 512;

impl<S: Simd, D: Decode<S>> Sums<S> for Floats<D> {
    const LANE_WEIGHTS: usize = D::VECS;
    const CHUNK_BYTES: usize = D::CHUNK_BYTES;
    const SCALED: bool = D::SCALED;
    const OVERREAD: bool = D::OVERREAD;
    const X_SCALED: bool = false;
    const X_BYTES: usize = 4;

    #[inline(always)]
    unsafe fn sum_chunk<const X: usize, const R: usize>(
        s: S,
        n: usize,
        at: &[*const u8; R],
        x: &[*const f32; X],
    ) -> [[S::F; R]; X] {
        let mut sums = [[s.splat(0.0); R]; X];
        for i in 0..if X == 1 { D::VECS } else { n } {
            // SAFETY: the caller's promise.
            unsafe {
                let mut xs = [s.splat(0.0); X];
                for m in 0..X {
                    xs[m] = s.load(x[m].add(i * S::LANES));
                }
                for r in 0..R {
                    let w = D::decode(s, at[r], i);
                    for m in 0..X {
                        sums[m][r] = s.fma(w, xs[m], sums[m][r]);
                    }
                }
            }
        }
        sums
    }

    #[inline(always)]
    fn prepare(layout: &RowLayout, x: &[f32], out: &mut [f32]) {
        let (values, sums) = out.split_at_mut(layout.n_values);
        let chunk = D::VECS * S::LANES;
        let mut padded = [0f32; MAX_CHUNK];
        for (x, out) in x.chunks(chunk).zip(values.chunks_exact_mut(chunk)) {
            let mut src = x;
            if x.len() < chunk {
                padded[..x.len()].copy_from_slice(x);
                src = &padded[..chunk];
            }
            D::prepare_chunk(src, out);
        }
        if D::SCALED {
            sums.fill(0.0);
            for (sum, group) in sums.iter_mut().zip(x.chunks_exact(layout.group_size)) {
                // Four partial sums: short chains, and an order that does not depend on the level.
                let mut part = [0f32; 4];
                for v in group.chunks_exact(4) {
                    for (p, v) in part.iter_mut().zip(v) {
                        *p += v;
                    }
                }
                *sum = (part[0] + part[2]) + (part[1] + part[3]);
            }
        }
    }
}

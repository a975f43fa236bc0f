//! Rotary position embedding. Angles depend only on positions, so one table serves the queries and keys of all layers.

use super::sync_ptr::SyncPtr;
use super::{CpuBackend, CpuStep, CpuTensor, lock};
use zmlx_core::check::ensure;
use zmlx_core::{Result, Rope, RopePairing, Span};

const OP: &str = "rope";

/// The cosines and sines for the tokens of some spans, times the scale: `dims / 2` of each per token.
#[derive(Default)]
pub(super) struct Angles {
    /// The rope that the table was computed for.
    rope: Option<Rope>,
    spans: Vec<Span>,
    frequencies: Vec<f64>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Computes the table unless it is already there.
    fn set(&mut self, rope: &Rope, spans: &[Span]) {
        let is_same_rope = self.rope.as_ref() == Some(rope);
        if is_same_rope && self.spans == spans {
            return;
        }
        if !is_same_rope {
            self.frequencies = rope.frequencies();
            self.rope = Some(rope.clone());
        }
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.cos.clear();
        self.sin.clear();
        let scale = f64::from(rope.scale);
        for position in spans.iter().flat_map(|s| s.start..s.start + s.n_tokens) {
            for frequency in &self.frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push((cos * scale) as f32);
                self.sin.push((sin * scale) as f32);
            }
        }
    }
}

impl CpuBackend {
    /// [`Backend::rope`](zmlx_core::Backend::rope). Angles are computed in f64.
    pub(super) fn rotate(&self, x: &CpuTensor, step: &CpuStep, rope: &Rope) -> Result<CpuTensor> {
        let &[n_tokens, n_heads, width] = x.dims() else {
            return ensure(false, OP, "x", "[n, n_heads, d]", x).map(|()| unreachable!());
        };
        rope.check(OP, width)?;
        ensure(n_heads > 0, OP, "x", "no zero dimension", x)?;
        step.check(OP, "x", x)?;
        let mut angles = lock(&self.angles);
        angles.set(rope, step.spans());
        let angles = &*angles;
        let half = rope.dims / 2;
        let mut y = self.floats.take(OP, x.values().len())?;
        let out = SyncPtr::new(&mut y);
        self.for_rows(n_tokens, n_heads * width, |tokens| {
            for t in tokens {
                let (cos, sin) = (&angles.cos[t * half..][..half], &angles.sin[t * half..][..half]);
                for head in t * n_heads..(t + 1) * n_heads {
                    let x = &x.values()[head * width..][..width];
                    // SAFETY: each head is in one share only.
                    let y = unsafe { out.slice(head * width, width) };
                    self.level.vectorize(
                        #[inline(always)]
                        || rotate(x, cos, sin, rope.pairing, y),
                    );
                }
            }
        });
        Ok(CpuTensor::new(x.shape, y))
    }
}

/// Rotates the first dimensions of a head (two for each angle) and copies the others.
#[inline(always)]
fn rotate(x: &[f32], cos: &[f32], sin: &[f32], pairing: RopePairing, y: &mut [f32]) {
    let half = cos.len();
    let sin = &sin[..half];
    let (x, x_rest) = x.split_at(2 * half);
    let (y, y_rest) = y.split_at_mut(2 * half);
    y_rest.copy_from_slice(x_rest);
    match pairing {
        RopePairing::Interleaved => {
            for i in 0..half {
                y[2 * i] = x[2 * i] * cos[i] - x[2 * i + 1] * sin[i];
                y[2 * i + 1] = x[2 * i] * sin[i] + x[2 * i + 1] * cos[i];
            }
        }
        RopePairing::HalfSplit => {
            let ((x_a, x_b), (y_a, y_b)) = (x.split_at(half), y.split_at_mut(half));
            for i in 0..half {
                y_a[i] = x_a[i] * cos[i] - x_b[i] * sin[i];
                y_b[i] = x_a[i] * sin[i] + x_b[i] * cos[i];
            }
        }
    }
}

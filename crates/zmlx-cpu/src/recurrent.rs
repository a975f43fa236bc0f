//! Ops of layers that keep a state: a causal convolution, and the gated delta rule.

mod delta;
mod state;

use super::cache::CpuCache;
use super::pool::{CpuTensor, Shape};
use super::sync_ptr::SyncPtr;
use super::team::{Kind, Work};
use super::{CpuBackend, CpuStep, CpuWeight, lock, math, simd};
use delta::{Head, Prepared};
pub(crate) use state::StateCache;
use zmlx_core::check::ensure;
use zmlx_core::{CacheKind, ConvActivation, ConvWeights, DeltaInputs, DeltaWeights, Result, Span};

/// If all states of a step have at least this many floats, they are not expected to stay in a core's caches until the
/// next step.
const STREAM_MIN: usize = 64 * 1024;

/// The index of the span of a step's token, and the token's number within the span.
fn span_of(spans: &[Span], token: usize) -> (usize, usize) {
    let mut first = 0;
    for (idx, span) in spans.iter().enumerate() {
        if token < first + span.n_tokens {
            return (idx, token - first);
        }
        first += span.n_tokens;
    }
    unreachable!("a step has as many tokens as its spans")
}

impl CpuBackend {
    /// [`Backend::causal_conv`](zmlx_core::Backend::causal_conv).
    pub(super) fn convolve(
        &self,
        x: &CpuTensor,
        weights: ConvWeights<'_, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
        activation: ConvActivation,
    ) -> Result<CpuTensor> {
        const OP: &str = "causal_conv";
        let cache = cache.states(OP)?;
        let layout = cache.layout;
        let (n_channels, n_before) = (layout.n_channels, layout.n_conv_rows);
        let want = format_args!("[n, {n_channels}]");
        ensure(x.dims() == [x.dims()[0], n_channels], OP, "x", want, x)?;
        step.check(OP, "x", x)?;
        let taps = weights.taps.vector(OP, (n_before + 1) * n_channels)?;
        let bias = weights.bias.map(|bias| bias.vector(OP, n_channels)).transpose()?;
        let spans = step.spans();
        cache.begin(OP, spans)?;
        let places = cache.places();
        self.map_rows(OP, x, n_channels, |t, own, y| {
            let (idx, i) = span_of(spans, t);
            let (n_tokens, place) = (spans[idx].n_tokens, places[idx]);
            // Input `j` counts from the oldest kept input. The first `n_before` come before the span, and the others
            // are the span's own.
            let input = |j: usize| match j.checked_sub(n_before) {
                Some(j) => &x.values()[(t - i + j) * n_channels..][..n_channels],
                // SAFETY: the state has these rows, and nothing writes them.
                None => unsafe { std::slice::from_raw_parts(place.current.add(j * n_channels), n_channels) },
            };
            match bias {
                Some(bias) => y.copy_from_slice(bias),
                None => y.fill(0.0),
            }
            for (j, taps) in taps.chunks_exact(n_channels).enumerate() {
                let x = input(i + j);
                for ((y, x), w) in y.iter_mut().zip(x).zip(taps) {
                    *y += x * w;
                }
            }
            if activation == ConvActivation::Silu {
                y.iter_mut().for_each(|y| *y = math::silu(*y));
            }
            // The next step begins with the last inputs. Each token copies its own input there, and the first token
            // also copies those that remain from before.
            let keep = |j: usize, row: &[f32]| {
                // SAFETY: the new state has the row, which only this token writes.
                unsafe {
                    let to = place.next.add(j * n_channels);
                    std::ptr::copy_nonoverlapping(row.as_ptr(), to, n_channels);
                }
            };
            if let Some(j) = (n_before + i).checked_sub(n_tokens) {
                keep(j, own);
            }
            if i == 0 {
                (n_tokens..n_before).for_each(|j| keep(j - n_tokens, input(j)));
            }
        })
    }

    /// [`Backend::gated_delta`](zmlx_core::Backend::gated_delta).
    pub(super) fn delta_rule(
        &self,
        inputs: DeltaInputs<'_, CpuTensor>,
        weights: DeltaWeights<'_, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
    ) -> Result<CpuTensor> {
        const OP: &str = "gated_delta";
        let cache = cache.states(OP)?;
        let CacheKind::Delta(dims) = cache.kind() else {
            return ensure(false, OP, "cache", "the state of a delta rule", cache.kind())
                .map(|()| unreachable!());
        };
        let (n_k_heads, n_v_heads, k_dim, v_dim) = (dims.n_k_heads, dims.n_v_heads, dims.k_dim, dims.v_dim);
        let DeltaInputs { qkv, a, b } = inputs;
        let (n_tokens, n_channels) = (qkv.dims()[0], dims.n_channels());
        ensure(qkv.dims() == [n_tokens, n_channels], OP, "qkv", format_args!("[n, {n_channels}]"), qkv)?;
        for (what, x) in [("a", a), ("b", b)] {
            ensure(
                x.dims() == [n_tokens, n_v_heads],
                OP,
                what,
                format_args!("[{n_tokens}, {n_v_heads}]"),
                x,
            )?;
        }
        step.check(OP, "qkv", qkv)?;
        let a_log = weights.a_log.vector(OP, n_v_heads)?;
        let dt_bias = weights.dt_bias.vector(OP, n_v_heads)?;
        let shape = Shape::new(OP, &[n_tokens, n_v_heads, v_dim])?;
        let spans = step.spans();
        cache.begin(OP, spans)?;
        let layout = cache.layout;
        let stride = layout.stride;

        let len = Prepared::len_of(n_k_heads, n_v_heads, stride);
        let mut prepared = self.floats.take(OP, n_tokens * len)?;
        let out = SyncPtr::new(&mut prepared);
        self.for_rows(n_tokens, n_channels, |tokens| {
            for t in tokens {
                // SAFETY: each token is in one share only.
                let token = unsafe { out.slice(t * len, len) };
                let row = |x: &CpuTensor| x.values()[t * n_v_heads..][..n_v_heads].as_ptr();
                let (qk, scalars) = token.split_at_mut(2 * n_k_heads * stride);
                let (k, q) = qk.split_at_mut(n_k_heads * stride);
                let x = &qkv.values()[t * n_channels..][..2 * n_k_heads * k_dim];
                self.level.vectorize(
                    #[inline(always)]
                    || {
                        let heads = k.chunks_exact_mut(stride).zip(q.chunks_exact_mut(stride)).enumerate();
                        for (head, (k, q)) in heads {
                            norm(&x[head * k_dim..][..k_dim], 1.0 / (k_dim as f32).sqrt(), q);
                            norm(&x[(n_k_heads + head) * k_dim..][..k_dim], 1.0, k);
                            scalars[head] = dot(k, q);
                        }
                    },
                );
                for head in 0..n_v_heads {
                    // SAFETY: the rows have a value for each head.
                    let (a, b) = unsafe { (*row(a).add(head), *row(b).add(head)) };
                    let rate = f64::from(a_log[head]).exp();
                    let softplus = softplus(f64::from(a + dt_bias[head]));
                    scalars[n_k_heads + head] = (-rate * softplus).exp() as f32;
                    scalars[n_k_heads + n_v_heads + head] = math::sigmoid(b);
                }
            }
        });

        let mut y = self.floats.take(OP, shape.len())?;
        let y_ptr = SyncPtr::new(&mut y);
        let places = cache.places();
        let prepared = Prepared { values: &prepared, n_k_heads, n_v_heads, stride };
        let n_rows = spans.len() * layout.n_rows;
        let is_streamed = n_rows * stride >= STREAM_MIN;
        let rows_of = delta::rows(self.level);
        // With no tokens there are no values.
        let v = qkv.values().get(2 * n_k_heads * k_dim..).unwrap_or_default();
        let work = Work::new(Kind::States, (n_tokens + spans.len()) * layout.n_rows * stride);
        lock(&self.team).run(work, &|m| {
            let share = m.share(n_rows, 1);
            let mut row = share.start;
            while row < share.end {
                let (idx, of_span) = (row / layout.n_rows, row % layout.n_rows);
                let (v_head, first) = (of_span / v_dim, of_span % v_dim);
                let n = (v_dim - first).min(share.end - row);
                row += n;
                let n_tokens = spans[idx].n_tokens;
                if n_tokens == 0 {
                    continue;
                }
                let at = layout.matrices + v_head * v_dim * stride;
                let head = Head {
                    prepared,
                    first: spans[..idx].iter().map(|s| s.n_tokens).sum(),
                    n_tokens,
                    k_head: v_head / (n_v_heads / n_k_heads),
                    v_head,
                    v: &v[v_head * v_dim..],
                    v_stride: n_channels,
                    // SAFETY: the head has this result.
                    y: unsafe { y_ptr.row(v_head * v_dim) }.cast_mut(),
                    y_stride: n_v_heads * v_dim,
                    place: places[idx].at(at),
                    is_streamed,
                };
                // SAFETY: the level was detected when the backend was made. Each row and its results are in one share
                // only.
                unsafe { rows_of(&head, first..first + n) };
            }
            simd::finish_streams();
        });
        Ok(CpuTensor::new(shape, y))
    }
}

/// `y = x / √(Σx² + 1e-6) · factor`, padded with zeros.
#[inline(always)]
fn norm(x: &[f32], factor: f32, y: &mut [f32]) {
    let scale = factor / (math::sum_by(x, |v| v * v) + 1e-6).sqrt();
    let (y, padding) = y.split_at_mut(x.len());
    y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale);
    padding.fill(0.0);
}

/// `Σ a·b` in eight partial sums.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut part = [0f32; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for ((p, a), b) in part.iter_mut().zip(a).zip(b) {
            *p += a * b;
        }
    }
    math::sum(&part)
}

/// `ln(1 + e^x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

//! Latent attention of few tokens in the kernels of [`metal::latent_attention_parts`].

use mlx_rs::{Array, ops};

use super::arrays::dims;
use super::attention::{Rows, periods};
use super::cache::MlxCache;
use super::fused::{dtype, fits};
use super::step::MlxStep;
use super::{MlxBackend, MlxWeight, f};
use crate::metal::{self, KernelSpec, LatentShape, MAX_SEQUENCES};
use crate::mlx::Gpu;
use crate::mlx::raw::{self, Product};
use crate::{CacheKind, MlaWeights, NormRopeMla, Result, Rope, Span};

const OP: &str = "norm_rope_mla";

/// The most new tokens of a sequence. For more, products of matrices read the latents fewer times.
const MAX_TOKENS: usize = 8;

/// Sequences that share a launch, and their tokens.
struct Launch {
    rows: Vec<Rows>,
    spans: Vec<Span>,
    /// Where their tokens begin in the step.
    start: usize,
    shape: LatentShape,
    parts: KernelSpec,
    sum: KernelSpec,
}

impl MlxBackend {
    /// `norm_rope_mla`, if there are kernels for it: no sequence with many new tokens, one type, a rope that turns the whole key. None
    /// also where shapes do not fit, whose composition says so.
    pub(super) fn fused_norm_rope_mla(
        &self,
        inputs: &NormRopeMla<'_, Array, MlxWeight>,
        weights: &MlaWeights<'_, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
        rope: &Rope,
    ) -> Result<Option<Array>> {
        let (q, kv_a) = (inputs.q, inputs.kv_a);
        let CacheKind::Latent { rank, rope_dim } = cache.kind() else { return Ok(None) };
        let (&[n, n_heads, q_width], &[n_latents, kv_width]) = (&dims(q)[..], &dims(kv_a)[..]) else {
            return Ok(None);
        };
        let Some(dtype) = dtype(q).filter(|_| self.runtime.launches_metal()) else { return Ok(None) };
        let Ok(kv_norm) = inputs.kv_norm.vector(OP, rank) else { return Ok(None) };
        let nope_dim = q_width.saturating_sub(rope_dim);
        let fits_cache = kv_width == rank + rope_dim && inputs.rope_dim == rope_dim;
        let fits_step = [n, n_latents] == [step.n_tokens(); 2] && rope.check(OP, rope_dim).is_ok();
        let sizes = |w: &MlxWeight| [w.n_mats(), w.n_out(), w.n_in()];
        let v_dim = weights.unembed_out.n_out();
        let fits_weights = sizes(weights.embed_q) == [n_heads, rank, nope_dim]
            && sizes(weights.unembed_out) == [n_heads, v_dim, rank];
        let is_one_type = kv_a.dtype() == q.dtype() && kv_norm.dtype() == q.dtype();
        let is_few = step.spans().iter().all(|span| span.n_tokens <= MAX_TOKENS);
        if !(fits_cache && fits_step && fits_weights && is_one_type && is_few) {
            return Ok(None);
        }
        let shape = LatentShape { n_tokens: n, n_heads, nope_dim, rank, rope_dim };
        let before = fits(OP, metal::latent_norm_rope(dtype, &shape, inputs.eps, rope));
        let launches = launches(step.spans(), |n_tokens, of_caches| {
            let shape = LatentShape { n_tokens, ..shape };
            let parts = metal::latent_attention_parts(dtype, &shape, of_caches, inputs.scale);
            Some((shape, fits(OP, parts)?, fits(OP, metal::latent_attention_sum(dtype, &shape))?))
        });
        // Nothing is written before it is clear that all of it can be launched.
        let (Some(before), Some(launches)) = (before, launches) else { return Ok(None) };
        cache.check(OP, step.spans())?;

        let periods = periods(rope).unwrap_or_else(|| Array::from_slice(&[1.0_f32], &[1]));
        let before = raw::launch(OP, Gpu::Metal, &before, &[q, kv_a, &kv_norm, step.positions(), &periods])?;
        let [q_nope, q_pe, new] = before;
        let q_nope = q_nope.expand_dims(0).map_err(f(OP))?;
        let q = weights.embed_q.matmul(OP, &q_nope, Product::Transposed)?;
        let q = q.squeeze_axes(&[0]).map_err(f(OP))?;
        // The one head of latents and keys.
        let new = new.expand_dims(1).map_err(f(OP))?;
        let latents: Vec<Array> = launches
            .iter()
            .map(|launch| launch.attend([&q, &q_pe], &new, cache, step))
            .collect::<Result<_>>()?;
        let latents = match &latents[..] {
            [one] => one.clone(),
            several => ops::concatenate(&several.iter().collect::<Vec<_>>(), 1).map_err(f(OP))?,
        };
        let latents = latents.expand_dims(0).map_err(f(OP))?;
        let y = weights.unembed_out.matmul(OP, &latents, Product::Transposed)?;
        // Back to [n, heads, width].
        let y = y.transpose_axes(&[0, 2, 1, 3]).and_then(|y| y.squeeze_axes(&[0]));
        y.map(Some).map_err(f(OP))
    }
}

/// The launches of a step, each of so many tokens and so many caches of so many positions; none if there is none for one of them.
fn launches(
    spans: &[Span],
    specs: impl Fn(usize, [usize; 2]) -> Option<(LatentShape, KernelSpec, KernelSpec)>,
) -> Option<Vec<Launch>> {
    let (mut rows, mut start) = (Rows::of(OP, spans).into_iter().zip(spans), 0);
    let mut launches = Vec::new();
    loop {
        let next = rows.by_ref().filter(|(_, span)| span.n_tokens > 0).take(MAX_SEQUENCES);
        let (rows, spans): (Vec<Rows>, Vec<Span>) = next.unzip();
        let n_seen = spans.iter().map(|span| span.start + span.n_tokens).max();
        let Some(n_seen) = n_seen else { break };
        let n_tokens = spans.iter().map(|span| span.n_tokens).sum();
        let (shape, parts, sum) = specs(n_tokens, [spans.len(), n_seen])?;
        launches.push(Launch { rows, spans, start, shape, parts, sum });
        start += n_tokens;
    }
    (!launches.is_empty()).then_some(launches)
}

impl Launch {
    /// Writes the new latents and keys, `[n, 1, rank + rope]` of all tokens, and attends to what is there: `[heads, n, rank]` of this launch's
    /// tokens. q and q_pe are `[heads, n, width]` of all tokens.
    fn attend(
        &self,
        [q, q_pe]: [&Array; 2],
        new: &Array,
        cache: &mut MlxCache,
        step: &MlxStep,
    ) -> Result<Array> {
        let mut caches = Vec::with_capacity(self.spans.len());
        for (span, rows) in self.spans.iter().zip(&self.rows) {
            let sequence = cache.sequence(span.slot)?;
            caches.push(sequence.append_latents(OP, &[&rows.heads(new)?])?);
        }
        let n_caches = if caches.len() == 1 { 1 } else { MAX_SEQUENCES };
        let of_caches = (0..n_caches).map(|at| caches.get(at).unwrap_or(&caches[0]));
        let [q, q_pe] = [q, q_pe].map(|x| self.tokens(x, 1));
        let [sequences, positions] = [step.sequences(), step.positions()].map(|x| self.tokens(x, 0));
        let (q, q_pe, sequences, positions) = (q?, q_pe?, sequences?, positions?);
        let inputs: Vec<&Array> =
            [&q, &q_pe].into_iter().chain(of_caches).chain([&sequences, &positions]).collect();
        let [parts, stats] = raw::launch(OP, Gpu::Metal, &self.parts, &inputs)?;
        let [y] = raw::launch(OP, Gpu::Metal, &self.sum, &[&parts, &stats])?;
        Ok(y)
    }

    /// This launch's tokens of an array that has all of the step along `axis`.
    fn tokens(&self, x: &Array, axis: usize) -> Result<Array> {
        let (mut start, mut stop) = (vec![0; x.ndim()], x.shape().to_vec());
        let end = self.start + self.shape.n_tokens;
        if [self.start, end] == [0, stop[axis] as usize] {
            return Ok(x.clone());
        }
        (start[axis], stop[axis]) = (self.start as i32, end as i32);
        raw::slice(OP, x, &start, &stop)
    }
}

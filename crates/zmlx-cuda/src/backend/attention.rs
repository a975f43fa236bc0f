//! Rotations and attention: checks of arguments.

use std::sync::Arc;

use zmlx_core::{
    AttentionInputs, AttentionSettings, CacheKind, MlaInputs, MlaWeights, Result, Rope, RopePairing,
};

use super::{CudaBackend, precondition};
use crate::attention::{Inputs, Latents, attend, attend_latents};
use crate::cache::{CudaCache, TokenCache};
use crate::matmul::MIN_TOKENS;
use crate::memory::{Buffer, lock};
use crate::products::Product;
use crate::step::CudaStep;
use crate::tensor::{CudaTensor, Heads, Pending, Rotation, Staged, ensure};
use crate::weight::CudaWeight;

impl CudaBackend {
    fn rotation(&self, rope: &Rope) -> Result<Rotation> {
        let mut rotations = lock(&self.rotations);
        if let Some((_, rotation)) = rotations.iter().find(|(known, _)| known == rope) {
            return Ok(rotation.clone());
        }
        let half_turns = rope.frequencies().into_iter().map(|f| f / std::f64::consts::PI);
        let bytes: Vec<u8> = half_turns.flat_map(f64::to_le_bytes).collect();
        let buffer = Buffer::lasting(&self.device, bytes.len())?;
        buffer.write(0, &bytes)?;
        let rotation = Rotation {
            half_turns: buffer,
            dims: rope.dims as u32,
            is_interleaved: u32::from(rope.pairing == RopePairing::Interleaved),
            scale: rope.scale,
        };
        rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }

    pub(super) fn rotated(&self, x: &CudaTensor, step: &CudaStep, rope: &Rope) -> Result<CudaTensor> {
        const OP: &str = "rope";
        step.0.check(OP, "x", x)?;
        let &[_, n_heads, width] = x.dims() else {
            return Err(precondition(OP, "x", "[n, n_heads, d]", x));
        };
        rope.check(OP, width)?;
        ensure(n_heads > 0, OP, "x", "at least one head", x)?;
        let (x_view, norm) = match x.op() {
            Some(Pending::Heads(heads)) if heads.width == width && heads.rotation.is_none() => {
                (heads.x, heads.norm)
            }
            _ => (x.view(&self.device)?, None),
        };
        let rotation = Some((self.rotation(rope)?, Arc::clone(&step.0), n_heads));
        let heads = Heads { x: x_view, width, norm, rotation, staged: Staged::default() };
        Ok(CudaTensor::pending(x.shape, Pending::Heads(heads)))
    }

    pub(super) fn attend(
        &self,
        inputs: AttentionInputs<'_, CudaTensor, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        settings: &AttentionSettings,
    ) -> Result<CudaTensor> {
        const OP: &str = "attention";
        let AttentionInputs { q, k, v, sinks } = inputs;
        let cache = cache.tokens_mut(OP)?;
        let (n_kv_heads, head_dim) = heads_of(OP, cache, settings)?;
        let n_heads = check_queries(OP, q, (n_kv_heads, head_dim), step)?;
        for (name, x) in [("k", k), ("v", v)] {
            step.0.check(OP, name, x)?;
            let fits = x.dims().len() == 3 && x.dims()[1..] == [n_kv_heads, head_dim];
            ensure(fits, OP, name, format_args!("[n, {n_kv_heads}, {head_dim}]"), x)?;
        }
        let sinks = sinks.map(|s| s.vector(OP, n_heads)).transpose()?;
        cache.check(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q, head_dim)],
            k: &[(k, head_dim)],
            v: Some((v, head_dim)),
            n_heads,
            v_width: head_dim,
            scale: settings.scale,
            window: settings.window,
            sinks,
        };
        cache.reserve_all(&step.0.spans)?;
        attend(&self.device, OP, &inputs, cache, &step.0)
    }

    /// [`Backend::attention_shared`](zmlx_core::Backend::attention_shared).
    pub(super) fn attend_to_shared(
        &self,
        q: &CudaTensor,
        cache: &CudaCache,
        step: &CudaStep,
        settings: &AttentionSettings,
    ) -> Result<CudaTensor> {
        const OP: &str = "attention_shared";
        let cache = cache.tokens(OP)?;
        let (n_kv_heads, head_dim) = heads_of(OP, cache, settings)?;
        let n_heads = check_queries(OP, q, (n_kv_heads, head_dim), step)?;
        cache.check(OP, &step.0.spans)?;
        cache.check_room(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q, head_dim)],
            k: &[],
            v: None,
            n_heads,
            v_width: head_dim,
            scale: settings.scale,
            window: settings.window,
            sinks: None,
        };
        attend(&self.device, OP, &inputs, cache, &step.0)
    }

    pub(super) fn attend_latents(
        &self,
        inputs: MlaInputs<'_, CudaTensor>,
        cache: &mut CudaCache,
        step: &CudaStep,
        scale: f32,
    ) -> Result<CudaTensor> {
        const OP: &str = "latent_attention";
        let MlaInputs { q_nope, q_pe, kv, k_pe } = inputs;
        let cache = cache.tokens_mut(OP)?;
        let CacheKind::Latent { rank, rope_dim } = cache.kind else {
            return Err(precondition(OP, "cache", "latents", &cache.kind));
        };
        let n = step.0.n_tokens;
        let n_heads = q_nope.dims().get(1).copied().unwrap_or(0);
        for (name, x, want) in [
            ("q_nope", q_nope, &[n, n_heads, rank][..]),
            ("q_pe", q_pe, &[n, n_heads, rope_dim]),
            ("kv", kv, &[n, rank]),
            ("k_pe", k_pe, &[n, rope_dim]),
        ] {
            ensure(x.dims() == want, OP, name, format_args!("{want:?}"), x)?;
        }
        ensure(n_heads > 0, OP, "q_nope", "at least one head", q_nope)?;
        cache.check(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q_nope, rank), (q_pe, rope_dim)],
            k: &[(kv, rank), (k_pe, rope_dim)],
            v: None,
            n_heads,
            v_width: rank,
            scale,
            window: None,
            sinks: None,
        };
        cache.reserve_all(&step.0.spans)?;
        attend(&self.device, OP, &inputs, cache, &step.0)
    }

    /// [`Backend::mla_attention`](zmlx_core::Backend::mla_attention) of few tokens in kernels that take the products along; `None`
    /// where these do not fit, or the arguments do not: its parts say what is wrong then.
    pub(super) fn attend_mla(
        &self,
        inputs: MlaInputs<'_, CudaTensor>,
        weights: MlaWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        scale: f32,
    ) -> Result<Option<CudaTensor>> {
        const OP: &str = "mla_attention";
        let MlaInputs { q_nope, q_pe, kv, k_pe } = inputs;
        let Ok(cache) = cache.tokens_mut(OP) else { return Ok(None) };
        let CacheKind::Latent { rank, rope_dim } = cache.kind else { return Ok(None) };
        let (n, n_heads) = (step.0.n_tokens, weights.embed_q.n_mats);
        let fits = (1..MIN_TOKENS).contains(&n)
            && n_heads > 0
            && q_nope.dims()[0] == n
            && q_pe.dims() == [n, n_heads, rope_dim]
            && kv.dims() == [n, rank]
            && k_pe.dims() == [n, rope_dim]
            && weights.embed_q.n_out == rank
            && (weights.unembed_out.n_mats, weights.unembed_out.n_in) == (n_heads, rank)
            && cache.check(OP, &step.0.spans).is_ok();
        if !fits {
            return Ok(None);
        }
        let embed = self.head_product(q_nope, weights.embed_q)?;
        // The activations are those that attention gives.
        let unembed = Product {
            n_in: rank,
            n_out: weights.unembed_out.n_out,
            parts: weights.unembed_out.parts.clone(),
            ..embed.clone()
        };
        cache.reserve_all(&step.0.spans)?;
        let of = Latents { q_pe, kv, k_pe, n_heads, rank, rope_dim, scale };
        attend_latents(&self.device, &of, (embed, unembed), cache, &step.0)
    }
}

/// Heads and their width of a cache of keys and values, whose window must be that of the settings.
fn heads_of(op: &'static str, cache: &TokenCache, settings: &AttentionSettings) -> Result<(usize, usize)> {
    let (n_kv_heads, head_dim, window) = match cache.kind {
        CacheKind::Full { n_kv_heads, head_dim } => (n_kv_heads, head_dim, None),
        CacheKind::Window { n_kv_heads, head_dim, window } => (n_kv_heads, head_dim, Some(window)),
        _ => return Err(precondition(op, "cache", "keys and values of heads", &cache.kind)),
    };
    let want = format_args!("the cache's, {window:?}");
    ensure(settings.window == window, op, "window", want, settings.window)?;
    Ok((n_kv_heads, head_dim))
}

/// Checks queries, and tells how many heads they have.
fn check_queries(
    op: &'static str,
    q: &CudaTensor,
    (n_kv_heads, head_dim): (usize, usize),
    step: &CudaStep,
) -> Result<usize> {
    step.0.check(op, "q", q)?;
    let fits = q.dims().len() == 3 && q.shape.last() == head_dim;
    ensure(fits, op, "q", format_args!("[n, _, {head_dim}]"), q)?;
    let n_heads = q.dims()[1];
    let fits = n_heads > 0 && n_heads.is_multiple_of(n_kv_heads);
    ensure(fits, op, "q", format_args!("heads that {n_kv_heads} divide"), q)?;
    Ok(n_heads)
}

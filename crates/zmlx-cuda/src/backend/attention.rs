//! Rotations and attention: checks of arguments.

use std::sync::Arc;

use zmlx_core::{AttentionInputs, AttentionSettings, CacheKind, MlaInputs, Result, Rope, RopePairing};

use super::{CudaBackend, precondition};
use crate::attention::{Inputs, attend};
use crate::cache::CudaCache;
use crate::memory::{Buffer, lock};
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
        let (n_kv_heads, head_dim, window) = match cache.kind {
            CacheKind::Full { n_kv_heads, head_dim } => (n_kv_heads, head_dim, None),
            CacheKind::Window { n_kv_heads, head_dim, window } => (n_kv_heads, head_dim, Some(window)),
            _ => {
                return Err(precondition(OP, "cache", "keys and values of heads", &cache.kind));
            }
        };
        for (name, x) in [("q", q), ("k", k), ("v", v)] {
            step.0.check(OP, name, x)?;
            ensure(
                x.dims().len() == 3 && x.shape.last() == head_dim,
                OP,
                name,
                format_args!("[n, _, {head_dim}]"),
                x,
            )?;
        }
        let n_heads = q.dims()[1];
        ensure(
            n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            OP,
            "q",
            format_args!("heads that {n_kv_heads} divide"),
            q,
        )?;
        for (name, x) in [("k", k), ("v", v)] {
            ensure(x.dims()[1] == n_kv_heads, OP, name, format_args!("{n_kv_heads} heads"), x)?;
        }
        ensure(
            settings.window == window,
            OP,
            "window",
            format_args!("the cache's, {window:?}"),
            settings.window,
        )?;
        let sinks = sinks.map(|s| s.vector(OP, n_heads)).transpose()?;
        cache.check(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q, head_dim)],
            k: &[(k, head_dim)],
            v: Some((v, head_dim)),
            n_heads,
            v_width: head_dim,
            scale: settings.scale,
            window,
            sinks,
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
        attend(&self.device, OP, &inputs, cache, &step.0)
    }
}

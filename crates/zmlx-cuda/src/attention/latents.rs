//! Attention on latents between its two products, for few tokens: the first product also makes the rest of the queries and puts
//! the new keys into the cache, the second one merges what the blocks of attention found.

use std::sync::Arc;

use zmlx_core::Result;

use super::tensor_cores::{Call, Found, latent_kernel};
use super::{CacheArgs, Inputs, SourceArgs, cache_args, source};
use crate::cache::TokenCache;
use crate::device::Device;
use crate::memory::Buffer;
use crate::products::{Beside, Product};
use crate::step::{StepArgs, StepData};
use crate::tensor::{CudaTensor, Shape, View};

/// `Positions` of `matvec.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PositionsArgs {
    query: SourceArgs,
    latent: SourceArgs,
    key: SourceArgs,
    step: StepArgs,
    cache: CacheArgs,
    n_heads: u32,
}

/// What attention on latents takes besides its products.
pub(crate) struct Latents<'a> {
    pub(crate) q_pe: &'a CudaTensor,
    pub(crate) kv: &'a CudaTensor,
    pub(crate) k_pe: &'a CudaTensor,
    pub(crate) n_heads: usize,
    pub(crate) rank: usize,
    pub(crate) rope_dim: usize,
    pub(crate) scale: f32,
}

/// The whole of it, `None` where the widths are not for the kernels. The backend has checked shapes and
/// spans, and has got the memory for the step's tokens.
pub(crate) fn attend_latents(
    device: &Arc<Device>,
    of: &Latents<'_>,
    (mut embed, mut unembed): (Product, Product),
    cache: &TokenCache,
    step: &Arc<StepData>,
) -> Result<Option<CudaTensor>> {
    let (n_tokens, n_heads, op) = (step.n_tokens, of.n_heads, "mla_attention");
    let inputs = Inputs {
        q: &[],
        k: &[],
        v: None,
        n_heads,
        v_width: of.rank,
        scale: of.scale,
        window: None,
        sinks: None,
    };
    let pages = cache.shape;
    let Some(kernel) = latent_kernel(device, &pages, &inputs, n_tokens) else { return Ok(None) };
    if !embed.is_matvec() || !unembed.is_matvec() {
        return Ok(None);
    }
    let (query, query_view) = source(device, step, of.q_pe, of.rope_dim)?;
    let (latent, latent_view) = source(device, step, of.kv, of.rank)?;
    let (key, key_view) = source(device, step, of.k_pe, of.rope_dim)?;
    let (step_args, cache_args) = (step.args(), cache_args(cache));
    let queries = Buffer::scratch(device, 4 * n_tokens * n_heads * pages.key_width)?;
    embed.beside = Beside::Queries {
        positions: Box::new(PositionsArgs {
            query,
            latent,
            key,
            step: step_args,
            cache: cache_args,
            n_heads: n_heads as u32,
        }),
        queries: Arc::clone(&queries),
        width: pages.key_width,
        _sources: [query_view, latent_view, key_view],
    };
    embed.launch(device, None)?;

    let shape = Shape::new(op, &[n_tokens, n_heads, of.rank])?;
    let call = Call { device, op, inputs: &inputs, step, pages, step_args, cache_args, shape };
    unembed.x = match call.latent_parts(kernel, &queries)? {
        Found::Whole(y) => y,
        Found::Parts { partial, n_splits } => {
            // Merged in its place: the tensor is not read.
            let x = CudaTensor::ready(shape, View::whole(Arc::clone(&partial), shape.len()));
            unembed.beside = Beside::Merge { partial, n_splits };
            x
        }
    };
    let view = unembed.launch(device, None)?;
    Ok(Some(CudaTensor::ready(shape.with_last(unembed.n_out), view)))
}

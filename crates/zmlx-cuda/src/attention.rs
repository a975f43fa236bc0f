//! Launching rotations, appends and attention.

mod latents;
mod tensor_cores;

pub(crate) use latents::{Latents, PositionsArgs, attend_latents};

use std::sync::Arc;

use zmlx_core::Result;

use crate::cache::TokenCache;
use crate::compile::Unit;
use crate::device::{Device, N_COUNTERS};
use crate::driver::Grid;
use crate::memory::Buffer;
use crate::rows::rows_of;
use crate::step::{StepArgs, StepData};
use crate::tensor::{CudaTensor, Heads, Pending, Rows, Shape, View};
use crate::weight::Vector;

use tensor_cores::{Call, ONE_POSITIONS, latent_kernel};

/// Heads of a token that a warp of `append` takes, from [`FEW_TOKENS`] tokens on. Of fewer tokens it takes one head.
const HEADS_PER_WARP: usize = 8;
/// Fewer tokens than this would give few warps.
const FEW_TOKENS: usize = 64;
/// Threads of a block of `rope` and `append`.
const THREADS: usize = 128;
/// Query heads of a block of `attention`, a warp each.
const HEADS_PER_BLOCK: usize = 8;
/// Positions of a tile of `attention`.
const TILE: usize = 32;
/// Most parts that a sequence is split into; `MAX_SPLITS` of the kernel.
const MAX_SPLITS: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RotationArgs {
    half_turns: u64,
    dims: u32,
    is_interleaved: u32,
    scale: f32,
}

#[repr(C)]
struct RopeArgs {
    x: Rows,
    n_rows: u32,
    n_heads: u32,
    width: u32,
    norm: u64,
    eps: f32,
    rotation: RotationArgs,
    step: StepArgs,
    y: u64,
}

fn rotation_args(heads: &Heads) -> RotationArgs {
    heads.rotation.as_ref().map_or(RotationArgs::default(), |(r, ..)| RotationArgs {
        half_turns: r.half_turns.at(),
        dims: r.dims,
        is_interleaved: r.is_interleaved,
        scale: r.scale,
    })
}

/// Heads, normed and rotated.
pub(crate) fn rope(device: &Arc<Device>, heads: &Heads, len: usize) -> Result<View> {
    let y = Buffer::scratch(device, 4 * len)?;
    let Some((_, step, n_heads)) = &heads.rotation else { return Ok(heads.x.clone()) };
    let rows = rows_of(device, &heads.x, heads.width)?;
    let n_rows = len / heads.width;
    let args = RopeArgs {
        x: rows.1,
        n_rows: n_rows as u32,
        n_heads: *n_heads as u32,
        width: heads.width as u32,
        norm: heads.norm.as_ref().map_or(0, |n| n.weight.0.at()),
        eps: heads.norm.as_ref().map_or(0.0, |n| n.eps),
        rotation: rotation_args(heads),
        step: step.args(),
        y: y.at(),
    };
    let grid =
        Grid { blocks: [n_rows.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0, cluster: 1 };
    // SAFETY: the struct is the kernel's; the view has n_rows rows of width, y as many, the step a token for n_heads rows.
    unsafe { device.launch("rope", (Unit::new("rope", &[]), "rope"), grid, &args)? };
    Ok(View::whole(y, len))
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct SourceArgs {
    x: Rows,
    width: u32,
    norm: u64,
    eps: f32,
    rotation: RotationArgs,
}

const NO_SOURCE: SourceArgs = SourceArgs {
    x: Rows { data: 0, per_segment: 1, stride: 0 },
    width: 0,
    norm: 0,
    eps: 0.0,
    rotation: RotationArgs { half_turns: 0, dims: 0, is_interleaved: 0, scale: 1.0 },
};

/// A tensor as heads of `width` values on their way to attention, and what keeps their memory.
fn source(
    device: &Arc<Device>,
    step: &Arc<StepData>,
    x: &CudaTensor,
    width: usize,
) -> Result<(SourceArgs, View)> {
    if let Some(Pending::Heads(heads)) = x.op()
        && heads.width == width
        && heads.rotation.as_ref().is_none_or(|(_, of, _)| Arc::ptr_eq(of, step))
    {
        let (view, rows) = rows_of(device, &heads.x, width)?;
        let args = SourceArgs {
            x: rows,
            width: width as u32,
            norm: heads.norm.as_ref().map_or(0, |n| n.weight.0.at()),
            eps: heads.norm.as_ref().map_or(0.0, |n| n.eps),
            rotation: rotation_args(&heads),
        };
        return Ok((args, view));
    }
    let (view, rows) = x.rows(device, width)?;
    Ok((SourceArgs { x: rows, width: width as u32, ..NO_SOURCE }, view))
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct CacheArgs {
    pages: u64,
    pages_per_slot: u32,
    key_stride: u32,
    value_stride: u32,
    values_at: u32,
}

fn cache_args(cache: &TokenCache) -> CacheArgs {
    let (pages, per_slot) = cache.table();
    let shape = &cache.shape;
    CacheArgs {
        pages,
        pages_per_slot: per_slot as u32,
        key_stride: (shape.n_kv_heads * shape.key_width) as u32,
        value_stride: shape.value_stride() as u32,
        values_at: shape.values_at() as u32,
    }
}

#[repr(C)]
struct AppendArgs {
    q: SourceArgs,
    q_more: SourceArgs,
    k: SourceArgs,
    k_more: SourceArgs,
    v: SourceArgs,
    n_tokens: u32,
    n_heads: u32,
    n_kv_heads: u32,
    heads_per_warp: u32,
    key_width: u32,
    value_width: u32,
    step: StepArgs,
    cache: CacheArgs,
    queries: u64,
}

#[repr(C)]
struct AttentionArgs {
    queries: u64,
    step: StepArgs,
    cache: CacheArgs,
    n_heads: u32,
    heads_per_key: u32,
    key_width: u32,
    value_width: u32,
    y_width: u32,
    scale: f32,
    window: u32,
    sinks: u64,
    y: u64,
    partial: u64,
    n_done: u64,
    q: SourceArgs,
    q_more: SourceArgs,
    k: SourceArgs,
    k_more: SourceArgs,
    v: SourceArgs,
}

/// Queries, keys and values: each one or two tensors whose heads are side by side, with their widths.
pub(crate) struct Inputs<'a> {
    pub(crate) q: &'a [(&'a CudaTensor, usize)],
    /// Empty where the step's keys and values are in the cache already.
    pub(crate) k: &'a [(&'a CudaTensor, usize)],
    /// None where values are the first part of the keys.
    pub(crate) v: Option<(&'a CudaTensor, usize)>,
    pub(crate) n_heads: usize,
    /// Of a result.
    pub(crate) v_width: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<usize>,
    pub(crate) sinks: Option<Vector>,
}

/// Writes the new keys and values, if there are any, and attends. The backend has checked shapes and spans, and has got the memory
/// for the step's tokens.
pub(crate) fn attend(
    device: &Arc<Device>,
    op: &'static str,
    inputs: &Inputs<'_>,
    cache: &TokenCache,
    step: &Arc<StepData>,
) -> Result<CudaTensor> {
    let (n_tokens, n_heads) = (step.n_tokens, inputs.n_heads);
    let shape = Shape::new(op, &[n_tokens, n_heads, inputs.v_width])?;
    let mut keep = Vec::new();
    let mut two = |parts: &[(&CudaTensor, usize)]| -> Result<[SourceArgs; 2]> {
        let mut out = [NO_SOURCE; 2];
        for (to, (x, width)) in out.iter_mut().zip(parts) {
            let (args, view) = source(device, step, x, *width)?;
            keep.push(view);
            *to = args;
        }
        Ok(out)
    };
    let ([q, q_more], [k, k_more]) = (two(inputs.q)?, two(inputs.k)?);
    let [v, _] = match inputs.v {
        Some(v) => two(&[v])?,
        None => [NO_SOURCE; 2],
    };
    let pages = cache.shape;
    let (step_args, cache_args) = (step.args(), cache_args(cache));
    // A token alone sees only itself of what this step adds: attention can make its key and value on the way.
    let latent = latent_kernel(device, &pages, inputs, n_tokens);
    let has_new = !inputs.k.is_empty();
    let is_fused = has_new && latent.is_none() && step.spans.iter().all(|s| s.n_tokens <= 1);
    // Key heads that are written.
    let n_new_heads = if has_new { pages.n_kv_heads } else { 0 };
    let queries = if is_fused {
        None
    } else {
        let queries = Buffer::scratch(device, 4 * n_tokens * n_heads * pages.key_width)?;
        // Heads of a token are turned by the same angles, which take longer to compute than the rest.
        let heads_per_warp = if n_tokens < FEW_TOKENS { 1 } else { HEADS_PER_WARP };
        let per_token = n_heads + n_new_heads * if inputs.v.is_some() { 2 } else { 1 };
        let n_warps = n_tokens * per_token.div_ceil(heads_per_warp);
        let args = AppendArgs {
            q,
            q_more,
            k,
            k_more,
            v,
            n_tokens: n_tokens as u32,
            n_heads: n_heads as u32,
            n_kv_heads: n_new_heads as u32,
            heads_per_warp: heads_per_warp as u32,
            key_width: pages.key_width as u32,
            value_width: pages.value_width as u32,
            step: step_args,
            cache: cache_args,
            queries: queries.at(),
        };
        let grid = Grid {
            blocks: [n_warps.div_ceil(THREADS / 32), 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's; sources have a row per token and head, pages are reserved up to the step's
        // positions, and `queries` has room for all.
        unsafe { device.launch(op, (Unit::new("rope", &[]), "append"), grid, &args)? };
        Some(queries)
    };

    let call = Call { device, op, inputs, step, pages, step_args, cache_args, shape };
    if let Some(queries) = &queries {
        if let Some(kernel) = latent {
            return call.latent(kernel, queries);
        }
        if let Some(steps) = call.flash_steps() {
            return call.flash(steps, queries);
        }
    } else if q_more.width + k_more.width == 0
        && let Some(steps) = call.flash_one_steps(&q, &k)
    {
        return call.flash_one(steps, [q, k, v]);
    }
    let heads_per_key = call.heads_per_key();
    let n_block_heads = heads_per_key.min(HEADS_PER_BLOCK);
    let n_head_blocks = pages.n_kv_heads * heads_per_key.div_ceil(n_block_heads);
    let n_splits = splits(device, step, inputs.window, n_head_blocks * n_tokens);
    let row = pages.value_width + 4;
    let partial = match n_splits {
        1 => None,
        _ => Some(Buffer::scratch(device, 4 * n_tokens * n_heads * n_splits * row)?),
    };
    let (y, y_at) = CudaTensor::fresh(device, shape)?;
    let args = AttentionArgs {
        queries: queries.as_ref().map_or(0, |q| q.at()),
        step: step_args,
        cache: cache_args,
        n_heads: n_heads as u32,
        heads_per_key: heads_per_key as u32,
        key_width: pages.key_width as u32,
        value_width: pages.value_width as u32,
        y_width: inputs.v_width as u32,
        scale: inputs.scale,
        window: inputs.window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
        sinks: inputs.sinks.as_ref().map_or(0, |s| s.0.at()),
        y: y_at,
        partial: partial.as_ref().map_or(0, |p| p.at()),
        n_done: device.counters + 4 * N_COUNTERS as u64,
        q,
        q_more,
        k,
        k_more,
        v,
    };
    let separate = if pages.values_are_keys { 0 } else { TILE * pages.value_width };
    let grid = Grid {
        blocks: [n_head_blocks, n_tokens, n_splits],
        // Two more warps make the new key and value.
        threads: 32 * (n_block_heads + if is_fused { 2 } else { 0 }),
        shared_bytes: 4 * (n_block_heads * pages.key_width + TILE * (pages.key_width + 4) + separate),
        cluster: 1,
    };
    let vectors = [1, 2, 4].into_iter().find(|v| 128 * v >= pages.value_width).unwrap_or(4);
    let unit = Unit::new("attention", &[("VECTORS", vectors as u32), ("FUSED", u32::from(is_fused))]);
    // SAFETY: the struct is the kernel's; the append in front, or this kernel, writes queries and pages; value_width is at most
    // 128·VECTORS; where there are splits, they are so few that each block of heads of each token has a counter.
    unsafe { device.launch(op, (unit, "attention"), grid, &args)? };
    Ok(y)
}

/// How many parts each sequence is split into, where `n_blocks` would not fill the GPU. A power of two that grows with the
/// sequences: recorded graphs stay right until it changes.
fn splits(device: &Device, step: &StepData, window: Option<usize>, n_blocks: usize) -> usize {
    let room = 2 * device.driver.properties.n_multiprocessors as usize / n_blocks.max(1);
    let most = room.clamp(1, MAX_SPLITS);
    let most = 1 << most.ilog2();
    let n_tiles = step.longest.div_ceil(TILE).min(window.map_or(usize::MAX, |w| w.div_ceil(TILE) + 1));
    n_tiles.max(1).next_power_of_two().min(most)
}

/// A number that is equal for steps whose sequences are split alike.
pub(crate) fn split_class(step: &StepData) -> u32 {
    let most = MAX_SPLITS * ONE_POSITIONS / TILE;
    step.longest.div_ceil(TILE).max(1).next_power_of_two().min(most) as u32
}

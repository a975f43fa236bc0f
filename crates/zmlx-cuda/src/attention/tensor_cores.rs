//! Attention on tensor cores: which kernel, and its arguments.

use std::sync::Arc;

use zmlx_core::Result;

use super::{
    CacheArgs, HEADS_PER_BLOCK, Inputs, MAX_SPLITS, RotationArgs, SourceArgs, TILE, split_class, splits,
};
use crate::cache::PageShape;
use crate::compile::Unit;
use crate::device::{Device, N_COUNTERS};
use crate::driver::Grid;
use crate::memory::Buffer;
use crate::step::{StepArgs, StepData};
use crate::tensor::{CudaTensor, Shape};

impl RotationArgs {
    /// Whether a warp has the pairs where it needs them: `is_even` of `position.cuh`.
    fn is_even(&self) -> bool {
        self.half_turns == 0
            || if self.is_interleaved == 0 { [64, 128] } else { [32, 64] }.contains(&self.dims)
    }
}

/// Rows of a block of `flash`: heads of consecutive tokens.
const FLASH_ROWS: usize = 64;

/// Bytes of shared memory of a block of `flash`: two tiles of 64 positions of keys and of values, whose rows are padded.
fn flash_bytes(steps: u32) -> usize {
    4 * 64 * (16 * steps as usize + 8) * 2
}

#[repr(C)]
struct FlashArgs {
    queries: u64,
    tiles: u64,
    step: StepArgs,
    cache: CacheArgs,
    n_heads: u32,
    heads_per_key: u32,
    scale: f32,
    window: u32,
    sinks: u64,
    y: u64,
}

/// Rows of a block of `latent`, which are heads of consecutive tokens, and positions of its tiles: of few tokens, and of many.
const LATENT_SHAPES: [[usize; 2]; 2] = [[32, 32], [64, 16]];

#[repr(C)]
struct LatentArgs {
    queries: u64,
    tiles: u64,
    step: StepArgs,
    cache: CacheArgs,
    n_heads: u32,
    key_width: u32,
    value_width: u32,
    scale: f32,
    is_early: u32,
    y: u64,
    partial: u64,
}

#[repr(C)]
struct LatentMergeArgs {
    partial: u64,
    y: u64,
    n_splits: u32,
    value_width: u32,
}

/// STEPS of `latent.cu`.
fn latent_steps(pages: &PageShape) -> usize {
    pages.key_width.div_ceil(16).next_multiple_of(2)
}

/// Bytes of the kernel's `Shared`.
fn latent_bytes(pages: &PageShape, [n_rows, tile]: [usize; 2]) -> usize {
    let pitch = 16 * latent_steps(pages) + 8;
    2 * pitch * (2 * n_rows + 2 * tile)
        + 2 * 2 * n_rows * (tile + 8)
        + 4 * n_rows * (tile + 4)
        + 3 * 4 * n_rows
}

/// `latent.cu` with one of its shapes.
#[derive(Clone, Copy)]
pub(super) struct LatentKernel {
    unit: Unit,
    shape: [usize; 2],
}

/// The kernel for latents, where their widths are for it and the GPU has the shared memory.
pub(super) fn latent_kernel(
    device: &Device,
    pages: &PageShape,
    inputs: &Inputs<'_>,
    n_tokens: usize,
) -> Option<LatentKernel> {
    let tiles = pages.value_width.div_ceil(64);
    let fits = |shape: &[usize; 2]| {
        pages.values_are_keys
            && pages.value_width == inputs.v_width
            && tiles <= 8
            && latent_bytes(pages, *shape) + 1024 <= device.driver.properties.shared_bytes as usize
    };
    let [few, many] = LATENT_SHAPES;
    let wanted = if n_tokens * inputs.n_heads > few[0] { [many, few] } else { [few, many] };
    let shape = wanted.into_iter().find(fits)?;
    let defines = [
        ("STEPS", latent_steps(pages) as u32),
        ("TILES", tiles as u32),
        ("N_ROWS", shape[0] as u32),
        ("TILE", shape[1] as u32),
    ];
    Some(LatentKernel { unit: Unit::new("latent", &defines), shape })
}

/// Positions that the warps of a block of `flash_one` take at once.
pub(super) const ONE_POSITIONS: usize = 128;

#[repr(C)]
struct FlashOneArgs {
    step: StepArgs,
    cache: CacheArgs,
    n_heads: u32,
    heads_per_key: u32,
    scale: f32,
    window: u32,
    sinks: u64,
    y: u64,
    partial: u64,
    n_done: u64,
    q: SourceArgs,
    k: SourceArgs,
    v: SourceArgs,
}

/// What attention on latents gives.
pub(super) enum Found {
    /// The result.
    Whole(CudaTensor),
    /// What blocks found that share a sequence: sums, the largest score and the total of each, side by side for a head.
    Parts { partial: Arc<Buffer>, n_splits: usize },
}

/// A call of an attention op, whose new keys and values have room in the cache.
pub(super) struct Call<'a> {
    pub(super) device: &'a Arc<Device>,
    pub(super) op: &'static str,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) step: &'a Arc<StepData>,
    pub(super) pages: PageShape,
    pub(super) step_args: StepArgs,
    pub(super) cache_args: CacheArgs,
    /// Of the result.
    pub(super) shape: Shape,
}

impl Call<'_> {
    /// Query heads that share a key head.
    pub(super) fn heads_per_key(&self) -> usize {
        self.inputs.n_heads / self.pages.n_kv_heads
    }

    /// STEPS of `flash.cu`, where heads have a width for it.
    pub(super) fn flash_steps(&self) -> Option<u32> {
        let width = self.pages.key_width;
        let fits = !self.pages.values_are_keys
            && width == self.inputs.v_width
            && width.is_multiple_of(16)
            && width <= 128
            && self.heads_per_key() <= FLASH_ROWS;
        fits.then_some((width / 16) as u32)
    }

    /// STEPS of `flash_one.cu`, where heads and their rotations are for it.
    pub(super) fn flash_one_steps(&self, q: &SourceArgs, k: &SourceArgs) -> Option<u32> {
        let are_even = [q, k].iter().all(|s| s.rotation.is_even());
        self.flash_steps().filter(|steps| steps.is_multiple_of(2) && are_even)
    }

    /// Latents: queries have been made, and keys are in the cache.
    pub(super) fn latent(&self, kernel: LatentKernel, queries: &Buffer) -> Result<CudaTensor> {
        match self.latent_parts(kernel, queries)? {
            Found::Whole(y) => Ok(y),
            Found::Parts { partial, n_splits } => self.merge(kernel, &partial, n_splits),
        }
    }

    /// As [`Call::latent`]; long sequences are left in parts.
    pub(super) fn latent_parts(&self, kernel: LatentKernel, queries: &Buffer) -> Result<Found> {
        let Call { device, op, inputs, step, pages, step_args, cache_args, shape } = *self;
        let (n_tokens, n_heads) = (step.n_tokens, inputs.n_heads);
        let (unit, [n_rows, _]) = (kernel.unit, kernel.shape);
        let most_tokens = (n_rows / n_heads).max(1);
        let blocks = step.blocks(device, most_tokens)?;
        let n_row_blocks = (most_tokens * n_heads).div_ceil(n_rows);
        let n_splits = splits(device, step, None, blocks.n * n_row_blocks);
        let (found, y, partial) = if n_splits == 1 {
            let (y, at) = CudaTensor::fresh(device, shape)?;
            (Found::Whole(y), at, 0)
        } else {
            let n = n_tokens * n_heads * n_splits * (pages.value_width + 4);
            let partial = Buffer::scratch(device, 4 * n)?;
            let at = partial.at();
            (Found::Parts { partial, n_splits }, 0, at)
        };
        let args = LatentArgs {
            queries: queries.at(),
            tiles: blocks.at(),
            step: step_args,
            cache: cache_args,
            n_heads: n_heads as u32,
            key_width: pages.key_width as u32,
            value_width: pages.value_width as u32,
            scale: inputs.scale,
            is_early: u32::from(step.spans.iter().all(|s| s.n_tokens <= 1)),
            y,
            partial,
        };
        let grid = Grid {
            blocks: [n_row_blocks, blocks.n, n_splits],
            threads: 256,
            shared_bytes: latent_bytes(&pages, kernel.shape),
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's; the kernel in front writes queries and pages; blocks are of tokens of one
        // sequence, whose heads are as many rows as it has at most, or of one token; `partial` has a row for each split.
        unsafe { device.launch(op, (unit, "latent"), grid, &args)? };
        Ok(found)
    }

    /// The result of parts.
    pub(super) fn merge(
        &self,
        kernel: LatentKernel,
        partial: &Buffer,
        n_splits: usize,
    ) -> Result<CudaTensor> {
        let (y, y_at) = CudaTensor::fresh(self.device, self.shape)?;
        let args = LatentMergeArgs {
            partial: partial.at(),
            y: y_at,
            n_splits: n_splits as u32,
            value_width: self.pages.value_width as u32,
        };
        let n = self.step.n_tokens * self.inputs.n_heads;
        let grid = Grid { blocks: [n, 1, 1], threads: 128, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's; the kernel in front has written all of `partial`.
        unsafe { self.device.launch(self.op, (kernel.unit, "latent_merge"), grid, &args)? };
        Ok(y)
    }

    /// Several tokens of a sequence: queries have been made, keys and values are in the cache.
    pub(super) fn flash(&self, steps: u32, queries: &Buffer) -> Result<CudaTensor> {
        let Call { device, op, inputs, step, pages, step_args, cache_args, shape } = *self;
        let (n_heads, heads_per_key) = (inputs.n_heads, self.heads_per_key());
        let blocks = step.blocks(device, FLASH_ROWS / heads_per_key)?;
        let (y, y_at) = CudaTensor::fresh(device, shape)?;
        let args = FlashArgs {
            queries: queries.at(),
            tiles: blocks.at(),
            step: step_args,
            cache: cache_args,
            n_heads: n_heads as u32,
            heads_per_key: heads_per_key as u32,
            scale: inputs.scale,
            window: inputs.window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
            sinks: inputs.sinks.as_ref().map_or(0, |s| s.0.at()),
            y: y_at,
        };
        let unit = Unit::new("flash", &[("STEPS", steps)]);
        let grid = Grid {
            blocks: [pages.n_kv_heads, blocks.n, 1],
            threads: 128,
            shared_bytes: flash_bytes(steps),
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's; the append in front writes queries and pages; blocks are of tokens of one
        // sequence, whose heads that share a key head are FLASH_ROWS rows at most.
        unsafe { device.launch(op, (unit, "flash"), grid, &args)? };
        Ok(y)
    }

    /// One token of each sequence, with what queries, keys and values are made of.
    pub(super) fn flash_one(&self, steps: u32, [q, k, v]: [SourceArgs; 3]) -> Result<CudaTensor> {
        let Call { device, op, inputs, step, pages, step_args, cache_args, shape } = *self;
        let (n_tokens, n_heads) = (step.n_tokens, inputs.n_heads);
        let heads_per_key = self.heads_per_key();
        let n_head_blocks = pages.n_kv_heads * heads_per_key.div_ceil(HEADS_PER_BLOCK);
        // One block fits a multiprocessor, and few blocks are worth less than one pass for each.
        let room = device.driver.properties.n_multiprocessors as usize / (n_head_blocks * n_tokens).max(1);
        let n_passes = (split_class(step) as usize).div_ceil(ONE_POSITIONS / TILE);
        let of_window = inputs.window.map_or(MAX_SPLITS, |w| w.div_ceil(ONE_POSITIONS) + 1);
        let is_cluster = device.driver.properties.arch >= 90;
        let most =
            room.clamp(1, if is_cluster { device.driver.properties.most_in_cluster() } else { MAX_SPLITS });
        let n_splits = n_passes.min(of_window).min(most);
        // Clusters have a power of two of blocks.
        let n_splits = if is_cluster { 1 << n_splits.ilog2() } else { n_splits };
        let partial = match n_splits {
            _ if is_cluster => None,
            1 => None,
            _ => Some(Buffer::scratch(device, 4 * n_tokens * n_heads * n_splits * (pages.key_width + 4))?),
        };
        let (y, y_at) = CudaTensor::fresh(device, shape)?;
        let args = FlashOneArgs {
            step: step_args,
            cache: cache_args,
            n_heads: n_heads as u32,
            heads_per_key: heads_per_key as u32,
            scale: inputs.scale,
            window: inputs.window.map_or(0, |w| w.min(u32::MAX as usize) as u32),
            sinks: inputs.sinks.as_ref().map_or(0, |s| s.0.at()),
            y: y_at,
            partial: partial.as_ref().map_or(0, |p| p.at()),
            n_done: device.counters + 4 * N_COUNTERS as u64,
            q,
            k,
            v,
        };
        let unit = Unit::new("flash_one", &[("STEPS", steps), ("CLUSTER", u32::from(is_cluster))]);
        let blocks = [n_head_blocks, n_splits, n_tokens];
        let cluster = if is_cluster { n_splits } else { 1 };
        let grid = Grid { blocks, threads: 32 * HEADS_PER_BLOCK, shared_bytes: 0, cluster };
        // SAFETY: the struct is the kernel's; sources have a row per token and head, pages are reserved up to the step's
        // positions; where there are splits, they are so few that each block of heads of each token has a counter.
        unsafe { device.launch(op, (unit, "flash_one"), grid, &args)? };
        Ok(y)
    }
}

//! Products with many rows of activations, on tensor cores: `matmul.cu` and what comes before it.

use std::sync::{Arc, Mutex};

use zmlx_core::Result;

use crate::compile::Unit;
use crate::device::Device;
use crate::driver::Grid;
use crate::memory::{Buffer, lock};
use crate::products::{Epilogue, InputArgs, MAX_PARTS, Product};
use crate::tensor::CudaIndices;
use crate::weight::{Part, PartFormat};

/// From this many tokens on a product may run on tensor cores. Fewer have the same sums as one alone.
pub(crate) const MIN_TOKENS: usize = 8;
/// From this many tokens on routers do, too, and choose in a kernel of their own.
pub(crate) const MIN_ROUTED_TOKENS: usize = 64;
/// Rows of a tile of the matrix.
const TILE_ROWS: usize = 16;
/// Warps of a block.
const N_WARPS: usize = 4;
/// Chunks whose activations a block holds, `STAGES` of the kernel.
const STAGES: usize = 3;

/// Most bytes of shared memory of a block beside its activations: sums of three warps, and three numbers of each job.
const OTHER_BYTES: usize = 3 * 2 * 2 * 4 * 32 * 4 + 3 * 64 * 4;

/// How a product is divided among blocks.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    /// Jobs of a block: 8, 16, 32 or 64.
    jobs: usize,
    /// Tiles of 16 rows of a warp.
    tiles: usize,
    /// Whether the warps of a block share rows.
    shares_rows: bool,
}

impl Tiling {
    fn new(device: &Device, product: &Product, n_out: usize) -> Self {
        let n_multiprocessors = device.driver.properties.n_multiprocessors as usize;
        let n = product.n_jobs;
        if product.experts.is_some() {
            // Tensor cores multiply all that a tile has room for. Some experts have more jobs than others.
            let jobs = match n / product.n_mats.min(n).max(1) {
                0..=4 => 8,
                5..=10 => 16,
                11..=47 => 32,
                _ => 64,
            };
            return Self { jobs, tiles: 2, shares_rows: false };
        }
        let of_mat = n / product.n_mats.max(1);
        let n_blocks =
            |jobs: usize, rows: usize| n_out.div_ceil(rows) * of_mat.div_ceil(jobs) * product.n_mats;
        let block_rows = 2 * TILE_ROWS * N_WARPS / streams(product);
        let fills = |jobs: &usize| of_mat >= 2 * jobs && n_blocks(*jobs, block_rows) >= 2 * n_multiprocessors;
        if let Some(jobs) = [64, 32].into_iter().find(fills) {
            return Self { jobs, tiles: 2, shares_rows: false };
        }
        let jobs = if of_mat <= 8 { 8 } else { 16 };
        let shares_rows = n_blocks(jobs, block_rows) < 2 * n_multiprocessors;
        let is_short =
            shares_rows && streams(product) == 1 && n_blocks(jobs, 2 * TILE_ROWS) < n_multiprocessors;
        Self { jobs, tiles: if is_short { 1 } else { 2 }, shares_rows }
    }

    /// Rows of the output of a block.
    fn rows(&self, streams: usize) -> usize {
        let rows = TILE_ROWS * self.tiles / streams;
        if self.shares_rows { rows } else { rows * N_WARPS }
    }

    /// Consecutive columns of a lane, `LANE` of the kernel, where codes have that many bits: up to 32 bytes, or 16 where sums take
    /// most registers, as far as rows are whole chunks and a block has room for them.
    fn lane(&self, device: &Device, bits: u32, n_in: usize) -> usize {
        let most = if self.jobs <= 16 { 256 } else { 128 } / bits as usize;
        let room = (device.driver.properties.shared_bytes as usize).saturating_sub(OTHER_BYTES);
        let fits =
            |lane: &usize| *lane <= most && n_in.is_multiple_of(4 * lane) && self.shared_bytes(*lane) <= room;
        [64, 32].into_iter().find(fits).unwrap_or(16)
    }

    /// Bytes of activations that a block holds.
    fn shared_bytes(&self, lane: usize) -> usize {
        let pipes = if self.shares_rows { N_WARPS } else { 1 };
        pipes * STAGES * self.jobs * 4 * lane * 2
    }
}

/// Matrices whose products make one output.
fn streams(product: &Product) -> usize {
    if product.epilogue == Epilogue::SwiGlu { 2 } else { 1 }
}

/// Columns of the smallest chunk.
const CHUNK: usize = 64;
/// Most experts that `group.cu` puts in order.
const MAX_EXPERTS: usize = 1024;

/// Jobs in the order of their experts.
pub(crate) struct Groups {
    jobs: Arc<Buffer>,
    tiles: Arc<Buffer>,
    n_tiles: Arc<Buffer>,
    /// Jobs of a tile.
    tile_jobs: usize,
    /// More tiles than there can be.
    most_tiles: usize,
}

/// The groups of some indices, once a product has made them.
pub(crate) type Grouped = Arc<Mutex<Option<Arc<Groups>>>>;

#[repr(C)]
struct GroupArgs {
    experts: u64,
    n: u32,
    n_experts: u32,
    tile_jobs: u32,
    jobs: u64,
    tiles: u64,
    n_tiles: u64,
}

/// The jobs of `experts` by expert. The caller has checked that all are below `n_experts`.
fn groups(
    device: &Arc<Device>,
    experts: &CudaIndices,
    n_experts: usize,
    tile_jobs: usize,
) -> Result<Arc<Groups>> {
    let mut made = lock(&experts.grouped);
    if let Some(groups) = made.as_ref().filter(|g| g.tile_jobs == tile_jobs) {
        return Ok(Arc::clone(groups));
    }
    let n = experts.shape.len();
    let most_tiles = n / tile_jobs + n_experts.min(n);
    let groups = Groups {
        jobs: Buffer::scratch(device, 4 * n)?,
        tiles: Buffer::scratch(device, 16 * most_tiles)?,
        n_tiles: Buffer::scratch(device, 4)?,
        tile_jobs,
        most_tiles,
    };
    let args = GroupArgs {
        experts: experts.at(),
        n: n as u32,
        n_experts: n_experts as u32,
        tile_jobs: tile_jobs as u32,
        jobs: groups.jobs.at(),
        tiles: groups.tiles.at(),
        n_tiles: groups.n_tiles.at(),
    };
    let grid = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes: 0, cluster: 1 };
    // SAFETY: the struct is the kernel's; experts are below n_experts, at most 1024; each expert has one tile that is not full at
    // most.
    unsafe { device.launch("group", (Unit::new("group", &[]), "group"), grid, &args)? };
    let groups = Arc::new(groups);
    *made = Some(Arc::clone(&groups));
    Ok(groups)
}

#[repr(C)]
struct ToF16Args {
    input: InputArgs,
    n_in: u32,
    y: u64,
    factors: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MatmulPartArgs {
    data: u64,
    scales: u64,
    row_factors: u64,
    first_row: u32,
    n_rows: u32,
}

#[repr(C)]
struct MatmulArgs {
    parts: [MatmulPartArgs; MAX_PARTS],
    n_parts: u32,
    n_out: u32,
    n_chunks: u32,
    n_jobs: u32,
    jobs_per_x: u32,
    x: u64,
    x_factors: u64,
    tiles: u64,
    n_tiles: u64,
    jobs: u64,
    residual: u64,
    y: u64,
    y_stride: u32,
}

/// Whether the kernels have a format.
pub(crate) fn has_format(format: PartFormat) -> bool {
    macros(format).is_some()
}

/// The macros of a format that the kernels have.
fn macros(format: PartFormat) -> Option<[(&'static str, u32); 4]> {
    match format {
        PartFormat::Coded { bits: bits @ (4 | 8), code, scales: scales @ 0..=2, group_shift }
            if group_shift <= 2 =>
        {
            Some([("BITS", bits), ("CODE", code), ("SCALES", scales), ("GROUP", 32 << group_shift)])
        }
        _ => None,
    }
}

/// Whether a product is one for tensor cores: enough tokens, a format and sizes that fit.
pub(crate) fn suits(product: &Product) -> bool {
    // Without experts job j has matrix j % n_mats.
    let n_tokens = product.experts.as_ref().map_or(product.n_jobs / product.n_mats.max(1), |e| e.dims()[0]);
    n_tokens >= MIN_TOKENS
        && (product.experts.is_none() || product.n_mats <= MAX_EXPERTS)
        && product.n_slots == 1
        && product.slot_weights.is_none()
        && product.n_in.is_multiple_of(CHUNK)
        && product.parts.iter().all(|p| p.n_rows.is_multiple_of(16) && has_format(p.format))
}

/// Launches parts of one format, of a product that [`suits`].
pub(crate) fn launch(
    device: &Arc<Device>,
    product: &Product,
    (run, n_out): (&[Part], usize),
    input: InputArgs,
    (residual, y): (u64, u64),
) -> Result<()> {
    let Some(format) = macros(run[0].format) else { return Ok(()) };
    let n_rows = product.n_jobs / product.rows_per_x;
    let n_in = product.n_in;
    let tiling = Tiling::new(device, product, n_out);
    let [bits, code, scales, group] = format;
    let lane = tiling.lane(device, bits.1, n_in);
    let x = Buffer::scratch(device, 2 * n_rows * n_in)?;
    let factors = Buffer::scratch(device, 4 * n_rows)?;
    let args = ToF16Args { input, n_in: n_in as u32, y: x.at(), factors: factors.at() };
    let unit = Unit::new("to_f16", &[bits, ("LANE", lane as u32)]);
    let grid = Grid { blocks: [n_rows, 1, 1], threads: 256, shared_bytes: 0, cluster: 1 };
    // SAFETY: the struct is the kernel's; the input has n_rows rows of n_in; the results have room for 2 bytes a value and a
    // factor for each row.
    unsafe { device.launch(product.op, (unit, "to_f16"), grid, &args)? };

    let groups =
        product.experts.as_ref().map(|e| groups(device, e, product.n_mats, tiling.jobs)).transpose()?;
    let n_mats = if groups.is_some() { 1 } else { product.n_mats };
    let n_tiles = groups.as_ref().map_or((product.n_jobs / n_mats).div_ceil(tiling.jobs), |g| g.most_tiles);
    let streams = streams(product);
    let mut parts = [MatmulPartArgs::default(); MAX_PARTS];
    let mut first_row = 0;
    for (to, part) in parts.iter_mut().zip(run) {
        let at = |buffer: &Option<Arc<Buffer>>| buffer.as_ref().map_or(0, |b| b.at());
        *to = MatmulPartArgs {
            data: part.data.at(),
            scales: at(&part.scales),
            row_factors: at(&part.row_factors),
            first_row,
            n_rows: part.n_rows as u32,
        };
        first_row += part.n_rows as u32;
    }
    let args = MatmulArgs {
        parts,
        n_parts: run.len() as u32,
        n_out: n_out as u32,
        n_chunks: (n_in / (4 * lane)) as u32,
        n_jobs: product.n_jobs as u32,
        jobs_per_x: product.rows_per_x as u32,
        x: x.at(),
        x_factors: factors.at(),
        tiles: groups.as_ref().map_or(0, |g| g.tiles.at()),
        n_tiles: groups.as_ref().map_or(0, |g| g.n_tiles.at()),
        jobs: groups.as_ref().map_or(0, |g| g.jobs.at()),
        residual,
        y,
        y_stride: product.n_out as u32,
    };
    let unit = Unit::new(
        "matmul",
        &[
            bits,
            code,
            scales,
            group,
            ("STREAMS", streams as u32),
            ("JOBS", tiling.jobs as u32),
            ("TILES", tiling.tiles as u32),
            ("LANE", lane as u32),
            ("SHARED_ROWS", u32::from(tiling.shares_rows)),
        ],
    );
    let grid = Grid {
        blocks: [n_out.div_ceil(tiling.rows(streams)), n_tiles, n_mats],
        threads: 32 * N_WARPS,
        shared_bytes: tiling.shared_bytes(lane),
        cluster: 1,
    };
    // SAFETY: the struct is the kernel's; `suits` has checked sizes and format, the product's maker shapes and indices; what is
    // written before it is kept until this call returns, and freed memory is reused in the order of the stream.
    unsafe { device.launch(product.op, (unit, "matmul"), grid, &args) }
}

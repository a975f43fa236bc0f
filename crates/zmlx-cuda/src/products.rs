//! Products with weights: which kernel, with how many rows a warp, and what goes along.

use std::sync::Arc;

use zmlx_core::{Error, Result};

use crate::NAME;
use crate::attention::PositionsArgs;
use crate::compile::Unit;
use crate::device::Device;
use crate::driver::Grid;
use crate::mailboxes::MailboxArgs;
use crate::matmul;
use crate::memory::{Buffer, lock};
use crate::rows::{RouteArgs, RouteTail, copy_rows};
use crate::tensor::{CudaIndices, CudaTensor, Norm, Pending, Staged, View};
use crate::weight::{FP8, Part, PartFormat};

/// Parts that one launch can take; `MAX_PARTS` of the kernels.
pub(crate) const MAX_PARTS: usize = 4;
/// Threads of a block.
const THREADS: usize = 256;

/// Rows of activations, and the norm that comes first.
#[derive(Clone)]
pub(crate) struct Input {
    x: View,
    stride: usize,
    norm: Option<Norm>,
    /// What a product has made of these rows, for the others.
    staged: Staged,
}

/// Whether a norm that has not been launched goes along with a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norms {
    Along,
    Apart,
}

impl Input {
    /// The rows of `width` values of a tensor. A norm over them that has not been launched may go along.
    pub(crate) fn new(device: &Arc<Device>, x: &CudaTensor, width: usize, norms: Norms) -> Result<Self> {
        if let Some(Pending::Heads(heads)) = x.op()
            && let (width_of, None, Some(norm)) = (heads.width, &heads.rotation, &heads.norm)
            && width_of == width
            && norms == Norms::Along
            && let Some(rows) = heads.x.rows(width)
            && rows.per_segment == 1
            && heads.x.is_aligned()
        {
            return Ok(Self {
                x: heads.x.clone(),
                stride: rows.stride as usize,
                norm: Some(norm.clone()),
                staged: Arc::clone(&heads.staged),
            });
        }
        let (view, rows) = x.rows(device, width)?;
        if rows.per_segment == 1 && view.is_aligned() {
            return Ok(Self { x: view, stride: rows.stride as usize, norm: None, staged: Staged::default() });
        }
        let view = if view.is_aligned() {
            x.contiguous(device)?
        } else {
            copy_rows(device, &view, width, 0..width, None)?
        };
        Ok(Self { x: view, stride: width, norm: None, staged: Staged::default() })
    }
}

/// A product that can be launched.
#[derive(Clone)]
pub(crate) struct Product {
    pub(crate) op: &'static str,
    /// The matrices whose rows are the output's; for [`Epilogue::SwiGlu`] gate and up.
    pub(crate) parts: Vec<Part>,
    pub(crate) n_mats: usize,
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    /// The activations, which may not have been launched.
    pub(crate) x: CudaTensor,
    /// Output rows.
    pub(crate) n_jobs: usize,
    /// Rows of activations that are summed up in one output row.
    pub(crate) n_slots: usize,
    /// So many slots in turn use the same row of activations.
    pub(crate) rows_per_x: usize,
    pub(crate) experts: Option<CudaIndices>,
    pub(crate) slot_weights: Option<View>,
    /// Matrices that every token takes as one more choice behind its experts, without a weight: as many as `parts`.
    pub(crate) shared: Vec<Part>,
    pub(crate) epilogue: Epilogue,
    pub(crate) beside: Beside,
}

/// What some products have besides: those before and after attention on latents, and those of several ranks.
#[derive(Clone)]
pub(crate) enum Beside {
    /// Nothing.
    None,
    /// The results are the first part of queries of `width` values each; the rest is made beside them, and the new key.
    Queries { positions: Box<PositionsArgs>, queries: Arc<Buffer>, width: usize, _sources: [View; 3] },
    /// The activations are merged from what blocks of attention found.
    Merge { partial: Arc<Buffer>, n_splits: usize },
    /// The result is the sum of the products of all ranks.
    Ranks(MailboxArgs),
}

/// What becomes of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epilogue {
    /// They are the result.
    None,
    /// `silu(first) · second` of two matrices.
    SwiGlu,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PartArgs {
    data: u64,
    scales: u64,
    first_row: u32,
    n_rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct InputArgs {
    x: u64,
    stride: u32,
    rows_per_x: u32,
    norm: u64,
    eps: f32,
    slot_weights: u64,
}

#[repr(C)]
struct MatvecArgs {
    parts: [PartArgs; MAX_PARTS],
    n_parts: u32,
    n_out: u32,
    n_chunks: u32,
    chunk_reciprocal: u32,
    group_shift: u32,
    n_slots: u32,
    n_mats: u32,
    experts_are_early: u32,
    input: InputArgs,
    experts: u64,
    residual: u64,
    y: u64,
    y_stride: u32,
    staged: u64,
    route: RouteArgs,
}

// The parameter of the kernel with what each kind of [`Beside`] adds to it.

#[repr(C)]
struct QueriesArgs {
    product: MatvecArgs,
    positions: PositionsArgs,
}

#[repr(C)]
struct MergeArgs {
    product: MatvecArgs,
    partial: u64,
    n_splits: u32,
}

#[repr(C)]
struct RanksArgs {
    product: MatvecArgs,
    mailboxes: MailboxArgs,
}

#[repr(C)]
struct DenseArgs {
    parts: [PartArgs; MAX_PARTS],
    n_parts: u32,
    n_out: u32,
    n_in: u32,
    n_slots: u32,
    n_mats: u32,
    input: InputArgs,
    experts: u64,
    residual: u64,
    y: u64,
    y_stride: u32,
    route: RouteArgs,
}

impl Product {
    fn streams(&self) -> usize {
        match self.epilogue {
            Epilogue::None => 1,
            Epilogue::SwiGlu => 2,
        }
    }

    /// Whether it is one launch of `matvec.cu`.
    pub(crate) fn is_matvec(&self) -> bool {
        self.parts.len() == 1
            && matches!(self.parts[0].format, PartFormat::Coded { .. })
            && !matmul::suits(self)
    }

    /// Whether one block can hold the activations.
    pub(crate) fn fits(&self, device: &Device) -> bool {
        if matmul::suits(self) {
            return true;
        }
        let values = self.n_slots * self.n_in;
        let n_bytes = match self.parts[0].format {
            PartFormat::Coded { .. } => values / 32 * 72,
            PartFormat::Element(_) => 4 * values,
        };
        n_bytes + 1024 <= device.driver.properties.shared_bytes as usize
    }

    /// The product that is the sum of this one and those of other ranks, as one kernel. `None` where that does not suit the product, or
    /// not all blocks are on the GPU at once: a block waits for those of other ranks, which must not wait for one that has no room.
    pub(crate) fn with_sum_of_ranks(&self, device: &Device, mailboxes: MailboxArgs) -> Option<Self> {
        let is_plain = self.epilogue == Epilogue::None && matches!(self.beside, Beside::None);
        let [Part { format: PartFormat::Coded { bits, .. }, .. }] = self.parts[..] else { return None };
        // Where activations are normed, another product may have staged them, and then no barrier follows the exchange's beginning.
        if !is_plain || !self.is_matvec() || matches!(self.x.op(), Some(Pending::Heads(_))) {
            return None;
        }
        let Matvec { n_blocks, shared_bytes, .. } =
            Matvec::new(device, self, (bits, self.n_out), &Shares::new(device, 0, self.n_out));
        // The registers of two blocks fit a multiprocessor by the kernel's launch bounds.
        let two_fit = 2 * (shared_bytes + RESERVED_BYTES) <= device.driver.properties.shared_bytes as usize;
        let are_at_once = two_fit && self.n_jobs * n_blocks <= blocks_at_once(device);
        are_at_once.then(|| Self { beside: Beside::Ranks(mailboxes), ..self.clone() })
    }

    /// Computes the product, plus the values at `residual` if there are some.
    pub(crate) fn launch(&self, device: &Arc<Device>, residual: Option<&View>) -> Result<View> {
        self.launch_all(device, residual, None)
    }

    /// Computes the logits of a router, of one part, and what it chooses.
    pub(crate) fn launch_routed(&self, device: &Arc<Device>, route: RouteTail) -> Result<View> {
        self.launch_all(device, None, Some(route))
    }

    fn launch_all(
        &self,
        device: &Arc<Device>,
        residual: Option<&View>,
        mut route: Option<RouteTail>,
    ) -> Result<View> {
        let len = self.n_jobs * self.n_out;
        if !self.fits(device) {
            let why = format!("{} rows of {} values at once", self.n_slots, self.n_in);
            return Err(Error::Unsupported { op: self.op, backend: NAME, why });
        }
        // Every block of a matrix-vector product computes the norms of its rows, but a matrix product does it once.
        let is_once = route.is_none() && matmul::suits(self);
        let norms = if is_once || self.n_jobs * self.n_slots <= 16 { Norms::Along } else { Norms::Apart };
        let input = Input::new(device, &self.x, self.n_in, norms)?;
        let y = match &self.beside {
            Beside::Queries { queries, .. } => Arc::clone(queries),
            Beside::None | Beside::Merge { .. } | Beside::Ranks(_) => Buffer::scratch(device, 4 * len)?,
        };
        let mut first_row = 0;
        debug_assert!(self.shared.is_empty() || self.shared.len() == self.parts.len());
        // Rows of several banks are not found by one number.
        let most = if self.n_mats > 1 && self.streams() == 1 { 1 } else { MAX_PARTS };
        for run in self.parts.chunk_by(|a, b| a.format == b.format).flat_map(|run| run.chunks(most)) {
            let at = |of: u64| of + 4 * first_row as u64;
            if let Some(route) = &mut route {
                route.args.x = y.at();
            }
            let ends = (residual.map_or(0, |r| at(r.at())), at(y.at()));
            let n_rows = self.launch_run(device, &input, run, ends, route.as_ref())?;
            first_row += n_rows;
        }
        Ok(View::whole(y, len))
    }

    /// Memory for what a normed row becomes, and what the kernel does with it: STAGED of `matvec.cuh`. A small product in
    /// front of others (a router, a bottleneck) makes it for all of them.
    fn staged(
        &self,
        device: &Arc<Device>,
        input: &Input,
        n_items: usize,
        is_small: bool,
    ) -> Result<(Option<Arc<Buffer>>, u32)> {
        if input.norm.is_none() || self.n_slots > 1 {
            return Ok((None, 0));
        }
        let mut staged = lock(&input.staged);
        if let Some(buffer) = &*staged {
            return Ok((Some(Arc::clone(buffer)), 2));
        }
        if !is_small {
            return Ok((None, 0));
        }
        let n_rows = self.n_jobs.div_ceil(self.rows_per_x);
        let buffer = Buffer::scratch(device, n_rows * (72 * n_items + 16))?;
        *staged = Some(Arc::clone(&buffer));
        Ok((Some(buffer), 1))
    }

    /// Launches parts of one format; returns the number of output rows that they are.
    fn launch_run(
        &self,
        device: &Arc<Device>,
        of_x: &Input,
        run: &[Part],
        (residual, y): (u64, u64),
        route: Option<&RouteTail>,
    ) -> Result<usize> {
        let (rule, per_lane) = route.map_or((0, 1), |r| (r.rule, r.per_lane));
        let route = route.map_or(RouteArgs::default(), |r| r.args);
        let streams = self.streams();
        let n_out = if streams == 2 { self.n_out } else { run.iter().map(|p| p.n_rows).sum() };
        let mut parts = [PartArgs::default(); MAX_PARTS];
        let mut first_row = 0;
        for (to, part) in parts.iter_mut().zip(run.iter().chain(&self.shared)) {
            *to = PartArgs {
                data: part.data.at(),
                scales: part.scales.as_ref().map_or(0, |s| s.at()),
                first_row,
                n_rows: part.n_rows as u32,
            };
            first_row += part.n_rows as u32;
        }
        let input = InputArgs {
            x: of_x.x.at(),
            stride: of_x.stride as u32,
            rows_per_x: self.rows_per_x as u32,
            norm: of_x.norm.as_ref().map_or(0, |n| n.weight.0.at()),
            eps: of_x.norm.as_ref().map_or(0.0, |n| n.eps),
            slot_weights: self.slot_weights.as_ref().map_or(0, View::at),
        };
        if rule == 0 && matmul::suits(self) {
            matmul::launch(device, self, (run, n_out), input, (residual, y))?;
            return Ok(n_out);
        }
        let experts = self.experts.as_ref().map_or(0, CudaIndices::at);
        let (n_parts, y_stride) = (run.len() as u32, self.n_out as u32);
        let (n_slots, n_mats) = (self.n_slots as u32, self.n_mats as u32);
        let shares = Shares::new(device, rule, n_out);
        let threads = shares.threads;
        let grid = |n_blocks: usize, shared_bytes: usize| {
            let cluster = if shares.is_cluster { n_blocks } else { 1 };
            Grid { blocks: [self.n_jobs, n_blocks, 1], threads, shared_bytes, cluster }
        };
        match run[0].format {
            PartFormat::Coded { bits, code, scales, group_shift } => {
                let n_chunks = self.n_in / 32;
                let Matvec { plan, n_items, n_blocks, repeats, shared_bytes } =
                    Matvec::new(device, self, (bits, n_out), &shares);
                let (staged, how) = self.staged(device, of_x, n_items, plan.is_small)?;
                let mut args = MatvecArgs {
                    parts,
                    n_parts,
                    n_out: n_out as u32,
                    n_chunks: n_chunks as u32,
                    chunk_reciprocal: if n_chunks == 1 {
                        0
                    } else {
                        (1u64 << 32).div_ceil(n_chunks as u64) as u32
                    },
                    group_shift,
                    n_slots,
                    n_mats,
                    experts_are_early: u32::from(
                        self.experts.as_ref().is_some_and(|e| e.launch < device.driver.last_launch()),
                    ),
                    input,
                    experts,
                    residual,
                    y,
                    y_stride,
                    staged: staged.as_ref().map_or(0, |s| s.at()),
                    route,
                };
                let unit = Unit::new(
                    "matvec",
                    &[
                        ("BITS", bits),
                        ("CODE", code),
                        ("SCALES", scales),
                        ("ROWS", plan.rows as u32),
                        ("REPEATS", u32::from(repeats)),
                        ("DEPTH", plan.depth as u32),
                        ("LOOP", u32::from(n_items > 32 * plan.depth)),
                        ("STREAMS", streams as u32),
                        ("STEPS", (4 * n_items).div_ceil(threads).min(3) as u32),
                        ("NORM", u32::from(of_x.norm.is_some())),
                        ("STAGED", how),
                        ("SHARED", u32::from(!self.shared.is_empty())),
                        ("THREADS", threads as u32),
                        ("ROUTE", rule),
                        ("CLUSTER", u32::from(shares.is_cluster)),
                        ("PER_LANE", per_lane),
                        ("QUERIES", u32::from(matches!(self.beside, Beside::Queries { .. }))),
                        ("MERGE", u32::from(matches!(self.beside, Beside::Merge { .. }))),
                        ("RANKS", u32::from(matches!(self.beside, Beside::Ranks(_)))),
                    ],
                );
                let mut grid = grid(n_blocks, shared_bytes);
                let kernel = (unit, "matvec");
                // SAFETY: the struct is the kernel's, with what the macros add; shapes and indices were checked when the product
                // was made, and it keeps what it reads until its result is there.
                unsafe {
                    match &self.beside {
                        Beside::None => device.launch(self.op, kernel, grid, &args)?,
                        Beside::Queries { positions, width, .. } => {
                            grid.blocks[1] += 1;
                            args.y_stride = *width as u32;
                            let args = QueriesArgs { product: args, positions: **positions };
                            device.launch(self.op, kernel, grid, &args)?;
                        }
                        Beside::Merge { partial, n_splits } => {
                            let (partial, n_splits) = (partial.at(), *n_splits as u32);
                            let args = MergeArgs { product: args, partial, n_splits };
                            device.launch(self.op, kernel, grid, &args)?;
                        }
                        Beside::Ranks(mailboxes) => {
                            let args = RanksArgs { product: args, mailboxes: *mailboxes };
                            device.launch(self.op, kernel, grid, &args)?;
                        }
                    }
                }
            }
            PartFormat::Element(element) => {
                let n_bytes = [4, 2, 2, 1][element as usize];
                let vector = if (self.n_in * n_bytes).is_multiple_of(16) { 16 / n_bytes } else { 1 };
                debug_assert!(element != FP8 || vector == 16);
                let args = DenseArgs {
                    parts,
                    n_parts,
                    n_out: n_out as u32,
                    n_in: self.n_in as u32,
                    n_slots,
                    n_mats,
                    input,
                    experts,
                    residual,
                    y,
                    y_stride,
                    route,
                };
                let rows = if n_out * self.n_jobs * streams >= 4096 { 2 } else { 1 };
                let rows = shares.rows.unwrap_or(rows);
                let unit = Unit::new(
                    "dense",
                    &[
                        ("ELEMENT", element),
                        ("V", vector as u32),
                        ("ROWS", rows as u32),
                        ("STREAMS", streams as u32),
                        ("THREADS", threads as u32),
                        ("ROUTE", rule),
                        ("CLUSTER", u32::from(shares.is_cluster)),
                        ("PER_LANE", per_lane),
                    ],
                );
                // SAFETY: as above.
                unsafe {
                    let n_blocks = n_out.div_ceil(rows * threads / 32);
                    let grid = grid(n_blocks, 4 * self.n_slots * self.n_in + 128);
                    device.launch(self.op, (unit, "dense"), grid, &args)?;
                }
            }
        }
        Ok(n_out)
    }
}

/// The launch of a product with quantised weights.
#[derive(Clone, Copy, Debug)]
struct Matvec {
    plan: Plan,
    /// Chunks of activations of a block.
    n_items: usize,
    /// Blocks of a job.
    n_blocks: usize,
    /// Whether a warp takes more rows when it has those.
    repeats: bool,
    /// Shared memory of a block.
    shared_bytes: usize,
}

impl Matvec {
    fn new(device: &Device, product: &Product, (bits, n_out): (u32, usize), shares: &Shares) -> Self {
        let n_items = product.n_slots * (product.n_in / 32);
        let mut plan = Plan::new(bits, product.streams(), n_items, n_out * product.n_jobs, device);
        plan.rows = shares.rows.unwrap_or(plan.rows);
        let n_blocks = n_out.div_ceil(plan.rows * shares.threads / 32);
        // Of matrices with many times as many rows as blocks have room for, each block takes more.
        let at_once = blocks_at_once(device);
        let repeats = !shares.is_router && product.n_jobs == 1 && n_blocks > 8 * at_once;
        let n_blocks = if repeats { at_once } else { n_blocks };
        Self { plan, n_items, n_blocks, repeats, shared_bytes: n_items * 72 + 4 * shares.threads }
    }
}

/// Shared memory that a block takes beside what it asks for: the driver's, and the kernel's own variables.
const RESERVED_BYTES: usize = 2048;

/// Blocks of a product that are on the GPU at once, if two fit a multiprocessor.
fn blocks_at_once(device: &Device) -> usize {
    2 * device.driver.properties.n_multiprocessors as usize
}

/// Threads of a block, and for a router how its rows are shared out among the few blocks of a cluster.
#[derive(Clone, Copy, Debug)]
struct Shares {
    threads: usize,
    /// Rows of a warp, where a cluster must have room for all.
    rows: Option<usize>,
    is_router: bool,
    is_cluster: bool,
}

impl Shares {
    fn new(device: &Device, rule: u32, n_out: usize) -> Self {
        const CLUSTER: usize = 8;
        const ROUTER_THREADS: usize = 512;
        let rows = n_out.div_ceil(CLUSTER * ROUTER_THREADS / 32).next_power_of_two();
        let is_router = rule != 0;
        if !is_router || device.driver.properties.arch < 90 || rows > 4 {
            return Self { threads: THREADS, rows: None, is_router, is_cluster: false };
        }
        Self { threads: ROUTER_THREADS, rows: Some(rows), is_router, is_cluster: true }
    }
}

/// How a quantised product is shared out.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a warp (with gate and up: pairs).
    rows: usize,
    /// Chunks of a row that a lane asks for at once.
    depth: usize,
    /// So few rows that not all multiprocessors have a warp's worth of them.
    is_small: bool,
}

impl Plan {
    /// Enough loads in flight in each warp, and warps for all multiprocessors.
    fn new(bits: u32, streams: usize, n_items: usize, n_rows: usize, device: &Device) -> Self {
        let depth = if matches!(bits, 2 | 4 | 8) {
            [1, 2, 4].into_iter().find(|d| 32 * d >= n_items).unwrap_or(6)
        } else {
            1 // codes across words take many instructions: not limited by memory
        };
        let most = if depth <= 2 { 4 } else { 2 };
        let is_small = n_rows < 8 * device.driver.properties.n_multiprocessors as usize;
        Self { rows: if is_small { 1 } else { most / streams }, depth, is_small }
    }
}

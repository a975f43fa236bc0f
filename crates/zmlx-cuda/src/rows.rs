//! Launching the kernels of `rows.cu`, `route.cu` and the embeddings.

use std::ops::Range;
use std::sync::Arc;

use zmlx_core::{Activation, Error, NoauxTc, Renormalize, Result, SoftmaxTopK};

use crate::NAME;
use crate::compile::Unit;
use crate::device::{Device, N_COUNTERS};
use crate::driver::Grid;
use crate::matmul::MIN_ROUTED_TOKENS;
use crate::memory::Buffer;
use crate::tensor::{CudaIndices, CudaTensor, Heads, Pending, Rows, Shape, View, ensure};
use crate::weight::{CudaWeight, PartFormat, Vector};

/// Blocks of 256 threads for ops on values; each thread takes one or more.
fn each(n: usize) -> Grid {
    Grid { blocks: [n.div_ceil(256).min(4096), 1, 1], threads: 256, shared_bytes: 0, cluster: 1 }
}

/// A block per row.
fn per_row(n_rows: usize, threads: usize) -> Grid {
    Grid { blocks: [n_rows, 1, 1], threads, shared_bytes: 0, cluster: 1 }
}

pub(crate) fn rows_unit() -> Unit {
    Unit::new("rows", &[])
}

#[repr(C)]
struct BinaryArgs {
    a: u64,
    b: u64,
    y: u64,
    n: u64,
    b_period: u64,
}

/// An op on pairs of values, `kernel` of `rows.cu`. `b` repeats after `b_period` values.
pub(crate) fn binary(
    device: &Arc<Device>,
    (op, kernel): (&'static str, &'static str),
    a: &CudaTensor,
    (b, b_period): (u64, usize),
) -> Result<CudaTensor> {
    let x = a.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, a.shape)?;
    let args = BinaryArgs { a: x.at(), b, y, n: a.shape.len() as u64, b_period: b_period.max(1) as u64 };
    // SAFETY: the struct is the kernel's; a and y have n values, b has b_period, and the callers keep it.
    unsafe { device.launch(op, (rows_unit(), kernel), each(a.shape.len()), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct GatedArgs {
    gate: u64,
    up: u64,
    y: u64,
    n: u64,
    alpha: f32,
    limit: f32,
}

/// Gate and up of equal shapes, joined.
pub(crate) fn gated(
    device: &Arc<Device>,
    op: &'static str,
    [gate, up]: [&CudaTensor; 2],
    activation: Activation,
) -> Result<CudaTensor> {
    let from = up.contiguous(device)?;
    let (kernel, alpha, limit) = match activation {
        Activation::SwiGlu => return binary(device, (op, "swiglu"), gate, (from.at(), from.len)),
        Activation::GeGlu => ("geglu", 0.0, 0.0),
        Activation::ClampedSwiGlu { alpha, limit } => ("clamped_swiglu", alpha, limit),
    };
    let x = gate.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, gate.shape)?;
    let args = GatedArgs { gate: x.at(), up: from.at(), y, n: gate.shape.len() as u64, alpha, limit };
    // SAFETY: the struct is the kernel's; all three have n values.
    unsafe { device.launch(op, (rows_unit(), kernel), each(gate.shape.len()), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct GatherAddArgs {
    x: u64,
    bank: u64,
    experts: u64,
    y: u64,
    width: u32,
    n: u64,
}

/// Rows of x and those of `bank` that their experts choose. The backend has checked shapes and indices.
pub(crate) fn gather_add(
    device: &Arc<Device>,
    x: &CudaTensor,
    bank: &Vector,
    experts: &CudaIndices,
) -> Result<CudaTensor> {
    let from = x.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, x.shape)?;
    let (n, width) = (x.shape.len(), x.shape.last() as u32);
    let args =
        GatherAddArgs { x: from.at(), bank: bank.0.at(), experts: experts.at(), y, width, n: n as u64 };
    // SAFETY: the struct is the kernel's; x and y have n values in rows of width, the bank a row for each index.
    unsafe { device.launch("gather_add", (rows_unit(), "gather_add"), each(n), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct HeldExpertsArgs {
    experts: u64,
    weights: u64,
    y_experts: u64,
    y_weights: u64,
    n: u64,
    first: u32,
    n_held: u32,
}

/// The part of a choice of experts that this rank holds. The backend has checked the shapes.
pub(crate) fn held_experts(
    device: &Arc<Device>,
    experts: &CudaIndices,
    weights: &CudaTensor,
    held: Range<usize>,
) -> Result<(CudaIndices, CudaTensor)> {
    let from = weights.contiguous(device)?;
    let n = experts.shape.len();
    let buffer = Buffer::scratch(device, 4 * n)?;
    let (tensor, y_weights) = CudaTensor::fresh(device, weights.shape)?;
    let args = HeldExpertsArgs {
        experts: experts.at(),
        weights: from.at(),
        y_experts: buffer.at(),
        y_weights,
        n: n as u64,
        first: held.start as u32,
        n_held: held.len() as u32,
    };
    // SAFETY: the struct is the kernel's; all four have n values.
    unsafe { device.launch("held_experts", (rows_unit(), "held_experts"), each(n), &args)? };
    Ok((CudaIndices::written(device, experts.shape, buffer, held.len()), tensor))
}

#[repr(C)]
struct MulTakenArgs {
    x: u64,
    vector: u64,
    indices: u64,
    y: u64,
    n: u64,
}

/// The values of x times those of `vector` that `indices` choose. The backend has checked shapes and indices.
pub(crate) fn mul_taken(
    device: &Arc<Device>,
    x: &CudaTensor,
    vector: &Vector,
    indices: &CudaIndices,
) -> Result<CudaTensor> {
    let from = x.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, x.shape)?;
    let n = x.shape.len();
    let args = MulTakenArgs { x: from.at(), vector: vector.0.at(), indices: indices.at(), y, n: n as u64 };
    // SAFETY: the struct is the kernel's; x, indices and y have n values, the vector one for each index.
    unsafe { device.launch("mul_taken", (rows_unit(), "mul_taken"), each(n), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct UnaryArgs {
    x: u64,
    y: u64,
    n: u64,
    factor: f32,
}

/// An op on values, `op` of `rows.cu`.
pub(crate) fn unary(
    device: &Arc<Device>,
    op: &'static str,
    x: &CudaTensor,
    factor: f32,
) -> Result<CudaTensor> {
    let from = x.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, x.shape)?;
    let args = UnaryArgs { x: from.at(), y, n: x.shape.len() as u64, factor };
    // SAFETY: the struct is the kernel's; both have n values.
    unsafe { device.launch(op, (rows_unit(), op), each(x.shape.len()), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct RowsArgs {
    x: Rows,
    width: u32,
    y: u64,
    weight: u64,
    eps: f32,
}

/// The norm of rows, whose rotation, if there is one, `rope` applies.
pub(crate) fn rms_norm(device: &Arc<Device>, heads: &Heads, len: usize) -> Result<View> {
    if heads.rotation.is_some() {
        return crate::attention::rope(device, heads, len);
    }
    let y = Buffer::scratch(device, 4 * len)?;
    let rows = rows_of(device, &heads.x, heads.width)?;
    let norm = heads.norm.as_ref();
    let args = RowsArgs {
        x: rows.1,
        width: heads.width as u32,
        y: y.at(),
        weight: norm.map_or(0, |n| n.weight.0.at()),
        eps: norm.map_or(0.0, |n| n.eps),
    };
    // SAFETY: the struct is the kernel's; the view has len values in rows of width, y as many, the weight one row.
    unsafe { device.launch("rms_norm", (rows_unit(), "rms_norm"), per_row(len / heads.width, 256), &args)? };
    Ok(View::whole(y, len))
}

/// The view as rows, copied if they do not lie in one piece each.
pub(crate) fn rows_of(device: &Arc<Device>, view: &View, width: usize) -> Result<(View, Rows)> {
    if let Some(rows) = view.rows(width) {
        return Ok((view.clone(), rows));
    }
    let packed = copy_rows(device, view, view.segment, 0..view.segment, None)?;
    let rows = Rows { data: packed.at(), per_segment: 1, stride: width as u32 };
    Ok((packed, rows))
}

/// `softmax` or `div_by_sum`. A row of up to 1024 values is one warp's, as in the routers, which have the same bits.
pub(crate) fn over_rows(
    device: &Arc<Device>,
    op: &'static str,
    x: &CudaTensor,
    eps: f32,
) -> Result<CudaTensor> {
    let width = x.shape.last();
    let (tensor, y) = CudaTensor::fresh(device, x.shape)?;
    if x.shape.len() == 0 {
        return Ok(tensor);
    }
    let (_view, rows) = x.rows(device, width)?;
    let args = RowsArgs { x: rows, width: width as u32, y, weight: 0, eps };
    let threads = if width <= 1024 { 32 } else { 256 };
    // SAFETY: the struct is the kernel's; x and y have n_rows rows of width.
    unsafe { device.launch(op, (rows_unit(), op), per_row(x.shape.n_rows(), threads), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct CopyArgs {
    x: Rows,
    y: u64,
    width: u32,
    first: u32,
    n_columns: u32,
    rows: u64,
    n: u64,
}

/// Columns of rows of `width` values, one row after the other: of all rows, or of those at `rows` (their number and where
/// it lies on the device).
pub(crate) fn copy_rows(
    device: &Arc<Device>,
    view: &View,
    width: usize,
    columns: Range<usize>,
    rows: Option<(usize, u64)>,
) -> Result<View> {
    let n_rows = rows.map_or(view.len / width.max(1), |r| r.0);
    let n = n_rows * columns.len();
    let y = Buffer::scratch(device, 4 * n)?;
    let from = match view.rows(width) {
        Some(from) => from,
        // Rows of several segments: first as they are, segment by segment.
        None => {
            let packed = copy_rows(device, view, view.segment, 0..view.segment, None)?;
            return copy_rows(device, &packed, width, columns, rows);
        }
    };
    let args = CopyArgs {
        x: from,
        y: y.at(),
        width: width as u32,
        first: columns.start as u32,
        n_columns: columns.len() as u32,
        rows: rows.map_or(0, |r| r.1),
        n: n as u64,
    };
    // SAFETY: the struct is the kernel's; the callers checked columns and rows; y has n values.
    unsafe { device.launch("copy_rows", (rows_unit(), "copy_rows"), each(n), &args)? };
    Ok(View::whole(y, n))
}

#[repr(C)]
struct TakeArgs {
    x: u64,
    indices: u64,
    y: u64,
    width: u32,
    k: u32,
    n: u64,
}

pub(crate) fn take_last(device: &Arc<Device>, x: &CudaTensor, indices: &CudaIndices) -> Result<CudaTensor> {
    let from = x.contiguous(device)?;
    let (tensor, y) = CudaTensor::fresh(device, indices.shape)?;
    let (k, n) = (indices.shape.last(), indices.shape.len());
    let width = x.shape.last() as u32;
    let args = TakeArgs { x: from.at(), indices: indices.at(), y, width, k: k as u32, n: n as u64 };
    // SAFETY: the struct is the kernel's; the backend checked the rows and that indices are below width.
    unsafe { device.launch("take_last", (rows_unit(), "take_last"), each(n), &args)? };
    Ok(tensor)
}

#[repr(C)]
struct WeightedSumArgs {
    x: u64,
    weights: u64,
    y: u64,
    width: u32,
    top_k: u32,
    n: u64,
}

pub(crate) fn weighted_sum(
    device: &Arc<Device>,
    x: &CudaTensor,
    weights: &CudaTensor,
    [n_tokens, top_k, width]: [usize; 3],
) -> Result<CudaTensor> {
    let (from, w) = (x.contiguous(device)?, weights.contiguous(device)?);
    let (tensor, y) = CudaTensor::fresh(device, Shape::new("weighted_sum", &[n_tokens, width])?)?;
    let n = n_tokens * width;
    let args = WeightedSumArgs {
        x: from.at(),
        weights: w.at(),
        y,
        width: width as u32,
        top_k: top_k as u32,
        n: n as u64,
    };
    // SAFETY: the struct is the kernel's; the shapes were checked.
    unsafe { device.launch("weighted_sum", (rows_unit(), "weighted_sum"), each(n), &args)? };
    Ok(tensor)
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct RouteArgs {
    /// The logits.
    pub(crate) x: u64,
    experts: u64,
    weights: u64,
    bias: u64,
    n: u32,
    width: u32,
    top_k: u32,
    n_group: u32,
    topk_group: u32,
    renormalize: u32,
    factor: f32,
    eps: f32,
    y: u64,
    n_done: u64,
}

/// A router at the end of the product that gives its logits.
pub(crate) struct RouteTail {
    pub(crate) args: RouteArgs,
    /// ROUTE of the kernels.
    pub(crate) rule: u32,
    pub(crate) per_lane: u32,
}

/// What a router does with its rows.
pub(crate) enum Route<'a> {
    TopK(usize),
    Softmax(&'a SoftmaxTopK),
    Noaux(&'a NoauxTc, Vector),
    KeepTopGroups { n_group: usize, topk_group: usize },
}

/// Checks what [`route`] asks of its arguments.
fn check_route(op: &'static str, x: &CudaTensor, route: &Route<'_>) -> Result<()> {
    let width = x.shape.last();
    let top_k = match route {
        Route::TopK(k) => Some(*k),
        Route::Softmax(s) => Some(s.top_k),
        Route::Noaux(s, _) => Some(s.top_k),
        Route::KeepTopGroups { .. } => None,
    };
    if let Some(k) = top_k {
        ensure(x.dims().len() == 2, op, "x", "[n, width]", x)?;
        ensure(k > 0 && k <= width, op, "top_k", format_args!("1 to {width}"), k)?;
    }
    let groups = match route {
        Route::KeepTopGroups { n_group, topk_group } => Some((*n_group, *topk_group)),
        Route::Noaux(s, _) if s.n_group > 1 => Some((s.n_group, s.topk_group)),
        _ => None,
    };
    if let Some((n_group, topk_group)) = groups {
        let fits = n_group > 0 && width.is_multiple_of(n_group) && width / n_group >= 2;
        ensure(
            fits,
            op,
            "n_group",
            format_args!("a divisor of {width} into groups of two or more"),
            n_group,
        )?;
        ensure(
            topk_group > 0 && topk_group <= n_group,
            op,
            "topk_group",
            format_args!("1 to {n_group}"),
            topk_group,
        )?;
    }
    if width > 1024 || groups.is_some_and(|g| g.0 > 64) {
        let why = format!("rows of {width} values in {groups:?} groups; 1024 and 64 are the most");
        return Err(Error::Unsupported { op, backend: NAME, why });
    }
    Ok(())
}

/// The choice and its weights (unwritten for [`Route::TopK`]); for [`Route::KeepTopGroups`] the values and no choice.
pub(crate) fn route(
    device: &Arc<Device>,
    op: &'static str,
    x: &CudaTensor,
    route: &Route<'_>,
) -> Result<(CudaIndices, CudaTensor)> {
    check_route(op, x, route)?;
    let (n, width) = (x.shape.n_rows(), x.shape.last());
    let (kernel, rule, top_k) = match route {
        Route::TopK(k) => ("top_k", 0, *k),
        Route::Softmax(s) => ("route_softmax_top_k", 1, s.top_k),
        Route::Noaux(s, _) => ("route_noaux_tc", 2, s.top_k),
        Route::KeepTopGroups { .. } => ("keep_top_groups", 0, width),
    };
    let shape = x.shape.with_last(top_k);
    let experts = Buffer::scratch(device, 4 * shape.len())?;
    let (weights, y) = CudaTensor::fresh(device, shape)?;
    let mut args = RouteArgs {
        x: 0,
        experts: experts.at(),
        weights: y,
        bias: 0,
        n: n as u32,
        width: width as u32,
        top_k: top_k as u32,
        n_group: 1,
        topk_group: 1,
        renormalize: 0,
        factor: 1.0,
        eps: 0.0,
        y,
        n_done: device.counters + 4 * N_COUNTERS as u64,
    };
    match route {
        Route::TopK(_) => {}
        Route::Softmax(s) => args.renormalize = u32::from(s.renormalize == Renormalize::Yes),
        Route::Noaux(s, bias) => {
            args.bias = bias.0.at();
            args.renormalize = u32::from(s.renormalize == Renormalize::Yes);
            (args.factor, args.eps) = (s.routed_scaling_factor, s.eps);
            (args.n_group, args.topk_group) = (s.n_group.max(1) as u32, s.topk_group as u32);
        }
        Route::KeepTopGroups { n_group, topk_group } => {
            (args.n_group, args.topk_group) = (*n_group as u32, *topk_group as u32);
        }
    }
    let per_lane = [4, 8, 16, 32].into_iter().find(|p| 32 * p >= width).unwrap_or(32);
    if rule > 0
        && n < MIN_ROUTED_TOKENS
        && let Some(Pending::Product(product)) = x.op()
        && product.parts.len() == 1
    {
        let tail = RouteTail { args, rule, per_lane: per_lane as u32 };
        x.set(product.launch_routed(device, tail)?);
        return Ok((CudaIndices::written(device, shape, experts, width), weights));
    }
    let from = x.contiguous(device)?;
    args.x = from.at();
    let unit = Unit::new("route", &[("PER_LANE", per_lane as u32)]);
    // SAFETY: the struct is the kernel's; x is [n, width] with width at most 32·PER_LANE; the results have top_k columns.
    unsafe { device.launch(op, (unit, kernel), per_row(n, 32), &args)? };
    Ok((CudaIndices::written(device, shape, experts, width), weights))
}

#[repr(C)]
struct EmbedArgs {
    data: u64,
    scales: u64,
    ids: u64,
    y: u64,
    y_stride: u32,
    n_in: u32,
    group_shift: u32,
    first_row: u32,
    n_rows: u32,
}

#[repr(C)]
struct EmbedDenseArgs {
    data: u64,
    scales: u64,
    ids: u64,
    y: u64,
    y_stride: u32,
    n_in: u32,
    first_row: u32,
    n_rows: u32,
}

/// Rows of a table; ids are below its number of rows.
pub(crate) fn embed(device: &Arc<Device>, table: &CudaWeight, ids: &CudaIndices) -> Result<CudaTensor> {
    const OP: &str = "embed";
    let (n, n_in) = (ids.shape.len(), table.n_in);
    let (tensor, y) = CudaTensor::fresh(device, Shape::new(OP, &[n, n_in])?)?;
    let mut first_row = 0;
    let grid = Grid { blocks: [n_in.div_ceil(256), n, 1], threads: 256, shared_bytes: 0, cluster: 1 };
    for part in &table.parts {
        let (data, scales) = (part.data.at(), part.scales.as_ref().map_or(0, |s| s.at()));
        let (ids, y_stride, n_in, n_rows) = (ids.at(), n_in as u32, n_in as u32, part.n_rows as u32);
        match part.format {
            PartFormat::Coded { bits, code, scales: kind, group_shift } => {
                let args = EmbedArgs { data, scales, ids, y, y_stride, n_in, group_shift, first_row, n_rows };
                let unit = Unit::new(OP, &[("BITS", bits), ("CODE", code), ("SCALES", kind)]);
                // SAFETY: the struct is the kernel's; it reads the part's own rows only, and y is [n, n_in].
                unsafe { device.launch(OP, (unit, OP), grid, &args)? };
            }
            PartFormat::Element(element) => {
                let args = EmbedDenseArgs { data, scales, ids, y, y_stride, n_in, first_row, n_rows };
                let unit = Unit::new("embed_dense", &[("ELEMENT", element)]);
                // SAFETY: as above.
                unsafe { device.launch(OP, (unit, "embed_dense"), grid, &args)? };
            }
        }
        first_row += n_rows;
    }
    Ok(tensor)
}

//! Launching the kernels of layers with a state: `causal_conv.cu` and `gated_delta.cu`.

use std::sync::Arc;

use zmlx_core::{ConvActivation, DeltaDims, Error, Result};

use crate::NAME;
use crate::cache::{StateArgs, StateCache};
use crate::compile::Unit;
use crate::device::Device;
use crate::driver::Grid;
use crate::step::StepData;
use crate::tensor::{CudaTensor, Rows, Shape};
use crate::weight::Vector;

/// Tokens of a block of `causal_conv`; `TOKENS` of the kernel.
const CONV_TOKENS: usize = 16;
/// Rows of a block of `gated_delta`.
const DELTA_ROWS: usize = 16;
/// Most columns of a lane of `gated_delta`.
const MOST_PER_LANE: usize = 8;

#[repr(C)]
struct ConvArgs {
    x: Rows,
    spans: u64,
    slots: u64,
    positions: u64,
    states: StateArgs,
    taps: u64,
    bias: u64,
    n_channels: u32,
    kernel: u32,
    is_silu: u32,
    y: u64,
}

/// The convolution of a step whose shapes and spans were checked.
pub(crate) fn causal_conv(
    device: &Arc<Device>,
    x: &CudaTensor,
    (taps, bias): (&Vector, Option<&Vector>),
    (n_channels, kernel): (usize, usize),
    activation: ConvActivation,
    (cache, step): (&StateCache, &Arc<StepData>),
) -> Result<CudaTensor> {
    const OP: &str = "causal_conv";
    let (_view, rows) = x.rows(device, n_channels)?;
    let spans = step.whole_spans(device)?;
    let (slots, positions) = step.args().both();
    let (tensor, y) = CudaTensor::fresh(device, x.shape)?;
    let args = ConvArgs {
        x: rows,
        spans: spans.at(),
        slots,
        positions,
        states: cache.args(),
        taps: taps.0.at(),
        bias: bias.map_or(0, |b| b.0.at()),
        n_channels: n_channels as u32,
        kernel: kernel as u32,
        is_silu: u32::from(activation == ConvActivation::Silu),
        y,
    };
    let most = step.spans.iter().map(|s| s.n_tokens).max().unwrap_or(0);
    let blocks = [n_channels.div_ceil(128), spans.n, most.div_ceil(CONV_TOKENS)];
    let grid = Grid { blocks, threads: 128, shared_bytes: 0, cluster: 1 };
    // SAFETY: the struct is the kernel's; x and y have a row of n_channels for each token, the taps as many for each of `kernel`;
    // each span's sequence has two states.
    unsafe { device.launch(OP, (Unit::new(OP, &[]), OP), grid, &args)? };
    Ok(tensor)
}

#[repr(C)]
struct DeltaArgs {
    qkv: Rows,
    a: Rows,
    b: Rows,
    spans: u64,
    slots: u64,
    positions: u64,
    states: StateArgs,
    states_at: u32,
    a_log: u64,
    dt_bias: u64,
    n_k_heads: u32,
    n_v_heads: u32,
    k_dim: u32,
    v_dim: u32,
    y: u64,
}

/// The delta rule of a step whose shapes and spans were checked.
pub(crate) fn gated_delta(
    device: &Arc<Device>,
    [qkv, a, b]: [&CudaTensor; 3],
    [a_log, dt_bias]: [&Vector; 2],
    dims: DeltaDims,
    (cache, step): (&StateCache, &Arc<StepData>),
) -> Result<CudaTensor> {
    const OP: &str = "gated_delta";
    let per_lane = dims.k_dim.div_ceil(32);
    if per_lane > MOST_PER_LANE {
        let why = format!("keys of {} values; {} are the most", dims.k_dim, 32 * MOST_PER_LANE);
        return Err(Error::Unsupported { op: OP, backend: NAME, why });
    }
    let (_qkv, qkv_rows) = qkv.rows(device, dims.n_channels())?;
    let (_a, a_rows) = a.rows(device, dims.n_v_heads)?;
    let (_b, b_rows) = b.rows(device, dims.n_v_heads)?;
    let spans = step.whole_spans(device)?;
    let (slots, positions) = step.args().both();
    let shape = Shape::new(OP, &[step.n_tokens, dims.n_v_heads, dims.v_dim])?;
    let (tensor, y) = CudaTensor::fresh(device, shape)?;
    let args = DeltaArgs {
        qkv: qkv_rows,
        a: a_rows,
        b: b_rows,
        spans: spans.at(),
        slots,
        positions,
        states: cache.args(),
        states_at: ((dims.kernel - 1) * dims.n_channels()) as u32,
        a_log: a_log.0.at(),
        dt_bias: dt_bias.0.at(),
        n_k_heads: dims.n_k_heads as u32,
        n_v_heads: dims.n_v_heads as u32,
        k_dim: dims.k_dim as u32,
        v_dim: dims.v_dim as u32,
        y,
    };
    let blocks = [dims.n_v_heads * dims.v_dim.div_ceil(DELTA_ROWS), spans.n, 1];
    let grid = Grid { blocks, threads: 128, shared_bytes: 0, cluster: 1 };
    let unit = Unit::new(OP, &[("PER_LANE", per_lane as u32)]);
    // SAFETY: the struct is the kernel's; the inputs have a row for each token, y too; each span's sequence has two states of the
    // convolution's inputs and a matrix for each head.
    unsafe { device.launch(OP, (unit, OP), grid, &args)? };
    Ok(tensor)
}

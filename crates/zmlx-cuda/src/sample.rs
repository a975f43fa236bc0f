//! Choosing tokens on the device: `sample.cu`, and `argmax` of `rows.cu` on GPUs that lack what that needs.

use std::sync::Arc;

use zmlx_core::{Choice, Error, Result, SampleSettings};

use crate::compile::Unit;
use crate::device::{Device, N_COUNTERS};
use crate::driver::Grid;
use crate::host_copy::HostCopy;
use crate::matmul::Grouped;
use crate::memory::Buffer;
use crate::rows::rows_unit;
use crate::tensor::{CudaIndices, CudaTensor, Shape, ensure};

const OP: &str = "sample";
/// Threads of a block of `sample`, and the blocks that share a row.
const THREADS: usize = 1024;
const N_BLOCKS: usize = 8;
/// What `sample` writes: the token, its log-probability, the margin.
const N_WORDS: usize = 3;
/// Most values of a thread.
const MOST_PER_THREAD: usize = 32;

#[repr(C)]
struct ArgmaxArgs {
    x: u64,
    y: u64,
    width: u32,
    best: u64,
    n_done: u64,
}

#[repr(C)]
struct SampleArgs {
    x: u64,
    width: u32,
    top_k: u32,
    top_p: f32,
    floor: f32,
    inverse_temperature: f32,
    chance: f32,
    penalty: f32,
    recent: u64,
    n_recent: u32,
    last: u64,
    y: u64,
}

/// The next token, from row `row` of the logits; `None` where this GPU cannot choose it: before compute capability 9.0 only the
/// most probable one.
pub(crate) fn sample(
    device: &Arc<Device>,
    logits: &CudaTensor,
    row: usize,
    settings: &SampleSettings<'_, CudaIndices>,
) -> Result<Option<CudaIndices>> {
    ensure(logits.dims().len() == 2 && logits.shape.last() > 0, OP, "logits", "[n, vocab]", logits)?;
    let [n, width] = [logits.dims()[0], logits.dims()[1]];
    if row >= n {
        return Err(Error::IndexOutOfRange { op: OP, what: "row", index: row, len: n });
    }
    if let Some(repetition) = &settings.repetition {
        if let Some(token) = repetition.recent.iter().find(|t| **t as usize >= width) {
            return Err(Error::IndexOutOfRange { op: OP, what: "token", index: *token as usize, len: width });
        }
        if let Some(last) = repetition.last {
            ensure(last.dims() == [1], OP, "last", "[1]", last)?;
            last.check(OP, "token", width)?;
        }
    }
    let per_thread = width.div_ceil(THREADS * N_BLOCKS);
    let is_plain = device.driver.properties.arch < 90 || per_thread > MOST_PER_THREAD;
    if is_plain && (settings.temperature != 0.0 || settings.repetition.is_some()) {
        return Ok(None);
    }
    let from = logits.contiguous(device)?;
    let x = from.at() + 4 * (row * width) as u64;
    let y = Buffer::scratch(device, 4 * N_WORDS)?;
    if is_plain {
        let args = ArgmaxArgs {
            x,
            y: y.at(),
            width: width as u32,
            best: device.counters,
            n_done: device.counters + 4 * N_COUNTERS as u64,
        };
        let blocks = [width.div_ceil(2048).min(128), 1, 1];
        let grid = Grid { blocks, threads: 256, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's; x has the row, y room for one index, and there is a counter of each kind.
        unsafe { device.launch(OP, (rows_unit(), "argmax"), grid, &args)? };
    } else {
        let (penalty, recent, last) =
            settings.repetition.map_or((1.0, &[][..], None), |r| (r.penalty, r.recent, r.last));
        let of_recent = Buffer::scratch(device, 4 * recent.len())?;
        if !recent.is_empty() {
            of_recent.write(0, &recent.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>())?;
        }
        let args = SampleArgs {
            x,
            width: width as u32,
            top_k: settings.top_k.map_or(u32::MAX, |k| k.clamp(1, u32::MAX as usize) as u32),
            top_p: settings.top_p.unwrap_or(1.0),
            floor: settings.min_p.map_or(f32::NEG_INFINITY, f32::ln),
            inverse_temperature: match settings.temperature {
                0.0 => 0.0,
                t => t.recip().min(f32::MAX),
            },
            // 24 bits, which a float holds exactly.
            chance: (settings.seed >> 40) as f32 / (1 << 24) as f32,
            penalty,
            recent: of_recent.at(),
            n_recent: recent.len() as u32,
            last: last.map_or(0, |last| last.buffer.at()),
            y: y.at(),
        };
        let unit = Unit::new("sample", &[("PER_THREAD", per_thread as u32)]);
        let grid = Grid { blocks: [1, N_BLOCKS, 1], threads: THREADS, shared_bytes: 0, cluster: N_BLOCKS };
        // SAFETY: the struct is the kernel's; x has the row of `width` values, which all blocks together have room for; recent
        // tokens are below `width`; y has room for N_WORDS words.
        unsafe { device.launch(OP, (unit, "sample"), grid, &args)? };
    }
    let n_words = if is_plain { 1 } else { N_WORDS };
    let copy = Some(Arc::new(HostCopy::start(&y, 0, 4 * n_words)?));
    Ok(Some(CudaIndices {
        shape: Shape::new(OP, &[1])?,
        buffer: y,
        host: None,
        bound: width,
        grouped: Grouped::default(),
        launch: device.driver.last_launch(),
        copy,
    }))
}

/// What the device says of a token that it chose; `None` where it says no more than which.
pub(crate) fn read_choice(chosen: &CudaIndices) -> Result<Option<Choice>> {
    let Some(copy) = &chosen.copy else { return Ok(None) };
    let mut words: Vec<u32> = Vec::with_capacity(N_WORDS);
    copy.read(&mut words)?;
    Ok(match words[..] {
        [token, logprob, margin] => {
            Some(Choice { token, logprob: f32::from_bits(logprob), margin: f32::from_bits(margin) })
        }
        _ => None,
    })
}

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
use crate::tensor::{CopiedIndices, CudaIndices, CudaTensor, Shape, ensure};

const OP: &str = "sample";
/// Threads of a block of `sample`, and the blocks that share a row.
const THREADS: usize = 1024;
const N_BLOCKS: usize = 8;
/// Rows of one launch, `MAX_ROWS` of the kernel.
const MAX_ROWS: usize = 16;
/// What `sample` writes of a row: the token, its log-probability, the margin.
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
#[derive(Clone, Copy)]
struct RowArgs {
    x: u64,
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

#[repr(C)]
struct SampleArgs {
    width: u32,
    stride: u32,
    rows: [RowArgs; MAX_ROWS],
}

/// The next token of each of some rows of the logits; `None` where this GPU cannot choose it: before compute capability 9.0 only the
/// most probable one.
pub(crate) fn sample(
    device: &Arc<Device>,
    logits: &CudaTensor,
    rows: &[(usize, SampleSettings<'_, CudaIndices>)],
) -> Result<Vec<Option<CudaIndices>>> {
    ensure(logits.dims().len() == 2 && logits.shape.last() > 0, OP, "logits", "[n, vocab]", logits)?;
    let [n, width] = [logits.dims()[0], logits.dims()[1]];
    for (row, settings) in rows {
        if *row >= n {
            return Err(Error::IndexOutOfRange { op: OP, what: "row", index: *row, len: n });
        }
        let Some(repetition) = &settings.repetition else { continue };
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
    let is_chosen =
        |s: &SampleSettings<'_, CudaIndices>| !is_plain || (s.temperature == 0.0 && s.repetition.is_none());
    let chosen: Vec<_> = rows.iter().filter(|(_, settings)| is_chosen(settings)).collect();
    if chosen.is_empty() {
        return Ok(vec![None; rows.len()]);
    }
    let from = logits.contiguous(device)?;
    let x_of = |row: usize| from.at() + 4 * (row * width) as u64;
    // All tokens, then all log-probabilities, then all margins: so the tokens are the ids of a step.
    let n_words = if is_plain { 1 } else { N_WORDS };
    let y = Buffer::scratch(device, 4 * n_words * chosen.len())?;
    let y_of = |i: usize| y.at() + 4 * i as u64;
    if is_plain {
        for (i, (row, _)) in chosen.iter().enumerate() {
            let args = ArgmaxArgs {
                x: x_of(*row),
                y: y_of(i),
                width: width as u32,
                best: device.counters,
                n_done: device.counters + 4 * N_COUNTERS as u64,
            };
            let blocks = [width.div_ceil(2048).min(128), 1, 1];
            let grid = Grid { blocks, threads: 256, shared_bytes: 0, cluster: 1 };
            // SAFETY: the struct is the kernel's; x has the row, y room for one index, and there is a counter of each kind.
            unsafe { device.launch(OP, (rows_unit(), "argmax"), grid, &args)? };
        }
    } else {
        let recent = chosen.iter().filter_map(|(_, s)| s.repetition).flat_map(|r| r.recent.iter().copied());
        let all_recent: Vec<u32> = recent.collect();
        let of_recent = Buffer::scratch(device, 4 * all_recent.len())?;
        if !all_recent.is_empty() {
            of_recent.write(0, &all_recent.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<_>>())?;
        }
        let mut n_before = 0;
        let args = chosen.iter().enumerate().map(|(i, (row, settings))| {
            let repetition = settings.repetition;
            let n_recent = repetition.map_or(0, |r| r.recent.len());
            let recent = of_recent.at() + 4 * n_before as u64;
            n_before += n_recent;
            RowArgs {
                x: x_of(*row),
                top_k: settings.top_k.map_or(u32::MAX, |k| k.clamp(1, u32::MAX as usize) as u32),
                top_p: settings.top_p.unwrap_or(1.0),
                floor: settings.min_p.map_or(f32::NEG_INFINITY, f32::ln),
                inverse_temperature: match settings.temperature {
                    0.0 => 0.0,
                    t => t.recip().min(f32::MAX),
                },
                // 24 bits, which a float holds exactly.
                chance: (settings.seed >> 40) as f32 / (1 << 24) as f32,
                penalty: repetition.map_or(1.0, |r| r.penalty),
                recent,
                n_recent: n_recent as u32,
                last: repetition.and_then(|r| r.last).map_or(0, CudaIndices::at),
                y: y_of(i),
            }
        });
        let args: Vec<RowArgs> = args.collect();
        for some in args.chunks(MAX_ROWS) {
            let mut args =
                SampleArgs { width: width as u32, stride: chosen.len() as u32, rows: [some[0]; MAX_ROWS] };
            args.rows[..some.len()].copy_from_slice(some);
            let unit = Unit::new("sample", &[("PER_THREAD", per_thread as u32)]);
            let blocks = [some.len(), N_BLOCKS, 1];
            let grid = Grid { blocks, threads: THREADS, shared_bytes: 0, cluster: N_BLOCKS };
            // SAFETY: the struct is the kernel's; x has the rows of `width` values, which the blocks of a cluster together have
            // room for; recent tokens are below `width`; y has room for N_WORDS words of each of all chosen.
            unsafe { device.launch(OP, (unit, "sample"), grid, &args)? };
        }
    }
    let copy = Arc::new(HostCopy::start(&y, 0, 4 * n_words * chosen.len())?);
    let launch = device.driver.last_launch();
    let mut i = 0;
    let indices = rows.iter().map(|(_, settings)| {
        if !is_chosen(settings) {
            return Ok(None);
        }
        let offset = i;
        i += 1;
        Ok(Some(CudaIndices {
            shape: Shape::new(OP, &[1])?,
            buffer: Arc::clone(&y),
            offset,
            host: None,
            bound: width,
            grouped: Grouped::default(),
            launch,
            copy: Some(CopiedIndices { values: Arc::clone(&copy), n: chosen.len(), n_words }),
        }))
    });
    indices.collect()
}

/// Whether the device says of a token that it chose all that the host would find in the logits: a GPU that only finds the largest
/// value tells nothing else.
pub(crate) fn tells_choice(chosen: &CudaIndices) -> bool {
    chosen.copy.as_ref().is_some_and(|copy| copy.n_words == N_WORDS)
}

/// What the device says of a token that it chose; `None` where it says no more than which.
pub(crate) fn read_choice(chosen: &CudaIndices) -> Result<Option<Choice>> {
    let Some(copy) = chosen.copy.as_ref().filter(|_| tells_choice(chosen)) else { return Ok(None) };
    let mut words = Vec::new();
    copy.values.read(&mut words)?;
    let [token, logprob, margin]: [u32; N_WORDS] = std::array::from_fn(|i| words[chosen.offset + i * copy.n]);
    Ok(Some(Choice { token, logprob: f32::from_bits(logprob), margin: f32::from_bits(margin) }))
}

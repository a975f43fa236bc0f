//! Decode steps as recorded CUDA graphs.

use std::sync::{Arc, Mutex};

use zmlx_core::{Result, StepKey};

use crate::attention::split_class;
use crate::device::Device;
use crate::driver::GraphExec;
use crate::matmul::Grouped;
use crate::memory::{Buffer, lock};
use crate::step::StepData;
use crate::tensor::{CudaIndices, CudaTensor, View};

/// Recorded steps that are kept.
const MAX_GRAPHS: usize = 16;

/// What a recorded step is right for.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Class {
    key: StepKey,
    n_tokens: usize,
    n_logits: usize,
    split_class: u32,
    /// Of the caches' tables.
    n_moved: u64,
}

/// A step of one token per sequence, recorded. Everything that changes from step to step lies in `step` and `ids`.
struct Recorded {
    class: Class,
    graph: GraphExec,
    step: Arc<StepData>,
    ids: CudaIndices,
    logits: (CudaTensor, View),
}

/// Recorded steps, and those that have been seen once.
#[derive(Default)]
pub(crate) struct Graphs {
    recorded: Vec<Recorded>,
    seen: Vec<Class>,
}

/// Runs a step: the first of its class as it is, the second while it is recorded, others from the recording.
pub(crate) fn run(
    (device, graphs): (&Arc<Device>, &Mutex<Graphs>),
    key: &StepKey,
    step: &Arc<StepData>,
    ids: &CudaIndices,
    body: &mut dyn FnMut(&CudaIndices) -> Result<CudaTensor>,
) -> Result<CudaTensor> {
    if cfg!(debug_assertions) || step.n_tokens == 0 || step.spans.iter().any(|s| s.n_tokens != 1) {
        return body(ids); // builds with debug assertions fill every buffer
    }
    let class = Class {
        key: *key,
        n_tokens: step.n_tokens,
        n_logits: step.n_logits,
        split_class: split_class(step),
        n_moved: device.n_moved(),
    };
    let known = {
        let mut graphs = lock(graphs);
        graphs.recorded.retain(|r| r.class.n_moved == class.n_moved);
        graphs.recorded.iter().position(|r| r.class == class)
    };
    let Some(at) = known else {
        let is_new = {
            let seen = &mut lock(graphs).seen;
            seen.retain(|s| s.n_moved == class.n_moved);
            let is_new = !seen.contains(&class);
            if is_new {
                seen.push(class);
            }
            is_new
        };
        if is_new {
            return body(ids);
        }
        let recorded = record(device, class, step, ids, body)?;
        let result = replay(device, &recorded);
        let graphs = &mut lock(graphs).recorded;
        if graphs.len() == MAX_GRAPHS {
            graphs.remove(0);
        }
        graphs.push(recorded);
        return result;
    };
    let graphs = lock(graphs);
    let recorded = &graphs.recorded[at];
    device.driver.bind()?;
    recorded.step.buffer.copy_from(0, (&step.buffer, 0), step.n_bytes)?;
    recorded.ids.buffer.copy_from(0, (&ids.buffer, 4 * ids.offset), 4 * step.n_tokens)?;
    replay(device, recorded)
}

fn replay(device: &Arc<Device>, recorded: &Recorded) -> Result<CudaTensor> {
    // SAFETY: weights, caches' tables and counters outlive the recording (a cache that moves its table drops it); its other
    // buffers are of the pool of recorded ops, which a replay writes before it reads them, and the stream is in order.
    unsafe { device.driver.replay(&recorded.graph)? };
    // The next replay writes over the recording's logits, which the caller may still hold.
    let (tensor, view) = &recorded.logits;
    let (copy, _) = CudaTensor::fresh(device, tensor.shape)?;
    copy.view(device)?.buffer.copy_from(0, (&view.buffer, 0), 4 * view.len)?;
    Ok(copy)
}

fn record(
    device: &Arc<Device>,
    class: Class,
    step: &Arc<StepData>,
    ids: &CudaIndices,
    body: &mut dyn FnMut(&CudaIndices) -> Result<CudaTensor>,
) -> Result<Recorded> {
    // The body sees its own step, whose buffer the recording takes over; the ids get one that stays.
    let own_ids = Buffer::scratch(device, 4 * step.n_tokens)?;
    own_ids.copy_from(0, (&ids.buffer, 4 * ids.offset), 4 * step.n_tokens)?;
    let ids =
        CudaIndices { buffer: own_ids, offset: 0, grouped: Grouped::default(), copy: None, ..ids.clone() };
    device.driver.bind()?;
    let (graph, logits) = device.record(|| {
        let logits = body(&ids)?;
        let view = logits.contiguous(device)?;
        Ok((logits, view))
    })?;
    Ok(Recorded { class, graph, step: Arc::clone(step), ids, logits })
}

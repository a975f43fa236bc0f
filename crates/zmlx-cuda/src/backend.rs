//! The [`Backend`] trait for CUDA: checks of arguments, and which kernels an op becomes.

mod attention;
mod products;
mod ranks;
mod recurrent;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use zmlx_core::{
    Activation, AttentionInputs, AttentionSettings, Backend, Barriers, CacheSpec, Choice, ConvActivation,
    ConvWeights, DeltaInputs, DeltaWeights, Down, Error, GateUp, HostNeeds, HostWeight, Instrumented,
    MlaInputs, MlaWeights, NoauxTc, PrefillStyle, Result, Rope, SampleSettings, Shard, SoftmaxTopK, Span,
    StepKey, stock,
};

use crate::NAME;
use crate::cache::{CudaCache, cache_bytes};
use crate::communicator::Communicator;
use crate::device::Device;
use crate::graph::{self, Graphs};
use crate::host_copy::HostCopy;
use crate::matmul::Grouped;
use crate::memory::Buffer;
use crate::rows::{self, Route};
use crate::sample;
use crate::step::{CudaStep, StepData};
use crate::tensor::{CudaIndices, CudaTensor, Heads, Norm, Pending, Rotation, Shape, Staged, View, ensure};
use crate::weight::CudaWeight;

/// Tokens of a prompt that are computed at once: so many that each expert has many of them.
const PREFILL_CHUNK: usize = 2048;

/// An NVIDIA GPU as a [`Backend`].
pub struct CudaBackend {
    /// Recorded steps hold memory of the device: they go first.
    graphs: Mutex<Graphs>,
    /// The ropes of all models so far: a few.
    rotations: Mutex<Vec<(Rope, Rotation)>>,
    /// The other GPUs, where each has a part of every layer.
    ranks: Option<Arc<Communicator>>,
    /// The other GPUs, where each has some of the layers.
    stages: Option<Arc<Communicator>>,
    device: Arc<Device>,
}

impl CudaBackend {
    /// Opens GPU `ordinal`, 0 for the first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says what is missing and what to do: a driver, a newer driver, a GPU, NVRTC.
    pub fn new(ordinal: usize) -> Result<Self> {
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let backend = Self {
            graphs: Mutex::default(),
            rotations: Mutex::default(),
            ranks: None,
            stages: None,
            device: Device::open(ordinal)?,
        };
        // The first kernel shows whether there is a compiler, before a model is loaded.
        let one = backend.tensor(&[1.0], &[1])?;
        let two = backend.scale(&one, 2.0)?;
        let mut values = Vec::new();
        backend.read(&two, &mut values)?;
        if values != [2.0] {
            return Err(Error::Fault { op: "scale", backend: NAME, why: format!("2 · 1 gave {values:?}") });
        }
        Ok(backend)
    }

    /// The GPU's name.
    pub fn device_name(&self) -> &str {
        &self.device.driver.properties.name
    }

    /// The GPU's compute capability: 90 is 9.0.
    pub fn compute_capability(&self) -> u32 {
        self.device.driver.properties.arch
    }

    /// The number of the GPU's multiprocessors, by which kernels are chosen.
    pub fn n_multiprocessors(&self) -> u32 {
        self.device.driver.properties.n_multiprocessors
    }

    /// Bytes of the GPU's memory.
    pub fn memory_bytes(&self) -> usize {
        self.device.driver.properties.total_bytes
    }

    /// The CUDA version of the driver: 13000 is 13.0.
    pub fn driver_version(&self) -> i32 {
        self.device.driver.properties.driver
    }
}

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Indices = CudaIndices;
    type Weight = CudaWeight;
    type Cache = CudaCache;
    type Step = CudaStep;

    fn name(&self) -> &'static str {
        NAME
    }

    fn upload(&self, weight: HostWeight) -> Result<CudaWeight> {
        CudaWeight::upload(&self.device, &weight)
    }

    fn concat_rows(&self, parts: &[&CudaWeight]) -> Result<CudaWeight> {
        CudaWeight::concat_rows(parts)
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<CudaTensor> {
        const OP: &str = "tensor";
        let shape = Shape::new(OP, shape)?;
        let want = format_args!("{} for {shape:?}", shape.len());
        ensure(shape.len() == values.len(), OP, "values", want, values.len())?;
        let buffer = Buffer::scratch(&self.device, 4 * values.len())?;
        buffer.write(0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
        Ok(CudaTensor::ready(shape, View::whole(buffer, values.len())))
    }

    fn read(&self, x: &CudaTensor, out: &mut Vec<f32>) -> Result<()> {
        if let Some(copy) = &x.copy {
            return copy.read(out);
        }
        let view = x.contiguous(&self.device)?;
        view.buffer.read(4 * view.offset, view.len, out)
    }

    fn shape(&self, x: &CudaTensor) -> Vec<usize> {
        x.dims().to_vec()
    }

    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<CudaIndices> {
        const OP: &str = "indices";
        let shape = Shape::new(OP, shape)?;
        let want = format_args!("{} for {shape:?}", shape.len());
        ensure(shape.len() == values.len(), OP, "values", want, values.len())?;
        let buffer = Buffer::scratch(&self.device, 4 * values.len())?;
        buffer.write(0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
        let launch = self.device.driver.last_launch();
        Ok(CudaIndices {
            shape,
            buffer,
            offset: 0,
            host: Some(values.into()),
            bound: 0,
            grouped: Grouped::default(),
            launch,
            copy: None,
        })
    }

    fn read_indices(&self, indices: &CudaIndices, out: &mut Vec<u32>) -> Result<()> {
        match &indices.copy {
            Some(copy) => {
                copy.values.read(out)?;
                out.drain(..indices.offset);
                out.truncate(indices.shape.len());
                Ok(())
            }
            None => indices.buffer.read(4 * indices.offset, indices.shape.len(), out),
        }
    }

    fn join_indices(&self, lists: &[&CudaIndices]) -> Result<CudaIndices> {
        CudaIndices::join(&self.device, "join_indices", lists)
    }

    fn step(&self, spans: &[Span]) -> Result<CudaStep> {
        Ok(CudaStep(Arc::new(StepData::new(&self.device, spans)?)))
    }

    fn n_tokens(&self, step: &CudaStep) -> usize {
        step.0.n_tokens
    }

    fn run_step(
        &self,
        key: &StepKey,
        step: &CudaStep,
        ids: &CudaIndices,
        body: &mut dyn FnMut(&CudaIndices) -> Result<CudaTensor>,
    ) -> Result<CudaTensor> {
        if !self.can_be_recorded(step.0.n_tokens) {
            return body(ids);
        }
        graph::run((&self.device, &self.graphs), key, &step.0, ids, body)
    }

    fn cache(&self, spec: &CacheSpec) -> Result<CudaCache> {
        CudaCache::new(&self.device, spec)
    }

    fn cache_bytes(&self, spec: &CacheSpec, n_tokens: usize) -> u64 {
        cache_bytes(spec, n_tokens)
    }

    fn resident_bytes(&self, cache: &CudaCache) -> u64 {
        cache.resident_bytes()
    }

    fn slot_bytes(&self, cache: &CudaCache, slot: usize) -> u64 {
        cache.slot_bytes(slot)
    }

    fn growth_bytes(&self, cache: &CudaCache, slot: usize, n_tokens: usize) -> u64 {
        cache.growth_bytes(slot, n_tokens)
    }

    fn reserve(&self, cache: &mut CudaCache, slot: usize, n_tokens: usize) -> Result<()> {
        cache.reserve(slot, n_tokens)
    }

    fn fork(&self, cache: &mut CudaCache, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        cache.fork(from, to, n_tokens)
    }

    fn truncate(&self, cache: &mut CudaCache, slot: usize, n_tokens: usize) -> Result<()> {
        cache.truncate(slot, n_tokens)
    }

    fn release(&self, cache: &mut CudaCache, slot: usize) {
        cache.release(slot);
    }

    fn shortest(&self, cache: &CudaCache, slot: usize) -> usize {
        cache.shortest(slot)
    }

    fn commit(&self, cache: &mut CudaCache, step: &CudaStep) {
        cache.commit(&step.0.spans);
    }

    fn rollback(&self, cache: &mut CudaCache, step: &CudaStep) {
        cache.rollback(&step.0.spans);
    }

    fn prefill_style(&self) -> PrefillStyle {
        PrefillStyle::Whole { chunk: PREFILL_CHUNK }
    }

    fn wait(&self, x: &CudaTensor) -> Result<()> {
        x.view(&self.device)?;
        self.device.driver.synchronize()
    }

    fn sample(
        &self,
        logits: &CudaTensor,
        rows: &[(usize, SampleSettings<'_, CudaIndices>)],
    ) -> Result<Vec<Option<CudaIndices>>> {
        sample::sample(&self.device, logits, rows)
    }

    fn read_choice(&self, chosen: &CudaIndices) -> Result<Option<Choice>> {
        sample::read_choice(chosen)
    }

    fn eval_async(
        &self,
        logits: CudaTensor,
        chosen: &[&CudaIndices],
        needs: HostNeeds,
    ) -> Result<CudaTensor> {
        // Choosing has launched what computes the logits.
        if needs == HostNeeds::Choices && chosen.iter().all(|id| sample::tells_choice(id)) {
            return Ok(logits);
        }
        let view = logits.contiguous(&self.device)?;
        let copy = HostCopy::start(&view.buffer, 4 * view.offset, 4 * view.len)?;
        Ok(logits.with_copy(copy))
    }

    fn shard(&self) -> Shard {
        self.ranks.as_ref().map_or(Shard::WHOLE, |ranks| ranks.shard())
    }

    fn all_sum(&self, x: CudaTensor) -> Result<CudaTensor> {
        self.sum_of_ranks(x)
    }

    fn gather_columns(&self, x: CudaTensor, width: usize, n: usize) -> Result<CudaTensor> {
        self.columns_of_ranks(x, width, n)
    }

    fn of_rank_0(&self, indices: CudaIndices, n_values: usize) -> Result<CudaIndices> {
        self.indices_of_rank_0(indices, n_values)
    }

    fn stage(&self) -> Shard {
        self.stages.as_ref().map_or(Shard::WHOLE, |stages| stages.shard())
    }

    fn send(&self, x: &CudaTensor, _like: &CudaWeight, to: usize) -> Result<()> {
        self.stages("send")?.send(&x.contiguous(&self.device)?, to)
    }

    fn receive(&self, shape: &[usize], _like: &CudaWeight, from: usize) -> Result<CudaTensor> {
        const OP: &str = "receive";
        let shape = Shape::new(OP, shape)?;
        Ok(CudaTensor::ready(shape, self.stages(OP)?.receive(shape.len(), from)?))
    }

    fn embed(&self, table: &CudaWeight, ids: &CudaIndices) -> Result<CudaTensor> {
        const OP: &str = "embed";
        ensure(table.n_mats == 1, OP, "table", "one matrix", table)?;
        ids.check(OP, "token", table.n_out)?;
        rows::embed(&self.device, table, ids)
    }

    fn rms_norm(&self, x: &CudaTensor, weight: &CudaWeight, eps: f32) -> Result<CudaTensor> {
        let width = x.shape.last();
        let weight = weight.vector("rms_norm", width)?;
        let heads = Heads {
            x: x.view(&self.device)?,
            width,
            norm: Some(Norm { weight, eps }),
            rotation: None,
            staged: Staged::default(),
        };
        Ok(CudaTensor::pending(x.shape, Pending::Heads(heads)))
    }

    fn linear(&self, x: &CudaTensor, weight: &CudaWeight) -> Result<CudaTensor> {
        let product = self.product("linear", x, &[weight])?;
        Ok(CudaTensor::pending(x.shape.with_last(weight.n_out), Pending::Product(Box::new(product))))
    }

    fn gather_linear(
        &self,
        x: &CudaTensor,
        weight: &CudaWeight,
        experts: &CudaIndices,
    ) -> Result<CudaTensor> {
        const OP: &str = "gather_linear";
        let product = self.gathered(OP, x, &[weight], experts)?;
        let shape = Shape::new(OP, &[experts.dims()[0], experts.dims()[1], weight.n_out])?;
        Ok(CudaTensor::pending(shape, Pending::Product(Box::new(product))))
    }

    fn gather_add(&self, x: &CudaTensor, bank: &CudaWeight, experts: &CudaIndices) -> Result<CudaTensor> {
        const OP: &str = "gather_add";
        let rows = x.dims().len() == 3 && x.dims()[..2] == *experts.dims();
        ensure(rows, OP, "experts", "the rows of x, [n, top_k]", experts)?;
        let biases = bank.vectors(OP, bank.n_mats, x.shape.last())?;
        experts.check(OP, "expert", bank.n_mats)?;
        rows::gather_add(&self.device, x, &biases, experts)
    }

    fn head_linear(&self, x: &CudaTensor, weight: &CudaWeight) -> Result<CudaTensor> {
        let product = self.head_product(x, weight)?;
        let view = product.launch(&self.device, None)?;
        Ok(CudaTensor::ready(x.shape.with_last(weight.n_out), view))
    }

    fn rope(&self, x: &CudaTensor, step: &CudaStep, rope: &Rope) -> Result<CudaTensor> {
        self.rotated(x, step, rope)
    }

    fn attention(
        &self,
        inputs: AttentionInputs<'_, CudaTensor, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        settings: &AttentionSettings,
    ) -> Result<CudaTensor> {
        self.attend(inputs, cache, step, settings)
    }

    fn attention_shared(
        &self,
        q: &CudaTensor,
        cache: &CudaCache,
        step: &CudaStep,
        settings: &AttentionSettings,
    ) -> Result<CudaTensor> {
        self.attend_to_shared(q, cache, step, settings)
    }

    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, CudaTensor>,
        cache: &mut CudaCache,
        step: &CudaStep,
        scale: f32,
    ) -> Result<CudaTensor> {
        self.attend_latents(inputs, cache, step, scale)
    }

    fn add(&self, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        self.sum("add", a, b)
    }

    fn gated(&self, gate: &CudaTensor, up: &CudaTensor, activation: Activation) -> Result<CudaTensor> {
        const OP: &str = "gated";
        ensure(gate.dims() == up.dims(), OP, "up", format_args!("{:?}", gate.shape), up)?;
        rows::gated(&self.device, OP, [gate, up], activation)
    }

    fn soft_cap(&self, x: &CudaTensor, cap: f32) -> Result<CudaTensor> {
        const OP: &str = "soft_cap";
        ensure(cap > 0.0, OP, "cap", "a positive number", cap)?;
        rows::unary(&self.device, OP, x, cap)
    }

    fn causal_conv(
        &self,
        x: &CudaTensor,
        weights: ConvWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        activation: ConvActivation,
    ) -> Result<CudaTensor> {
        self.convolve(x, weights, cache, step, activation)
    }

    fn gated_delta(
        &self,
        inputs: DeltaInputs<'_, CudaTensor>,
        weights: DeltaWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
    ) -> Result<CudaTensor> {
        self.delta_rule(inputs, weights, cache, step)
    }

    fn mul(&self, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        const OP: &str = "mul";
        ensure(a.dims() == b.dims(), OP, "b", format_args!("{:?}", a.shape), b)?;
        let b = b.contiguous(&self.device)?;
        rows::binary(&self.device, (OP, OP), a, (b.at(), b.len))
    }

    fn mul_sigmoid(&self, x: &CudaTensor, gate: &CudaTensor) -> Result<CudaTensor> {
        const OP: &str = "mul_sigmoid";
        let is_one = gate.shape == x.shape.with_last(1);
        let want = format_args!("{:?}, or one value for each row", x.shape);
        ensure(is_one || gate.dims() == x.dims(), OP, "gate", want, gate)?;
        let gate = gate.contiguous(&self.device)?;
        let shared_by = if is_one { x.shape.last() } else { 1 };
        rows::binary(&self.device, (OP, OP), x, (gate.at(), shared_by))
    }

    fn softmax(&self, x: &CudaTensor) -> Result<CudaTensor> {
        rows::over_rows(&self.device, "softmax", x, 0.0)
    }

    fn sigmoid(&self, x: &CudaTensor) -> Result<CudaTensor> {
        rows::unary(&self.device, "sigmoid", x, 1.0)
    }

    fn add_vector(&self, x: &CudaTensor, vector: &CudaWeight) -> Result<CudaTensor> {
        const OP: &str = "add_vector";
        let width = x.shape.last();
        let vector = vector.vector(OP, width)?;
        rows::binary(&self.device, (OP, "add"), x, (vector.0.at(), width))
    }

    fn keep_top_groups(&self, x: &CudaTensor, n_group: usize, topk_group: usize) -> Result<CudaTensor> {
        let route = Route::KeepTopGroups { n_group, topk_group };
        Ok(rows::route(&self.device, "keep_top_groups", x, &route)?.1)
    }

    fn top_k(&self, x: &CudaTensor, k: usize) -> Result<CudaIndices> {
        Ok(rows::route(&self.device, "top_k", x, &Route::TopK(k))?.0)
    }

    fn take_last(&self, x: &CudaTensor, indices: &CudaIndices) -> Result<CudaTensor> {
        const OP: &str = "take_last";
        let want = x.shape.with_last(indices.shape.last());
        ensure(indices.shape == want, OP, "indices", "the rows of x", indices)?;
        indices.check(OP, "column", x.shape.last())?;
        rows::take_last(&self.device, x, indices)
    }

    fn mul_taken(&self, x: &CudaTensor, vector: &CudaWeight, indices: &CudaIndices) -> Result<CudaTensor> {
        const OP: &str = "mul_taken";
        ensure(x.dims() == indices.dims(), OP, "indices", format_args!("{:?}", x.shape), indices)?;
        let len = vector.n_in;
        let vector = vector.vector(OP, len)?;
        indices.check(OP, "value", len)?;
        rows::mul_taken(&self.device, x, &vector, indices)
    }

    fn held_experts(
        &self,
        experts: &CudaIndices,
        weights: &CudaTensor,
        held: Range<usize>,
    ) -> Result<(CudaIndices, CudaTensor)> {
        const OP: &str = "held_experts";
        ensure(!held.is_empty(), OP, "held", "at least one expert", &held)?;
        let fits = weights.dims().len() == 2 && weights.shape.len() == experts.shape.len();
        ensure(fits, OP, "weights", "[n, top_k], as experts", weights)?;
        rows::held_experts(&self.device, experts, weights, held)
    }

    fn div_by_sum(&self, x: &CudaTensor, eps: f32) -> Result<CudaTensor> {
        rows::over_rows(&self.device, "div_by_sum", x, eps)
    }

    fn scale(&self, x: &CudaTensor, factor: f32) -> Result<CudaTensor> {
        rows::unary(&self.device, "scale", x, factor)
    }

    fn weighted_sum(&self, x: &CudaTensor, weights: &CudaTensor) -> Result<CudaTensor> {
        const OP: &str = "weighted_sum";
        let &[n_tokens, top_k, width] = x.dims() else {
            return Err(precondition(OP, "x", "[n, top_k, d]", x));
        };
        ensure(
            weights.dims() == [n_tokens, top_k],
            OP,
            "weights",
            format_args!("[{n_tokens}, {top_k}]"),
            weights,
        )?;
        rows::weighted_sum(&self.device, x, weights, [n_tokens, top_k, width])
    }

    fn reshape(&self, x: &CudaTensor, shape: &[usize]) -> Result<CudaTensor> {
        const OP: &str = "reshape";
        let shape = Shape::new(OP, shape)?;
        ensure(shape.len() == x.shape.len(), OP, "shape", format_args!("{} values", x.shape.len()), shape)?;
        Ok(x.reshaped(shape))
    }

    fn slice_last(&self, x: &CudaTensor, range: Range<usize>) -> Result<CudaTensor> {
        const OP: &str = "slice_last";
        let width = x.shape.last();
        let fits = !range.is_empty() && range.end <= width;
        ensure(fits, OP, "range", format_args!("within 0..{width}"), &range)?;
        let view = x.view(&self.device)?;
        let view = match view.columns(width, &range) {
            Some(view) => view,
            None => rows::copy_rows(&self.device, &view, width, range.clone(), None)?,
        };
        Ok(CudaTensor::ready(x.shape.with_last(range.len()), view))
    }

    fn take_logit_rows(&self, x: &CudaTensor, step: &CudaStep) -> Result<CudaTensor> {
        const OP: &str = "take_logit_rows";
        let step = &step.0;
        step.check(OP, "x", x)?;
        if step.n_logits == step.n_tokens {
            return Ok(x.clone());
        }
        let width = x.shape.len() / step.n_tokens;
        let shape = x.shape.with_first(step.n_logits);
        if shape.len() == 0 {
            return self.tensor(&[], shape.dims());
        }
        let view = x.view(&self.device)?;
        let view =
            rows::copy_rows(&self.device, &view, width, 0..width, Some((step.n_logits, step.logit_rows())))?;
        Ok(CudaTensor::ready(shape, view))
    }

    fn gather_qmm_swiglu(
        &self,
        x: &CudaTensor,
        weights: GateUp<'_, CudaWeight>,
        experts: &CudaIndices,
    ) -> Result<CudaTensor> {
        self.gathered_swiglu(x, weights, experts)
    }

    fn gather_qmm_combine(
        &self,
        x: &CudaTensor,
        down: Down<'_, CudaWeight>,
        experts: &CudaIndices,
        weights: &CudaTensor,
    ) -> Result<CudaTensor> {
        self.gathered_sum(x, down, experts, weights)
    }

    fn qmm_swiglu(&self, x: &CudaTensor, weights: GateUp<'_, CudaWeight>) -> Result<CudaTensor> {
        self.swiglu_product(x, weights)
    }

    fn add_rms_norm(
        &self,
        x: &CudaTensor,
        residual: &CudaTensor,
        weight: &CudaWeight,
        eps: f32,
    ) -> Result<(CudaTensor, CudaTensor)> {
        weight.vector("add_rms_norm", x.shape.last())?;
        let sum = self.sum("add_rms_norm", x, residual)?;
        let normed = self.rms_norm(&sum, weight, eps)?;
        Ok((sum, normed))
    }

    fn mla_attention(
        &self,
        inputs: MlaInputs<'_, CudaTensor>,
        weights: MlaWeights<'_, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        scale: f32,
    ) -> Result<CudaTensor> {
        match self.attend_mla(inputs, weights, cache, step, scale)? {
            Some(y) => Ok(y),
            None => stock::mla_attention(self, inputs, weights, cache, step, scale),
        }
    }

    fn route_softmax_top_k(
        &self,
        logits: &CudaTensor,
        settings: &SoftmaxTopK,
    ) -> Result<(CudaIndices, CudaTensor)> {
        rows::route(&self.device, "route_softmax_top_k", logits, &Route::Softmax(settings))
    }

    fn route_noaux_tc(
        &self,
        logits: &CudaTensor,
        bias: &CudaWeight,
        settings: &NoauxTc,
    ) -> Result<(CudaIndices, CudaTensor)> {
        const OP: &str = "route_noaux_tc";
        let bias = bias.vector(OP, logits.shape.last())?;
        rows::route(&self.device, OP, logits, &Route::Noaux(settings, bias))
    }
}

impl Instrumented for CudaBackend {
    fn kernel_runs(&self, _op: &str) -> Option<u64> {
        None
    }

    fn barriers(&self) -> Option<Barriers> {
        None
    }
}

fn precondition(op: &'static str, what: &'static str, want: &str, got: &impl std::fmt::Debug) -> Error {
    Error::Precondition { op, what, want: want.to_owned(), got: format!("{got:?}") }
}

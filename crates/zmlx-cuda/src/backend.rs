//! The [`Backend`] trait for CUDA: checks of arguments, and which kernels an op becomes.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use zmlx_core::{
    AttentionInputs, AttentionSettings, Backend, Barriers, CacheKind, CacheSpec, Error, GateUp, HostWeight,
    Instrumented, MlaInputs, NoauxTc, Result, Rope, RopePairing, SampleSettings, SoftmaxTopK, Span, StepKey,
    stock,
};

use crate::NAME;
use crate::attention::{Inputs, attend};
use crate::cache::{CudaCache, cache_bytes};
use crate::device::Device;
use crate::graph::{self, Graphs};
use crate::host_copy::HostCopy;
use crate::matmul::{Grouped, MIN_TOKENS};
use crate::memory::{Buffer, lock};
use crate::products::{Epilogue, Input, Product};
use crate::rows::{self, Route};
use crate::step::{CudaStep, StepData};
use crate::tensor::{CudaIndices, CudaTensor, Heads, Norm, Pending, Rotation, Shape, Staged, View, ensure};
use crate::weight::CudaWeight;

/// An NVIDIA GPU as a [`Backend`].
pub struct CudaBackend {
    /// Recorded steps hold memory of the device: they go first.
    graphs: Mutex<Graphs>,
    /// The ropes of all models so far: a few.
    rotations: Mutex<Vec<(Rope, Rotation)>>,
    device: Arc<Device>,
}

impl CudaBackend {
    /// Opens GPU `ordinal`, 0 for the first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], which says what is missing and what to do: a driver, a newer driver, a GPU, NVRTC.
    pub fn new(ordinal: usize) -> Result<Self> {
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let backend =
            Self { graphs: Mutex::default(), rotations: Mutex::default(), device: Device::open(ordinal)? };
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

    /// Bytes of the GPU's memory.
    pub fn memory_bytes(&self) -> usize {
        self.device.driver.properties.total_bytes
    }

    /// The CUDA version of the driver: 13000 is 13.0.
    pub fn driver_version(&self) -> i32 {
        self.device.driver.properties.driver
    }

    fn rotation(&self, rope: &Rope) -> Result<Rotation> {
        let mut rotations = lock(&self.rotations);
        if let Some((_, rotation)) = rotations.iter().find(|(known, _)| known == rope) {
            return Ok(rotation.clone());
        }
        let half_turns = rope.frequencies().into_iter().map(|f| f / std::f64::consts::PI);
        let bytes: Vec<u8> = half_turns.flat_map(f64::to_le_bytes).collect();
        let buffer = Buffer::lasting(&self.device, bytes.len())?;
        buffer.write(0, &bytes)?;
        let rotation = Rotation {
            half_turns: buffer,
            dims: rope.dims as u32,
            is_interleaved: u32::from(rope.pairing == RopePairing::Interleaved),
            scale: rope.scale,
        };
        rotations.push((rope.clone(), rotation.clone()));
        Ok(rotation)
    }

    /// The sum of two tensors; a product that has not been launched takes the other one along.
    fn sum(&self, op: &'static str, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        ensure(a.dims() == b.dims(), op, "b", format_args!("{:?}", a.shape), b)?;
        for (product, other) in [(a, b), (b, a)] {
            if let Some(Pending::Product(product)) = product.op() {
                let other = other.contiguous(&self.device)?;
                return Ok(CudaTensor::ready(a.shape, product.launch(&self.device, Some(&other))?));
            }
        }
        let b = b.contiguous(&self.device)?;
        rows::binary(&self.device, (op, "add"), a, (b.at(), b.len))
    }

    /// What [`Backend::gather_linear`] and its fused kin share: checks, and the product with a row per choice.
    fn gathered(
        &self,
        op: &'static str,
        x: &CudaTensor,
        weights: &[&CudaWeight],
        experts: &CudaIndices,
    ) -> Result<Product> {
        let w = weights[0];
        ensure(experts.dims().len() == 2, op, "experts", "[n, top_k]", experts)?;
        let (n, top_k) = (experts.dims()[0], experts.dims()[1]);
        let per_token = x.dims() == [n, w.n_in];
        let fits = per_token || x.dims() == [n, top_k, w.n_in];
        let want = format_args!("[{n}, {}] or [{n}, {top_k}, {}]", w.n_in, w.n_in);
        ensure(fits, op, "x", want, x)?;
        experts.check(op, "expert", w.n_mats)?;
        let n_jobs = n * top_k;
        Ok(Product {
            op,
            parts: weights.iter().flat_map(|w| w.parts.iter().cloned()).collect(),
            n_mats: w.n_mats,
            n_out: w.n_out,
            n_in: w.n_in,
            input: Input::new(&self.device, x, w.n_in, n_jobs)?,
            n_jobs,
            n_slots: 1,
            rows_per_x: if per_token { top_k.max(1) } else { 1 },
            experts: Some(experts.clone()),
            slot_weights: None,
            epilogue: Epilogue::None,
        })
    }

    /// The product of all rows with one matrix.
    fn product(&self, op: &'static str, x: &CudaTensor, weights: &[&CudaWeight]) -> Result<Product> {
        let w = weights[0];
        ensure(w.n_mats == 1, op, "weight", "one matrix", w)?;
        ensure(x.shape.last() == w.n_in, op, "x", format_args!("rows of {}", w.n_in), x)?;
        let n_jobs = x.shape.n_rows();
        Ok(Product {
            op,
            parts: weights.iter().flat_map(|w| w.parts.iter().cloned()).collect(),
            n_mats: 1,
            n_out: w.n_out,
            n_in: w.n_in,
            input: Input::new(&self.device, x, w.n_in, n_jobs)?,
            n_jobs,
            n_slots: 1,
            rows_per_x: 1,
            experts: None,
            slot_weights: None,
            epilogue: Epilogue::None,
        })
    }
}

/// Checks that gate and up are alike, and tells whether one kernel can take both.
fn check_gate_up(op: &'static str, w: GateUp<'_, CudaWeight>) -> Result<bool> {
    let (gate, up) = (w.gate, w.up);
    let same = (gate.n_mats, gate.n_out, gate.n_in) == (up.n_mats, up.n_out, up.n_in);
    ensure(same, op, "up", format_args!("{gate:?}"), up)?;
    Ok(gate.parts.len() == 1 && up.parts.len() == 1 && gate.parts[0].format == up.parts[0].format)
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
            host: Some(values.into()),
            bound: 0,
            grouped: Grouped::default(),
            launch,
            copy: None,
        })
    }

    fn read_indices(&self, indices: &CudaIndices, out: &mut Vec<u32>) -> Result<()> {
        match &indices.copy {
            Some(copy) => copy.read(out),
            None => indices.buffer.read(0, indices.shape.len(), out),
        }
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

    fn commit(&self, cache: &mut CudaCache, step: &CudaStep) {
        cache.commit(&step.0.spans);
    }

    fn rollback(&self, cache: &mut CudaCache, step: &CudaStep) {
        cache.rollback(&step.0.spans);
    }

    fn wait(&self, x: &CudaTensor) -> Result<()> {
        x.view(&self.device)?;
        self.device.driver.synchronize()
    }

    /// The most probable token; what needs chance or a penalty is left to the host.
    fn sample(
        &self,
        logits: &CudaTensor,
        row: usize,
        settings: &SampleSettings<'_, CudaIndices>,
    ) -> Result<Option<CudaIndices>> {
        if settings.temperature != 0.0 || settings.repetition.is_some() {
            return Ok(None);
        }
        let mut chosen = rows::argmax(&self.device, logits, row)?;
        chosen.copy = Some(Arc::new(HostCopy::start(&chosen.buffer, 0, 4)?));
        Ok(Some(chosen))
    }

    fn eval_async(&self, logits: CudaTensor, _: &CudaIndices) -> Result<CudaTensor> {
        let view = logits.contiguous(&self.device)?;
        let copy = HostCopy::start(&view.buffer, 4 * view.offset, 4 * view.len)?;
        Ok(logits.with_copy(copy))
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

    fn head_linear(&self, x: &CudaTensor, weight: &CudaWeight) -> Result<CudaTensor> {
        const OP: &str = "head_linear";
        let (n, n_heads, n_in) = (x.dims()[0], weight.n_mats, weight.n_in);
        ensure(x.dims() == [n, n_heads, n_in], OP, "x", format_args!("[n, {n_heads}, {n_in}]"), x)?;
        let n_jobs = n * n_heads;
        let product = Product {
            op: OP,
            parts: weight.parts.clone(),
            n_mats: n_heads,
            n_out: weight.n_out,
            n_in,
            input: Input::new(&self.device, x, n_in, n_jobs)?,
            n_jobs,
            n_slots: 1,
            rows_per_x: 1,
            experts: None,
            slot_weights: None,
            epilogue: Epilogue::None,
        };
        let view = product.launch(&self.device, None)?;
        Ok(CudaTensor::ready(x.shape.with_last(weight.n_out), view))
    }

    fn rope(&self, x: &CudaTensor, step: &CudaStep, rope: &Rope) -> Result<CudaTensor> {
        const OP: &str = "rope";
        step.0.check(OP, "x", x)?;
        let &[_, n_heads, width] = x.dims() else {
            return Err(precondition(OP, "x", "[n, n_heads, d]", x));
        };
        rope.check(OP, width)?;
        ensure(n_heads > 0, OP, "x", "at least one head", x)?;
        let (x_view, norm) = match x.op() {
            Some(Pending::Heads(heads)) if heads.width == width && heads.rotation.is_none() => {
                (heads.x, heads.norm)
            }
            _ => (x.view(&self.device)?, None),
        };
        let rotation = Some((self.rotation(rope)?, Arc::clone(&step.0), n_heads));
        let heads = Heads { x: x_view, width, norm, rotation, staged: Staged::default() };
        Ok(CudaTensor::pending(x.shape, Pending::Heads(heads)))
    }

    fn attention(
        &self,
        inputs: AttentionInputs<'_, CudaTensor, CudaWeight>,
        cache: &mut CudaCache,
        step: &CudaStep,
        settings: &AttentionSettings,
    ) -> Result<CudaTensor> {
        const OP: &str = "attention";
        let AttentionInputs { q, k, v, sinks } = inputs;
        let (n_kv_heads, head_dim, window) = match cache.kind {
            CacheKind::Full { n_kv_heads, head_dim } => (n_kv_heads, head_dim, None),
            CacheKind::Window { n_kv_heads, head_dim, window } => (n_kv_heads, head_dim, Some(window)),
            CacheKind::Latent { .. } => {
                return Err(precondition(OP, "cache", "keys and values of heads", &cache.kind));
            }
        };
        for (name, x) in [("q", q), ("k", k), ("v", v)] {
            step.0.check(OP, name, x)?;
            ensure(
                x.dims().len() == 3 && x.shape.last() == head_dim,
                OP,
                name,
                format_args!("[n, _, {head_dim}]"),
                x,
            )?;
        }
        let n_heads = q.dims()[1];
        ensure(
            n_heads > 0 && n_heads.is_multiple_of(n_kv_heads),
            OP,
            "q",
            format_args!("heads that {n_kv_heads} divide"),
            q,
        )?;
        for (name, x) in [("k", k), ("v", v)] {
            ensure(x.dims()[1] == n_kv_heads, OP, name, format_args!("{n_kv_heads} heads"), x)?;
        }
        ensure(
            settings.window == window,
            OP,
            "window",
            format_args!("the cache's, {window:?}"),
            settings.window,
        )?;
        let sinks = sinks.map(|s| s.vector(OP, n_heads)).transpose()?;
        cache.check(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q, head_dim)],
            k: &[(k, head_dim)],
            v: Some((v, head_dim)),
            n_heads,
            v_width: head_dim,
            scale: settings.scale,
            window,
            sinks,
        };
        attend(&self.device, OP, &inputs, cache, &step.0)
    }

    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, CudaTensor>,
        cache: &mut CudaCache,
        step: &CudaStep,
        scale: f32,
    ) -> Result<CudaTensor> {
        const OP: &str = "latent_attention";
        let MlaInputs { q_nope, q_pe, kv, k_pe } = inputs;
        let CacheKind::Latent { rank, rope_dim } = cache.kind else {
            return Err(precondition(OP, "cache", "latents", &cache.kind));
        };
        let n = step.0.n_tokens;
        let n_heads = q_nope.dims().get(1).copied().unwrap_or(0);
        for (name, x, want) in [
            ("q_nope", q_nope, &[n, n_heads, rank][..]),
            ("q_pe", q_pe, &[n, n_heads, rope_dim]),
            ("kv", kv, &[n, rank]),
            ("k_pe", k_pe, &[n, rope_dim]),
        ] {
            ensure(x.dims() == want, OP, name, format_args!("{want:?}"), x)?;
        }
        ensure(n_heads > 0, OP, "q_nope", "at least one head", q_nope)?;
        cache.check(OP, &step.0.spans)?;
        let inputs = Inputs {
            q: &[(q_nope, rank), (q_pe, rope_dim)],
            k: &[(kv, rank), (k_pe, rope_dim)],
            v: None,
            n_heads,
            v_width: rank,
            scale,
            window: None,
            sinks: None,
        };
        attend(&self.device, OP, &inputs, cache, &step.0)
    }

    fn add(&self, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        self.sum("add", a, b)
    }

    fn swiglu(&self, gate: &CudaTensor, up: &CudaTensor) -> Result<CudaTensor> {
        const OP: &str = "swiglu";
        ensure(gate.dims() == up.dims(), OP, "up", format_args!("{:?}", gate.shape), up)?;
        let up = up.contiguous(&self.device)?;
        rows::binary(&self.device, (OP, OP), gate, (up.at(), up.len))
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
        const OP: &str = "gather_qmm_swiglu";
        if !check_gate_up(OP, weights)? {
            return stock::gather_qmm_swiglu(self, x, weights, experts);
        }
        let mut product = self.gathered(OP, x, &[weights.gate, weights.up], experts)?;
        product.epilogue = Epilogue::SwiGlu;
        let shape = Shape::new(OP, &[experts.dims()[0], experts.dims()[1], weights.gate.n_out])?;
        Ok(CudaTensor::ready(shape, product.launch(&self.device, None)?))
    }

    fn gather_qmm_combine(
        &self,
        x: &CudaTensor,
        down: &CudaWeight,
        experts: &CudaIndices,
        weights: &CudaTensor,
    ) -> Result<CudaTensor> {
        const OP: &str = "gather_qmm_combine";
        ensure(experts.dims().len() == 2, OP, "experts", "[n, top_k]", experts)?;
        let (n, top_k) = (experts.dims()[0], experts.dims()[1]);
        ensure(x.dims() == [n, top_k, down.n_in], OP, "x", format_args!("[{n}, {top_k}, {}]", down.n_in), x)?;
        ensure(weights.dims() == [n, top_k], OP, "weights", format_args!("[{n}, {top_k}]"), weights)?;
        let mut product = self.gathered(OP, x, &[down], experts)?;
        (product.n_jobs, product.n_slots) = (n, top_k);
        if n >= MIN_TOKENS || !product.fits(&self.device) {
            return stock::gather_qmm_combine(self, x, down, experts, weights);
        }
        product.slot_weights = Some(weights.contiguous(&self.device)?);
        let shape = Shape::new(OP, &[n, down.n_out])?;
        Ok(CudaTensor::pending(shape, Pending::Product(Box::new(product))))
    }

    fn qmm_swiglu(&self, x: &CudaTensor, weights: GateUp<'_, CudaWeight>) -> Result<CudaTensor> {
        const OP: &str = "qmm_swiglu";
        if !check_gate_up(OP, weights)? {
            return stock::qmm_swiglu(self, x, weights);
        }
        let mut product = self.product(OP, x, &[weights.gate, weights.up])?;
        product.epilogue = Epilogue::SwiGlu;
        let view = product.launch(&self.device, None)?;
        Ok(CudaTensor::ready(x.shape.with_last(weights.gate.n_out), view))
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

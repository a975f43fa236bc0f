#![doc = include_str!("../README.md")]
// Unit tests are compiled with only the scalar instances of the matrix kernels: see `matmul/kernels.rs`.
#![cfg_attr(test, allow(dead_code, unused_imports, reason = "what only the other instances use"))]

mod attention;
mod cache;
mod combine;
mod integers;
mod level;
mod math;
mod matmul;
mod pool;
mod products;
mod recurrent;
mod rope;
mod route;
mod rows;
mod simd;
mod step;
mod sync_ptr;
mod team;

use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cache::CpuCache;
pub use level::{Activations, Level};
pub use matmul::CpuWeight;
use matmul::{Groups, Product, ProductScratch};
use pool::{Buffers, Shape};
pub use pool::{CpuIndices, CpuTensor};
use products::{check_gate_up, check_pairs, copy, swiglu};
pub use step::CpuStep;
use sync_ptr::SyncPtr;
use team::{Sizes, Team};

use zmlx_core::check::ensure;
use zmlx_core::{
    Activation, AttentionInputs, AttentionSettings, Backend, Barriers, CacheSpec, ConvActivation,
    ConvWeights, DeltaInputs, DeltaWeights, Down, Error, GateUp, HostWeight, Instrumented, MlaInputs,
    NoauxTc, Result, Rope, SoftmaxTopK, Span, stock,
};

const NAME: &str = "cpu";

/// The CPU as a [`Backend`].
///
/// Fused ops give the same bits as the compositions in [`stock`], provided that experts are in the ascending order in
/// which this backend's routers give them.
pub struct CpuBackend {
    level: Level,
    activations: Activations,
    team: Mutex<Team>,
    floats: Buffers<f32>,
    words: Buffers<u32>,
    spans: Buffers<Span>,
    scratch: Vec<Mutex<MemberScratch>>,
    /// For each part of the weight in a product, the number of chunks of rows that members have taken.
    taken: Mutex<Vec<AtomicUsize>>,
    groups: Mutex<Groups>,
    angles: Mutex<rope::Angles>,
}

/// The working memory of one member of the team.
#[derive(Default)]
struct MemberScratch {
    product: ProductScratch,
    attention: attention::Partial,
}

/// Locks the mutex. A panic in an earlier holder does not matter, because every holder overwrites what it uses.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CpuBackend {
    /// A backend with `n_threads` threads, the caller's included. By default it uses as many as make it faster, up to
    /// one for each physical core that this process may use; on a busy machine these are fewer. The level is the best
    /// supported one, or the one that `ZMLX_CPU_LEVEL` names.
    ///
    /// # Errors
    /// If the variable names a level that this machine cannot run.
    pub fn new(n_threads: Option<usize>) -> Result<Self> {
        Self::with_level(Level::from_env()?, n_threads)
    }

    /// As [`CpuBackend::new`] with a given level.
    ///
    /// # Errors
    /// If this machine cannot run the level.
    pub fn with_level(level: Level, n_threads: Option<usize>) -> Result<Self> {
        if !level.is_supported() {
            let why = format!("this processor cannot run the level {}", level.name());
            return Err(Error::Unavailable { backend: NAME, why });
        }
        let team = match n_threads {
            Some(n) => Team::new(n, Sizes::Fixed),
            None => Team::new(default_threads(), Sizes::AsPays),
        };
        Ok(Self {
            level,
            activations: Activations::default(),
            scratch: (0..team.n_members()).map(|_| Mutex::default()).collect(),
            taken: Mutex::default(),
            team: Mutex::new(team),
            floats: Buffers::new(),
            words: Buffers::new(),
            spans: Buffers::new(),
            groups: Mutex::default(),
            angles: Mutex::default(),
        })
    }

    /// Rounds activations this way for weights that are uploaded from now on.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { activations, ..self }
    }

    /// What activations are rounded to.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// The instruction-set level in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The largest number of threads in use at once.
    pub fn n_threads(&self) -> usize {
        self.scratch.len()
    }
}

fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    num_cpus::get_physical().clamp(1, usable)
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Indices = CpuIndices;
    type Weight = CpuWeight;
    type Cache = CpuCache;
    type Step = CpuStep;

    fn name(&self) -> &'static str {
        NAME
    }

    fn upload(&self, weight: HostWeight) -> Result<CpuWeight> {
        Ok(CpuWeight::new(self.level, self.activations, weight))
    }

    fn concat_rows(&self, parts: &[&CpuWeight]) -> Result<CpuWeight> {
        CpuWeight::concat_rows(parts)
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<CpuTensor> {
        let shape = Shape::new("tensor", shape)?;
        ensure(
            shape.len() == values.len(),
            "tensor",
            "values",
            format_args!("{} for {shape:?}", shape.len()),
            values.len(),
        )?;
        let mut data = self.floats.take("tensor", values.len())?;
        data.copy_from_slice(values);
        Ok(CpuTensor::new(shape, data))
    }

    fn read(&self, x: &CpuTensor, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        out.extend_from_slice(x.values());
        Ok(())
    }

    fn shape(&self, x: &CpuTensor) -> Vec<usize> {
        x.dims().to_vec()
    }

    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<CpuIndices> {
        let shape = Shape::new("indices", shape)?;
        ensure(
            shape.len() == values.len(),
            "indices",
            "values",
            format_args!("{} for {shape:?}", shape.len()),
            values.len(),
        )?;
        let mut data = self.words.take("indices", values.len())?;
        data.copy_from_slice(values);
        Ok(CpuIndices { shape, data: data.freeze() })
    }

    fn read_indices(&self, indices: &CpuIndices, out: &mut Vec<u32>) -> Result<()> {
        out.clear();
        out.extend_from_slice(indices.values());
        Ok(())
    }

    fn join_indices(&self, lists: &[&CpuIndices]) -> Result<CpuIndices> {
        const OP: &str = "join_indices";
        ensure(!lists.is_empty(), OP, "lists", "at least one", lists.len())?;
        for list in lists {
            ensure(list.dims().len() == 1, OP, "list", "[n]", list)?;
        }
        let values: Vec<u32> = lists.iter().flat_map(|list| list.values()).copied().collect();
        self.indices(&values, &[values.len()])
    }

    fn step(&self, spans: &[Span]) -> Result<CpuStep> {
        self.new_step(spans)
    }

    fn n_tokens(&self, step: &CpuStep) -> usize {
        step.n_tokens()
    }

    fn cache(&self, spec: &CacheSpec) -> Result<CpuCache> {
        CpuCache::new(spec)
    }

    fn cache_bytes(&self, spec: &CacheSpec, n_tokens: usize) -> u64 {
        cache::cache_bytes(spec, n_tokens)
    }

    fn resident_bytes(&self, cache: &CpuCache) -> u64 {
        cache.resident_bytes()
    }

    fn slot_bytes(&self, cache: &CpuCache, slot: usize) -> u64 {
        cache.slot_bytes(slot)
    }

    fn growth_bytes(&self, cache: &CpuCache, slot: usize, n_tokens: usize) -> u64 {
        cache.growth_bytes(slot, n_tokens)
    }

    fn reserve(&self, cache: &mut CpuCache, slot: usize, n_tokens: usize) -> Result<()> {
        cache.reserve(slot, n_tokens)
    }

    fn fork(&self, cache: &mut CpuCache, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        cache.fork(from, to, n_tokens)
    }

    fn truncate(&self, cache: &mut CpuCache, slot: usize, n_tokens: usize) -> Result<()> {
        cache.truncate(slot, n_tokens)
    }

    fn release(&self, cache: &mut CpuCache, slot: usize) {
        cache.release(slot);
    }

    fn shortest(&self, cache: &CpuCache, slot: usize) -> usize {
        cache.shortest(slot)
    }

    fn commit(&self, cache: &mut CpuCache, step: &CpuStep) {
        cache.commit(step.spans());
    }

    fn rollback(&self, cache: &mut CpuCache, step: &CpuStep) {
        cache.rollback(step.spans());
    }

    fn embed(&self, table: &CpuWeight, ids: &CpuIndices) -> Result<CpuTensor> {
        const OP: &str = "embed";
        ensure(table.n_mats() == 1, OP, "table", "one matrix", table)?;
        let (vocab, hidden) = (table.n_out(), table.n_in());
        if let Some(id) = ids.values().iter().find(|id| **id as usize >= vocab) {
            return Err(Error::IndexOutOfRange { op: OP, what: "token", index: *id as usize, len: vocab });
        }
        let shape = Shape::new(OP, &[ids.values().len(), hidden])?;
        let mut y = self.floats.take(OP, shape.len())?;
        for (id, row) in ids.values().iter().zip(y.chunks_exact_mut(hidden)) {
            table.read_row(*id as usize, row);
        }
        Ok(CpuTensor::new(shape, y))
    }

    fn rms_norm(&self, x: &CpuTensor, weight: &CpuWeight, eps: f32) -> Result<CpuTensor> {
        const OP: &str = "rms_norm";
        let width = x.shape.last();
        let weight = weight.vector(OP, width)?;
        self.map_rows(OP, x, width, |_, x, y| math::rms_norm(x, weight, eps, y))
    }

    fn linear(&self, x: &CpuTensor, weight: &CpuWeight) -> Result<CpuTensor> {
        self.product_all("linear", x, [weight], copy)
    }

    fn gather_linear(&self, x: &CpuTensor, weight: &CpuWeight, experts: &CpuIndices) -> Result<CpuTensor> {
        self.product_gathered("gather_linear", x, [weight], experts, copy)
    }

    fn gather_add(&self, x: &CpuTensor, bank: &CpuWeight, experts: &CpuIndices) -> Result<CpuTensor> {
        const OP: &str = "gather_add";
        let (n_experts, width) = (bank.n_mats(), x.shape.last());
        let biases = bank.vectors(OP, n_experts, width)?;
        let rows = &x.dims()[..x.dims().len() - 1];
        ensure(
            rows == experts.dims() && rows.len() == 2,
            OP,
            "experts",
            "the rows of x, [n, top_k]",
            experts,
        )?;
        if let Some(e) = experts.values().iter().find(|e| **e as usize >= n_experts) {
            return Err(Error::IndexOutOfRange {
                op: OP,
                what: "expert",
                index: *e as usize,
                len: n_experts,
            });
        }
        self.map_rows(OP, x, width, |r, x, y| {
            let bias = &biases[experts.values()[r] as usize * width..];
            y.iter_mut().zip(x).zip(bias).for_each(|((y, x), b)| *y = x + b);
        })
    }

    fn head_linear(&self, x: &CpuTensor, weight: &CpuWeight) -> Result<CpuTensor> {
        const OP: &str = "head_linear";
        let (n_heads, n_in) = (weight.n_mats(), weight.n_in());
        let n_tokens = x.dims()[0];
        ensure(x.dims() == [n_tokens, n_heads, n_in], OP, "x", format_args!("[n, {n_heads}, {n_in}]"), x)?;
        let shape = x.shape.with_last(OP, weight.n_out())?;
        check_pairs(OP, n_tokens * n_heads)?;
        let mut groups = lock(&self.groups);
        groups.by_mat(n_tokens * n_heads, n_heads, |p| p % n_heads);
        let product = Product { op: OP, weights: [weight], x: x.values(), pairs_per_x: 1 };
        let mut y = self.floats.take(OP, shape.len())?;
        let write = self.write(SyncPtr::new(&mut y), shape.last(), copy);
        self.product_by_mats(&product, &groups, write);
        Ok(CpuTensor::new(shape, y))
    }

    fn rope(&self, x: &CpuTensor, step: &CpuStep, rope: &Rope) -> Result<CpuTensor> {
        self.rotate(x, step, rope)
    }

    fn attention(
        &self,
        inputs: AttentionInputs<'_, CpuTensor, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
        settings: &AttentionSettings,
    ) -> Result<CpuTensor> {
        self.attention_heads(inputs, cache, step, settings)
    }

    fn attention_shared(
        &self,
        q: &CpuTensor,
        cache: &CpuCache,
        step: &CpuStep,
        settings: &AttentionSettings,
    ) -> Result<CpuTensor> {
        self.attention_to_others(q, cache, step, settings)
    }

    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, CpuTensor>,
        cache: &mut CpuCache,
        step: &CpuStep,
        scale: f32,
    ) -> Result<CpuTensor> {
        self.attention_latent(inputs, cache, step, scale)
    }

    fn causal_conv(
        &self,
        x: &CpuTensor,
        weights: ConvWeights<'_, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
        activation: ConvActivation,
    ) -> Result<CpuTensor> {
        self.convolve(x, weights, cache, step, activation)
    }

    fn gated_delta(
        &self,
        inputs: DeltaInputs<'_, CpuTensor>,
        weights: DeltaWeights<'_, CpuWeight>,
        cache: &mut CpuCache,
        step: &CpuStep,
    ) -> Result<CpuTensor> {
        self.delta_rule(inputs, weights, cache, step)
    }

    fn mul(&self, a: &CpuTensor, b: &CpuTensor) -> Result<CpuTensor> {
        ensure(a.dims() == b.dims(), "mul", "b", format_args!("{:?}", a.dims()), b)?;
        let width = a.shape.last();
        self.map_rows("mul", a, width, |r, a, y| {
            for ((y, a), b) in y.iter_mut().zip(a).zip(&b.values()[r * width..]) {
                *y = a * b;
            }
        })
    }

    fn mul_sigmoid(&self, x: &CpuTensor, gate: &CpuTensor) -> Result<CpuTensor> {
        const OP: &str = "mul_sigmoid";
        let width = x.shape.last();
        let is_one = gate.dims() == x.shape.with_last(OP, 1)?.dims();
        let want = format_args!("{:?}, or one value for each row", x.dims());
        ensure(is_one || gate.dims() == x.dims(), OP, "gate", want, gate)?;
        self.map_rows(OP, x, width, |r, x, y| {
            if is_one {
                let factor = math::sigmoid(gate.values()[r]);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
            } else {
                for ((y, x), gate) in y.iter_mut().zip(x).zip(&gate.values()[r * width..]) {
                    *y = x * math::sigmoid(*gate);
                }
            }
        })
    }

    fn add(&self, a: &CpuTensor, b: &CpuTensor) -> Result<CpuTensor> {
        ensure(a.dims() == b.dims(), "add", "b", format_args!("{:?}", a.dims()), b)?;
        let width = a.shape.last();
        self.map_rows("add", a, width, |r, a, y| {
            for ((y, a), b) in y.iter_mut().zip(a).zip(&b.values()[r * width..]) {
                *y = a + b;
            }
        })
    }

    fn gated(&self, gate: &CpuTensor, up: &CpuTensor, activation: Activation) -> Result<CpuTensor> {
        const OP: &str = "gated";
        ensure(gate.dims() == up.dims(), OP, "up", format_args!("{:?}", gate.dims()), up)?;
        let width = gate.shape.last();
        if activation == Activation::SwiGlu {
            return self
                .map_rows(OP, gate, width, |r, gate, y| math::swiglu([gate, &up.values()[r * width..]], y));
        }
        self.map_rows(OP, gate, width, |r, gate, y| {
            math::gated(activation, [gate, &up.values()[r * width..]], None, y);
        })
    }

    fn soft_cap(&self, x: &CpuTensor, cap: f32) -> Result<CpuTensor> {
        const OP: &str = "soft_cap";
        ensure(cap > 0.0, OP, "cap", "a positive number", cap)?;
        self.map_rows(OP, x, x.shape.last(), |_, x, y| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = cap * math::tanh(x / cap));
        })
    }

    fn softmax(&self, x: &CpuTensor) -> Result<CpuTensor> {
        self.map_rows("softmax", x, x.shape.last(), |_, x, y| {
            y.copy_from_slice(x);
            math::softmax(y);
        })
    }

    fn sigmoid(&self, x: &CpuTensor) -> Result<CpuTensor> {
        self.map_rows("sigmoid", x, x.shape.last(), |_, x, y| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = math::sigmoid(*x));
        })
    }

    fn add_vector(&self, x: &CpuTensor, vector: &CpuWeight) -> Result<CpuTensor> {
        const OP: &str = "add_vector";
        let vector = vector.vector(OP, x.shape.last())?;
        self.map_rows(OP, x, x.shape.last(), |_, x, y| {
            y.iter_mut().zip(x).zip(vector).for_each(|((y, x), v)| *y = x + v);
        })
    }

    fn keep_top_groups(&self, x: &CpuTensor, n_group: usize, topk_group: usize) -> Result<CpuTensor> {
        const OP: &str = "keep_top_groups";
        route::check_groups(OP, x.shape.last(), n_group, topk_group)?;
        self.map_rows(OP, x, x.shape.last(), |_, x, y| {
            y.copy_from_slice(x);
            route::keep_top_groups(y, n_group, topk_group);
        })
    }

    fn top_k(&self, x: &CpuTensor, k: usize) -> Result<CpuIndices> {
        const OP: &str = "top_k";
        let width = route::check_rows(OP, x)?;
        route::check_top_k(OP, k, width)?;
        let shape = x.shape.with_last(OP, k)?;
        let mut out = self.words.take(OP, shape.len())?;
        for (x, out) in x.values().chunks_exact(width).zip(out.chunks_exact_mut(k)) {
            route::top_k(x, out);
        }
        Ok(CpuIndices { shape, data: out.freeze() })
    }

    fn take_last(&self, x: &CpuTensor, indices: &CpuIndices) -> Result<CpuTensor> {
        const OP: &str = "take_last";
        let (width, k) = (x.shape.last(), indices.shape.last());
        let rows = x.shape.with_last(OP, k)?;
        ensure(indices.dims() == rows.dims(), OP, "indices", "the rows of x", indices)?;
        if let Some(i) = indices.values().iter().find(|i| **i as usize >= width) {
            return Err(Error::IndexOutOfRange { op: OP, what: "column", index: *i as usize, len: width });
        }
        self.map_rows(OP, x, k, |r, x, y| {
            y.iter_mut().zip(&indices.values()[r * k..]).for_each(|(y, i)| *y = x[*i as usize]);
        })
    }

    fn mul_taken(&self, x: &CpuTensor, vector: &CpuWeight, indices: &CpuIndices) -> Result<CpuTensor> {
        const OP: &str = "mul_taken";
        let len = vector.n_in();
        let vector = vector.vector(OP, len)?;
        ensure(x.dims() == indices.dims(), OP, "indices", format_args!("{:?}", x.dims()), indices)?;
        if let Some(i) = indices.values().iter().find(|i| **i as usize >= len) {
            return Err(Error::IndexOutOfRange { op: OP, what: "value", index: *i as usize, len });
        }
        let k = x.shape.last();
        self.map_rows(OP, x, k, |r, x, y| {
            let indices = &indices.values()[r * k..];
            y.iter_mut().zip(x).zip(indices).for_each(|((y, x), i)| *y = x * vector[*i as usize]);
        })
    }

    fn div_by_sum(&self, x: &CpuTensor, eps: f32) -> Result<CpuTensor> {
        self.map_rows("div_by_sum", x, x.shape.last(), |_, x, y| {
            let sum = math::sum(x) + eps;
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x / sum);
        })
    }

    fn scale(&self, x: &CpuTensor, factor: f32) -> Result<CpuTensor> {
        self.map_rows("scale", x, x.shape.last(), |_, x, y| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * factor);
        })
    }

    fn weighted_sum(&self, x: &CpuTensor, weights: &CpuTensor) -> Result<CpuTensor> {
        const OP: &str = "weighted_sum";
        let &[n_tokens, top_k, width] = x.dims() else {
            return ensure(false, OP, "x", "[n, top_k, d]", x).map(|()| unreachable!());
        };
        ensure(
            weights.dims() == [n_tokens, top_k],
            OP,
            "weights",
            format_args!("[{n_tokens}, {top_k}]"),
            weights,
        )?;
        self.map_rows(OP, weights, width, |t, weights, y| {
            y.fill(0.0);
            for (w, x) in weights.iter().zip(x.values()[t * top_k * width..].chunks_exact(width)) {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
            }
        })
    }

    fn reshape(&self, x: &CpuTensor, shape: &[usize]) -> Result<CpuTensor> {
        let shape = Shape::new("reshape", shape)?;
        ensure(
            shape.len() == x.shape.len(),
            "reshape",
            "shape",
            format_args!("{} values", x.shape.len()),
            shape,
        )?;
        Ok(CpuTensor { shape, data: x.data.clone() })
    }

    fn slice_last(&self, x: &CpuTensor, range: Range<usize>) -> Result<CpuTensor> {
        const OP: &str = "slice_last";
        let width = x.shape.last();
        ensure(
            !range.is_empty() && range.end <= width,
            OP,
            "range",
            format_args!("within 0..{width}"),
            &range,
        )?;
        self.map_rows(OP, x, range.len(), |_, x, y| y.copy_from_slice(&x[range.clone()]))
    }

    fn take_logit_rows(&self, x: &CpuTensor, step: &CpuStep) -> Result<CpuTensor> {
        self.logit_rows_of(x, step)
    }

    fn gather_qmm_swiglu(
        &self,
        x: &CpuTensor,
        weights: GateUp<'_, CpuWeight>,
        experts: &CpuIndices,
    ) -> Result<CpuTensor> {
        const OP: &str = "gather_qmm_swiglu";
        check_gate_up(OP, weights)?;
        if !Self::in_lockstep(weights.gate, weights.up) {
            return stock::gather_qmm_swiglu(self, x, weights, experts);
        }
        if weights.is_plain() {
            return self.product_gathered(OP, x, [weights.gate, weights.up], experts, swiglu);
        }
        self.gate_up(OP, x, weights, Some(experts))
    }

    fn gather_qmm_combine(
        &self,
        x: &CpuTensor,
        down: Down<'_, CpuWeight>,
        experts: &CpuIndices,
        weights: &CpuTensor,
    ) -> Result<CpuTensor> {
        self.combine(x, down, experts, weights)
    }

    fn qmm_swiglu(&self, x: &CpuTensor, weights: GateUp<'_, CpuWeight>) -> Result<CpuTensor> {
        const OP: &str = "qmm_swiglu";
        check_gate_up(OP, weights)?;
        if !Self::in_lockstep(weights.gate, weights.up) {
            return stock::qmm_swiglu(self, x, weights);
        }
        if weights.is_plain() {
            return self.product_all(OP, x, [weights.gate, weights.up], swiglu);
        }
        self.gate_up(OP, x, weights, None)
    }

    fn add_rms_norm(
        &self,
        x: &CpuTensor,
        residual: &CpuTensor,
        weight: &CpuWeight,
        eps: f32,
    ) -> Result<(CpuTensor, CpuTensor)> {
        const OP: &str = "add_rms_norm";
        ensure(x.dims() == residual.dims(), OP, "residual", format_args!("{:?}", x.dims()), residual)?;
        let width = x.shape.last();
        let weight = weight.vector(OP, width)?;
        let mut sum = self.floats.take(OP, x.shape.len())?;
        let sums = SyncPtr::new(&mut sum);
        let normed = self.map_rows(OP, x, width, |r, x, y| {
            // SAFETY: row r of the sums, in one share only.
            let sum = unsafe { sums.slice(r * width, width) };
            for ((s, x), b) in sum.iter_mut().zip(x).zip(&residual.values()[r * width..]) {
                *s = x + b;
            }
            math::rms_norm(sum, weight, eps, y);
        })?;
        Ok((CpuTensor::new(x.shape, sum), normed))
    }

    fn rms_norm_gated(
        &self,
        x: &CpuTensor,
        gate: &CpuTensor,
        weight: &CpuWeight,
        eps: f32,
    ) -> Result<CpuTensor> {
        const OP: &str = "rms_norm_gated";
        ensure(x.dims() == gate.dims(), OP, "gate", format_args!("{:?}", x.dims()), gate)?;
        let width = x.shape.last();
        let weight = weight.vector(OP, width)?;
        self.map_rows(OP, x, width, |r, x, y| {
            math::rms_norm(x, weight, eps, y);
            for (y, gate) in y.iter_mut().zip(&gate.values()[r * width..]) {
                *y *= math::silu(*gate);
            }
        })
    }

    fn route_softmax_top_k(
        &self,
        logits: &CpuTensor,
        settings: &SoftmaxTopK,
    ) -> Result<(CpuIndices, CpuTensor)> {
        self.route("route_softmax_top_k", logits, settings.top_k, |scores, experts, weights| {
            route::softmax_top_k(scores, settings, experts, weights);
        })
    }

    fn route_noaux_tc(
        &self,
        logits: &CpuTensor,
        bias: &CpuWeight,
        settings: &NoauxTc,
    ) -> Result<(CpuIndices, CpuTensor)> {
        const OP: &str = "route_noaux_tc";
        let width = route::check_rows(OP, logits)?;
        if settings.n_group > 1 {
            route::check_groups(OP, width, settings.n_group, settings.topk_group)?;
        }
        let bias = bias.vector(OP, width)?;
        let mut chosen_by = self.floats.take(OP, width)?;
        self.route(OP, logits, settings.top_k, |scores, experts, weights| {
            route::noaux_tc(scores, &mut chosen_by, bias, settings, experts, weights);
        })
    }
}

/// Every fused op is a kernel here.
impl Instrumented for CpuBackend {
    fn kernel_runs(&self, _op: &str) -> Option<u64> {
        None
    }

    fn barriers(&self) -> Option<Barriers> {
        Some(lock(&self.team).barriers())
    }
}

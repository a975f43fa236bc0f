//! MLX as a [`Backend`].
//!
//! Ops build MLX's graph and return; [`Backend::read`], [`Backend::read_indices`] and [`Backend::eval_async`] compute
//! it. Activations have the type that MLX's promotion gives them: the embedding's rows are of the type of its scales, and
//! everything that follows from a bf16 checkpoint is bf16.
//!
//! # Numerics
//!
//! *Exact*: mlx-lm's results, bit for bit: the same ops in the same types and order on the same MLX. *Accurate*: the f32
//! truth within f32 rounding: activations, scales and dense weights are f32, which is slower and larger.

mod arrays;
mod attention;
mod cache;
mod compiled;
mod fused;
mod gated;
mod indices;
mod latent;
mod products;
mod ranks;
mod recurrent;
mod router;
mod rows;
mod sample;
mod step;
mod weight;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mlx_rs::{Array, Dtype, ops};

pub(in crate::mlx) use arrays::copy_out;
pub use cache::MlxCache;
pub(super) use fused::{Pairs, launch_gather_qmm_swiglu};
pub use indices::MlxIndices;
pub(in crate::mlx) use indices::{below, rows_in_order};
pub use step::MlxStep;
pub use weight::MlxWeight;
pub(super) use weight::packed;

use super::raw;
use super::runtime::{NAME, fault as f};
use super::{Group, Runtime, limits};
use crate::check::ensure;
use crate::metal::Numerics;
use crate::stock::{self, Routers};
use crate::{
    Activation, AttentionInputs, AttentionSettings, Backend, Barriers, CacheSpec, ConvActivation,
    ConvWeights, DeltaInputs, DeltaWeights, Down, Error, GateUp, HostNeeds, HostWeight, Instrumented,
    MlaInputs, MlaWeights, NoauxTc, NormRope, NormRopeMla, PrefillStyle, Result, Rope, SampleSettings, Shard,
    SoftmaxTopK, Span,
};
use arrays::{
    check_groups, check_route, check_shape, dims, last_width, same_shape, scalar, shape_i32, zeros,
};

/// Tokens of a prompt that are computed at once: mlx-lm's `prefill_step_size`.
const PREFILL_CHUNK: usize = 2048;

/// MLX's default device as a [`Backend`]: the GPU where there is Metal, else the CPU.
#[derive(Clone, Debug)]
pub struct MlxBackend {
    runtime: Runtime,
    numerics: Numerics,
    sharing: Sharing,
    /// Steps so far, of all clones.
    n_steps: Arc<AtomicU64>,
}

/// Whether a model is shared among ranks.
#[derive(Clone, Copy, Debug)]
enum Sharing {
    Alone,
    /// Each rank computes a part of every layer.
    Tensor(Group),
    /// Each rank computes some of the layers.
    Pipeline(Group),
}

impl MlxBackend {
    /// A backend on the default device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if MLX does not start.
    pub fn new(numerics: Numerics) -> Result<Self> {
        let runtime = Runtime::start()?;
        Ok(Self { runtime, numerics, sharing: Sharing::Alone, n_steps: Arc::default() })
    }

    /// The same backend as one of several ranks, each of which computes its part of every layer. Partial sums are rounded to the
    /// type of activations before they are added, so results have other bits than on one rank: the same on all ranks.
    #[must_use]
    pub fn with_group(self, group: Group) -> Self {
        Self { sharing: Sharing::Tensor(group), ..self }
    }

    /// The same backend as one of several ranks, each of which computes some of a model's layers: the results are those of one
    /// rank.
    #[must_use]
    pub fn with_stages(self, group: Group) -> Self {
        Self { sharing: Sharing::Pipeline(group), ..self }
    }

    /// What its results are equal to.
    pub fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// The ranks that each compute a part of every layer.
    fn tensor_group(&self) -> Option<Group> {
        if let Sharing::Tensor(group) = self.sharing { Some(group) } else { None }
    }

    /// The ranks that each compute some of the layers.
    fn stages(&self, op: &'static str) -> Result<Group> {
        match self.sharing {
            Sharing::Pipeline(group) => Ok(group),
            Sharing::Alone | Sharing::Tensor(_) => {
                let why = "its ranks do not share a model by layers".to_owned();
                Err(Error::Unsupported { op, backend: NAME, why })
            }
        }
    }

    /// What was found when MLX started.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

impl Backend for MlxBackend {
    type Tensor = Array;
    type Indices = MlxIndices;
    type Weight = MlxWeight;
    type Cache = MlxCache;
    type Step = MlxStep;

    fn name(&self) -> &'static str {
        NAME
    }

    fn upload(&self, weight: HostWeight) -> Result<MlxWeight> {
        MlxWeight::upload(&weight, self.numerics)
    }

    fn concat_rows(&self, parts: &[&MlxWeight]) -> Result<MlxWeight> {
        MlxWeight::concat_rows(parts)
    }

    fn join_rows(&self, parts: Vec<MlxWeight>) -> Result<(MlxWeight, Vec<MlxWeight>)> {
        MlxWeight::join_rows(parts, self.numerics)
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Array> {
        check_shape("tensor", shape, values.len())?;
        if values.is_empty() {
            return zeros("tensor", shape, Dtype::Float32);
        }
        Ok(Array::from_slice(values, &shape_i32(shape)))
    }

    fn read(&self, x: &Array, out: &mut Vec<f32>) -> Result<()> {
        out.clear();
        if x.size() == 0 {
            return Ok(());
        }
        let x = x.as_dtype(Dtype::Float32).map_err(f("read"))?;
        copy_out("read", &x, out)
    }

    fn shape(&self, x: &Array) -> Vec<usize> {
        dims(x)
    }

    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<MlxIndices> {
        check_shape("indices", shape, values.len())?;
        MlxIndices::new("indices", values, &shape_i32(shape))
    }

    fn read_indices(&self, indices: &MlxIndices, out: &mut Vec<u32>) -> Result<()> {
        const OP: &str = "read_indices";
        out.clear();
        if indices.array().size() == 0 {
            return Ok(());
        }
        copy_out(OP, indices.array(), out)
    }

    fn join_indices(&self, lists: &[&MlxIndices]) -> Result<MlxIndices> {
        MlxIndices::join("join_indices", lists)
    }

    /// Also gives unused memory back every so many steps, as mlx-lm does.
    fn step(&self, spans: &[Span]) -> Result<MlxStep> {
        limits::free_unused(self.n_steps.fetch_add(1, Ordering::Relaxed))?;
        MlxStep::new(spans)
    }

    fn n_tokens(&self, step: &MlxStep) -> usize {
        step.n_tokens()
    }

    fn cache(&self, spec: &CacheSpec) -> Result<MlxCache> {
        MlxCache::new(spec, self.numerics)
    }

    fn cache_bytes(&self, spec: &CacheSpec, n_tokens: usize) -> u64 {
        cache::cache_bytes(spec, self.numerics, n_tokens)
    }

    fn resident_bytes(&self, cache: &MlxCache) -> u64 {
        cache.resident_bytes()
    }

    fn slot_bytes(&self, cache: &MlxCache, slot: usize) -> u64 {
        cache.slot_bytes(slot)
    }

    fn growth_bytes(&self, cache: &MlxCache, slot: usize, n_tokens: usize) -> u64 {
        cache.growth_bytes(slot, n_tokens)
    }

    fn reserve(&self, cache: &mut MlxCache, slot: usize, _n_tokens: usize) -> Result<()> {
        cache.reserve(slot)
    }

    fn fork(&self, cache: &mut MlxCache, from: usize, to: usize, n_tokens: usize) -> Result<()> {
        cache.fork(from, to, n_tokens)
    }

    fn truncate(&self, cache: &mut MlxCache, slot: usize, n_tokens: usize) -> Result<()> {
        cache.truncate(slot, n_tokens)
    }

    fn release(&self, cache: &mut MlxCache, slot: usize) {
        cache.release(slot);
    }

    fn commit(&self, cache: &mut MlxCache, step: &MlxStep) {
        cache.commit(step.spans());
    }

    fn shortest(&self, cache: &MlxCache, slot: usize) -> usize {
        cache.shortest(slot)
    }

    fn rollback(&self, cache: &mut MlxCache, step: &MlxStep) {
        cache.rollback(step.spans());
    }

    fn wait(&self, x: &Array) -> Result<()> {
        x.eval().map_err(f("wait"))
    }

    /// mlx-lm's, where its bits are wanted.
    fn stock_routers(&self) -> Option<&dyn Routers<Self>> {
        match self.numerics {
            Numerics::Exact => Some(self),
            Numerics::Accurate => None,
        }
    }

    fn prefill_style(&self) -> PrefillStyle {
        PrefillStyle::LastTokenAlone { chunk: PREFILL_CHUNK }
    }

    /// Also gives the memory of a chunk's activations back, as mlx-lm does: decoding needs far less.
    fn eval_caches(&self, caches: &[MlxCache]) -> Result<()> {
        let arrays = caches.iter().flat_map(MlxCache::arrays);
        mlx_rs::transforms::eval(arrays)
            .and_then(|()| mlx_rs::memory::clear_cache())
            .map_err(f("eval_caches"))
    }

    fn sample(
        &self,
        logits: &Array,
        rows: &[(usize, SampleSettings<'_, MlxIndices>)],
    ) -> Result<Vec<Option<MlxIndices>>> {
        rows.iter().map(|(row, settings)| sample::sample(logits, *row, settings).map(Some)).collect()
    }

    fn shard(&self) -> Shard {
        self.tensor_group().map_or(Shard::WHOLE, Group::shard)
    }

    fn all_sum(&self, x: Array) -> Result<Array> {
        match self.tensor_group() {
            Some(group) if x.size() > 0 => group.all_sum(&x),
            _ => Ok(x),
        }
    }

    fn gather_columns(&self, x: Array, width: usize, n: usize) -> Result<Array> {
        match self.tensor_group() {
            Some(group) => ranks::gather_columns(group, &x, width, n),
            None => Ok(x),
        }
    }

    fn of_rank_0(&self, indices: MlxIndices, n_values: usize) -> Result<MlxIndices> {
        match self.tensor_group() {
            Some(group) => ranks::of_rank_0(group, &indices, n_values),
            None => Ok(indices),
        }
    }

    fn stage(&self) -> Shard {
        if let Sharing::Pipeline(group) = self.sharing { group.shard() } else { Shard::WHOLE }
    }

    fn send(&self, x: &Array, like: &MlxWeight, to: usize) -> Result<()> {
        let like = like.vector("send", like.n_in())?;
        ranks::send(self.stages("send")?, x, &like, to)
    }

    fn receive(&self, shape: &[usize], like: &MlxWeight, from: usize) -> Result<Array> {
        let like = like.vector("receive", like.n_in())?;
        ranks::receive(self.stages("receive")?, shape, &like, from)
    }

    fn held_experts(
        &self,
        experts: &MlxIndices,
        weights: &Array,
        held: Range<usize>,
    ) -> Result<(MlxIndices, Array)> {
        ranks::held_experts(experts, weights, held)
    }

    /// Of its choices the host finds everything in the logits.
    fn eval_async(&self, logits: Array, chosen: &[&MlxIndices], _needs: HostNeeds) -> Result<Array> {
        let logits = logits.as_dtype(Dtype::Float32).map_err(f("eval_async"))?;
        let chosen = chosen.iter().map(|id| id.array());
        mlx_rs::transforms::async_eval(chosen.chain([&logits])).map_err(f("eval_async"))?;
        Ok(logits)
    }

    fn takes_shared_experts(&self) -> bool {
        self.runtime.launches_metal()
    }

    fn embed(&self, table: &MlxWeight, ids: &MlxIndices) -> Result<Array> {
        products::embed(table, ids, self.numerics)
    }

    fn rms_norm(&self, x: &Array, weight: &MlxWeight, eps: f32) -> Result<Array> {
        const OP: &str = "rms_norm";
        let weight = weight.vector(OP, last_width(x))?;
        if x.size() == 0 {
            return Ok(x.clone());
        }
        raw::rms_norm(OP, x, Some(&weight), eps)
    }

    fn linear(&self, x: &Array, weight: &MlxWeight) -> Result<Array> {
        products::linear(x, weight)
    }

    /// The parts' own products where the whole weight's would be made of them.
    fn linear_parts<const N: usize>(
        &self,
        x: &Array,
        weight: &MlxWeight,
        widths: [usize; N],
    ) -> Result<[Array; N]> {
        match products::of_parts(x, weight, widths)? {
            Some(parts) => Ok(parts),
            None => stock::linear_parts(self, x, weight, widths),
        }
    }

    fn gather_linear(&self, x: &Array, weight: &MlxWeight, experts: &MlxIndices) -> Result<Array> {
        products::gather_linear(x, weight, experts)
    }

    fn gather_add(&self, x: &Array, bank: &MlxWeight, experts: &MlxIndices) -> Result<Array> {
        products::gather_add(x, bank, experts)
    }

    fn head_linear(&self, x: &Array, weight: &MlxWeight) -> Result<Array> {
        products::head_linear(x, weight)
    }

    fn rope(&self, x: &Array, step: &MlxStep, rope: &Rope) -> Result<Array> {
        attention::rope(x, step, rope, self.runtime.gpu())
    }

    fn attention(
        &self,
        inputs: AttentionInputs<'_, Array, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
        settings: &AttentionSettings,
    ) -> Result<Array> {
        attention::heads(inputs, cache, step, settings)
    }

    fn attention_shared(
        &self,
        q: &Array,
        cache: &MlxCache,
        step: &MlxStep,
        settings: &AttentionSettings,
    ) -> Result<Array> {
        attention::shared(q, cache, step, settings)
    }

    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, Array>,
        cache: &mut MlxCache,
        step: &MlxStep,
        scale: f32,
    ) -> Result<Array> {
        attention::latent(inputs, None, cache, step, scale)
    }

    /// As mlx-lm: one token of a sequence in the absorbed form, several with keys and values expanded.
    fn mla_attention(
        &self,
        inputs: MlaInputs<'_, Array>,
        weights: MlaWeights<'_, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
        scale: f32,
    ) -> Result<Array> {
        attention::latent(inputs, Some(weights), cache, step, scale)
    }

    fn causal_conv(
        &self,
        x: &Array,
        weights: ConvWeights<'_, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
        activation: ConvActivation,
    ) -> Result<Array> {
        recurrent::conv(x, weights, cache, step, activation)
    }

    fn gated_delta(
        &self,
        inputs: DeltaInputs<'_, Array>,
        weights: DeltaWeights<'_, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
    ) -> Result<Array> {
        recurrent::delta(inputs, weights, cache, step)
    }

    fn rms_norm_gated(&self, x: &Array, gate: &Array, weight: &MlxWeight, eps: f32) -> Result<Array> {
        recurrent::norm_gated(x, gate, weight, eps)
    }

    fn mul(&self, a: &Array, b: &Array) -> Result<Array> {
        same_shape("mul", "b", a, b)?;
        a.multiply(b).map_err(f("mul"))
    }

    fn mul_sigmoid(&self, x: &Array, gate: &Array) -> Result<Array> {
        rows::mul_sigmoid(x, gate)
    }

    fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        same_shape("add", "b", a, b)?;
        a.add(b).map_err(f("add"))
    }

    fn gated(&self, gate: &Array, up: &Array, activation: Activation) -> Result<Array> {
        same_shape("gated", "up", gate, up)?;
        gated::gated(&self.runtime, gate, up, activation)
    }

    fn soft_cap(&self, x: &Array, cap: f32) -> Result<Array> {
        rows::soft_cap(x, cap)
    }

    fn softmax(&self, x: &Array) -> Result<Array> {
        if x.size() == 0 {
            return Ok(x.clone());
        }
        ops::softmax_axis(x, -1, true).map_err(f("softmax"))
    }

    fn sigmoid(&self, x: &Array) -> Result<Array> {
        ops::sigmoid(x).map_err(f("sigmoid"))
    }

    fn add_vector(&self, x: &Array, vector: &MlxWeight) -> Result<Array> {
        rows::add_vector(x, vector)
    }

    fn keep_top_groups(&self, x: &Array, n_group: usize, topk_group: usize) -> Result<Array> {
        rows::keep_top_groups(x, n_group, topk_group)
    }

    fn top_k(&self, x: &Array, k: usize) -> Result<MlxIndices> {
        rows::top_k(x, k)
    }

    fn take_last(&self, x: &Array, indices: &MlxIndices) -> Result<Array> {
        rows::take_last(x, indices)
    }

    fn mul_taken(&self, x: &Array, vector: &MlxWeight, indices: &MlxIndices) -> Result<Array> {
        rows::mul_taken(x, vector, indices)
    }

    fn div_by_sum(&self, x: &Array, eps: f32) -> Result<Array> {
        rows::div_by_sum(x, eps)
    }

    fn scale(&self, x: &Array, factor: f32) -> Result<Array> {
        x.multiply(scalar(factor, x.dtype())?).map_err(f("scale"))
    }

    fn weighted_sum(&self, x: &Array, weights: &Array) -> Result<Array> {
        rows::weighted_sum(x, weights)
    }

    fn reshape(&self, x: &Array, shape: &[usize]) -> Result<Array> {
        check_shape("reshape", shape, x.size())?;
        x.reshape(&shape_i32(shape)).map_err(f("reshape"))
    }

    fn slice_last(&self, x: &Array, range: Range<usize>) -> Result<Array> {
        const OP: &str = "slice_last";
        let width = last_width(x);
        let fits = !range.is_empty() && range.end <= width;
        ensure(fits, OP, "range", format_args!("within 0..{width}"), &range)?;
        router::columns(OP, x, range.start, range.end)
    }

    fn take_logit_rows(&self, x: &Array, step: &MlxStep) -> Result<Array> {
        step.take_logit_rows(x)
    }

    fn gather_qmm_swiglu(
        &self,
        x: &Array,
        weights: GateUp<'_, MlxWeight>,
        experts: &MlxIndices,
    ) -> Result<Array> {
        let shape = |w: &MlxWeight| [w.n_mats(), w.n_out(), w.n_in()];
        let (gate, up) = (shape(weights.gate), shape(weights.up));
        ensure(gate == up, "gather_qmm_swiglu", "up", format_args!("{gate:?}"), up)?;
        experts.check("gather_qmm_swiglu", "expert", weights.gate.n_mats())?;
        let fits = dims(x).len() == 2
            && dims(experts.array()).len() == 2
            && dims(x) == [dims(experts.array())[0], weights.gate.n_in()];
        // The kernel knows SwiGLU without biases; other activations are composed.
        let fits = fits && weights.is_plain();
        match fits.then(|| self.fused_gather_qmm_swiglu(x, weights, experts)).transpose()?.flatten() {
            Some(y) => Ok(y),
            None => stock::gather_qmm_swiglu(self, x, weights, experts),
        }
    }

    fn gather_qmm_combine(
        &self,
        x: &Array,
        down: Down<'_, MlxWeight>,
        experts: &MlxIndices,
        weights: &Array,
    ) -> Result<Array> {
        const OP: &str = "gather_qmm_combine";
        let (n_mats, n_in) = (down.weight.n_mats(), down.weight.n_in());
        experts.check(OP, "expert", n_mats)?;
        let slots = dims(experts.array());
        let fits = slots.len() == 2
            && dims(x) == [slots[0], slots[1], n_in]
            && dims(weights) == [slots[0], slots[1]];
        ensure(fits, OP, "x", format_args!("[n, top_k, {n_in}] for experts {slots:?}"), dims(x))?;
        // The kernel knows no biases.
        let fused = match down.bias {
            None => self.fused_gather_qmm_combine(x, down.weight, experts, weights)?,
            Some(_) => None,
        };
        match fused {
            Some(y) => Ok(y),
            None => stock::gather_qmm_combine(self, x, down, experts, weights),
        }
    }

    fn qmm_swiglu(&self, x: &Array, weights: GateUp<'_, MlxWeight>) -> Result<Array> {
        const OP: &str = "qmm_swiglu";
        let shape = |w: &MlxWeight| [w.n_mats(), w.n_out(), w.n_in()];
        let (gate, up) = (shape(weights.gate), shape(weights.up));
        ensure(gate == up, OP, "up", format_args!("{gate:?}"), up)?;
        ensure(gate[0] == 1, OP, "gate", "one matrix", gate)?;
        ensure(last_width(x) == gate[2], OP, "x", format_args!("[.., {}]", gate[2]), dims(x))?;
        match weights.is_plain().then(|| self.fused_qmm_swiglu(x, weights)).transpose()?.flatten() {
            Some(y) => Ok(y),
            None => stock::qmm_swiglu(self, x, weights),
        }
    }

    fn gather_qmm_swiglu_shared(
        &self,
        x: &Array,
        weights: GateUp<'_, MlxWeight>,
        shared: GateUp<'_, MlxWeight>,
        experts: &MlxIndices,
    ) -> Result<(Array, Array)> {
        experts.check("gather_qmm_swiglu", "expert", weights.gate.n_mats())?;
        let is_plain = weights.is_plain() && shared.is_plain();
        let fused = is_plain.then(|| self.fused_gather_qmm_swiglu_shared(x, [weights, shared], experts));
        match fused.transpose()?.flatten() {
            Some([y, of_shared]) => Ok((y, of_shared)),
            None => stock::gather_qmm_swiglu_shared(self, x, weights, shared, experts),
        }
    }

    fn gather_qmm_combine_shared(
        &self,
        x: [&Array; 2],
        down: Down<'_, MlxWeight>,
        shared: &MlxWeight,
        experts: &MlxIndices,
        weights: &Array,
    ) -> Result<Array> {
        experts.check("gather_qmm_combine", "expert", down.weight.n_mats())?;
        let fused = match down.bias {
            None => self.fused_gather_qmm_combine_shared(x, [down.weight, shared], experts, weights)?,
            Some(_) => None,
        };
        match fused {
            Some(y) => Ok(y),
            None => stock::gather_qmm_combine_shared(self, x, down, shared, experts, weights),
        }
    }

    fn add_rms_norm(
        &self,
        x: &Array,
        residual: &Array,
        weight: &MlxWeight,
        eps: f32,
    ) -> Result<(Array, Array)> {
        const OP: &str = "add_rms_norm";
        same_shape(OP, "residual", x, residual)?;
        let vector = weight.vector(OP, last_width(x))?;
        match self.fused_add_rms_norm([x, residual, &vector], eps)? {
            Some([sum, normed]) => Ok((sum, normed)),
            None => stock::add_rms_norm(self, x, residual, weight, eps),
        }
    }

    fn norm_rope(
        &self,
        inputs: NormRope<'_, Array, MlxWeight>,
        step: &MlxStep,
        rope: &Rope,
    ) -> Result<(Array, Array)> {
        match self.fused_norm_rope(&inputs, step, rope)? {
            Some([q, k]) => Ok((q, k)),
            None => stock::norm_rope(self, inputs, step, rope),
        }
    }

    fn norm_rope_mla(
        &self,
        inputs: NormRopeMla<'_, Array, MlxWeight>,
        weights: MlaWeights<'_, MlxWeight>,
        cache: &mut MlxCache,
        step: &MlxStep,
        rope: &Rope,
    ) -> Result<Array> {
        match self.fused_norm_rope_mla(&inputs, &weights, cache, step, rope)? {
            Some(y) => Ok(y),
            None => stock::norm_rope_mla(self, inputs, weights, cache, step, rope),
        }
    }

    fn route_softmax_top_k(&self, logits: &Array, settings: &SoftmaxTopK) -> Result<(MlxIndices, Array)> {
        match self.fused_route_softmax_top_k(logits, settings)? {
            Some(routing) => Ok(routing),
            None => stock::route_softmax_top_k(self, logits, settings),
        }
    }

    fn route_noaux_tc(
        &self,
        logits: &Array,
        bias: &MlxWeight,
        settings: &NoauxTc,
    ) -> Result<(MlxIndices, Array)> {
        match self.fused_route_noaux_tc(logits, bias, settings)? {
            Some(routing) => Ok(routing),
            None => stock::route_noaux_tc(self, logits, bias, settings),
        }
    }
}

/// mlx-lm's choice, in the order in which MLX's partition leaves it.
impl Routers<Self> for MlxBackend {
    fn softmax_top_k(&self, logits: &Array, settings: &SoftmaxTopK) -> Result<(MlxIndices, Array)> {
        match check_route("route_softmax_top_k", logits, settings.top_k)? {
            Some(nothing) => Ok(nothing),
            None => router::softmax_top_k(logits, settings),
        }
    }

    fn noaux_tc(&self, logits: &Array, bias: &MlxWeight, settings: &NoauxTc) -> Result<(MlxIndices, Array)> {
        const OP: &str = "route_noaux_tc";
        let nothing = check_route(OP, logits, settings.top_k)?;
        let width = last_width(logits);
        if settings.n_group > 1 {
            check_groups(OP, width, settings.n_group, settings.topk_group)?;
        }
        let vector = bias.vector(OP, width)?;
        match nothing {
            Some(nothing) => Ok(nothing),
            None => router::noaux_tc(&self.runtime, logits, &vector, settings),
        }
    }
}

impl Instrumented for MlxBackend {
    fn kernel_runs(&self, op: &str) -> Option<u64> {
        Some(raw::n_launches(op))
    }

    fn barriers(&self) -> Option<Barriers> {
        None
    }

    /// What MLX's allocator has counted.
    fn peak_memory_bytes(&self) -> Option<u64> {
        mlx_rs::memory::peak_memory().ok().and_then(|n| u64::try_from(n).ok())
    }
}

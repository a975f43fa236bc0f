//! A backend whose every op passes through hooks: to count them, to time them, or to get one wrong on purpose.

use std::ops::Range;

use crate::{
    AttentionInputs, AttentionSettings, Backend, Barriers, CacheSpec, GateUp, HostWeight, MlaInputs,
    MlaWeights, NoauxTc, PrefillStyle, Result, Rope, SampleSettings, SoftmaxTopK, Span, StepKey, stock,
};

/// What happens around and instead of the ops of a backend.
pub trait Hooks<B: Backend> {
    /// Runs an op. `op` is the name of its method in [`Backend`].
    ///
    /// # Errors
    /// Those of the op.
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R>;

    /// Whether each op is waited for ([`Backend::wait`]) before [`Hooks::around`] regains control: to time it.
    fn waits(&self) -> bool {
        false
    }

    /// Whether [`Backend::mla_attention`] and the unfused routers pass as the plain ops of their default bodies, even
    /// where a backend has a composition of its own: to count them.
    fn takes_apart(&self) -> bool {
        false
    }

    /// What [`Backend::upload`] does.
    ///
    /// # Errors
    /// Those of the method.
    fn upload(&self, backend: &B, weight: HostWeight) -> Result<B::Weight> {
        backend.upload(weight)
    }

    /// What [`Backend::gather_qmm_swiglu`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn gather_qmm_swiglu(
        &self,
        backend: &B,
        x: &B::Tensor,
        weights: GateUp<'_, B::Weight>,
        experts: &B::Indices,
    ) -> Result<B::Tensor> {
        backend.gather_qmm_swiglu(x, weights, experts)
    }

    /// What [`Backend::gather_qmm_combine`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn gather_qmm_combine(
        &self,
        backend: &B,
        x: &B::Tensor,
        down: &B::Weight,
        experts: &B::Indices,
        weights: &B::Tensor,
    ) -> Result<B::Tensor> {
        backend.gather_qmm_combine(x, down, experts, weights)
    }

    /// What [`Backend::qmm_swiglu`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn qmm_swiglu(&self, backend: &B, x: &B::Tensor, weights: GateUp<'_, B::Weight>) -> Result<B::Tensor> {
        backend.qmm_swiglu(x, weights)
    }

    /// What [`Backend::add_rms_norm`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn add_rms_norm(
        &self,
        backend: &B,
        x: &B::Tensor,
        residual: &B::Tensor,
        weight: &B::Weight,
        eps: f32,
    ) -> Result<(B::Tensor, B::Tensor)> {
        backend.add_rms_norm(x, residual, weight, eps)
    }

    /// What [`Backend::route_softmax_top_k`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn route_softmax_top_k(
        &self,
        backend: &B,
        logits: &B::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(B::Indices, B::Tensor)> {
        backend.route_softmax_top_k(logits, settings)
    }

    /// What [`Backend::route_noaux_tc`] does.
    ///
    /// # Errors
    /// Those of the op.
    fn route_noaux_tc(
        &self,
        backend: &B,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)> {
        backend.route_noaux_tc(logits, bias, settings)
    }
}

/// A backend with hooks: apart from what they do, the backend itself.
#[derive(Clone, Debug)]
pub struct Hooked<B, H> {
    inner: B,
    hooks: H,
}

impl<B: Backend, H: Hooks<B>> Hooked<B, H> {
    /// Puts hooks into a backend.
    pub fn new(inner: B, hooks: H) -> Self {
        Self { inner, hooks }
    }

    /// The hooks.
    pub fn hooks(&self) -> &H {
        &self.hooks
    }

    /// The backend without hooks.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Runs an op; `tensor` is the part of its result to wait for.
    fn run<R>(
        &self,
        op: &'static str,
        run: impl FnOnce() -> Result<R>,
        tensor: impl FnOnce(&R) -> &B::Tensor,
    ) -> Result<R> {
        self.hooks.around(op, || {
            let result = run()?;
            if self.hooks.waits() {
                self.inner.wait(tensor(&result))?;
            }
            Ok(result)
        })
    }
}

/// Ops that end in a tensor, passed to the backend.
macro_rules! tensor_ops {
    ($($op:ident($($arg:ident: $type:ty),*);)*) => {$(
        fn $op(&self, $($arg: $type),*) -> Result<B::Tensor> {
            self.run(stringify!($op), || self.inner.$op($($arg),*), |y| y)
        }
    )*};
}

/// Methods that are no work of the device's, or are timed with what follows.
macro_rules! passed_on {
    ($($method:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {$(
        fn $method(&self, $($arg: $type),*) -> $out {
            self.inner.$method($($arg),*)
        }
    )*};
}

impl<B: Backend, H: Hooks<B>> Backend for Hooked<B, H> {
    type Tensor = B::Tensor;
    type Indices = B::Indices;
    type Weight = B::Weight;
    type Cache = B::Cache;
    type Step = B::Step;

    passed_on! {
        name() -> &'static str;
        concat_rows(parts: &[&B::Weight]) -> Result<B::Weight>;
        tensor(values: &[f32], shape: &[usize]) -> Result<B::Tensor>;
        shape(x: &B::Tensor) -> Vec<usize>;
        indices(values: &[u32], shape: &[usize]) -> Result<B::Indices>;
        step(spans: &[Span]) -> Result<B::Step>;
        n_tokens(step: &B::Step) -> usize;
        cache(spec: &CacheSpec) -> Result<B::Cache>;
        cache_bytes(spec: &CacheSpec, n_tokens: usize) -> u64;
        resident_bytes(cache: &B::Cache) -> u64;
        slot_bytes(cache: &B::Cache, slot: usize) -> u64;
        growth_bytes(cache: &B::Cache, slot: usize, n_tokens: usize) -> u64;
        reserve(cache: &mut B::Cache, slot: usize, n_tokens: usize) -> Result<()>;
        fork(cache: &mut B::Cache, from: usize, to: usize, n_tokens: usize) -> Result<()>;
        truncate(cache: &mut B::Cache, slot: usize, n_tokens: usize) -> Result<()>;
        release(cache: &mut B::Cache, slot: usize) -> ();
        shortest(cache: &B::Cache, slot: usize) -> usize;
        commit(cache: &mut B::Cache, step: &B::Step) -> ();
        rollback(cache: &mut B::Cache, step: &B::Step) -> ();
        wait(x: &B::Tensor) -> Result<()>;
        kernel_runs(op: &str) -> Option<u64>;
        barriers() -> Option<Barriers>;
        prefill_style() -> PrefillStyle;
        eval_caches(caches: &[B::Cache]) -> Result<()>;
        sample(
            logits: &B::Tensor,
            row: usize,
            settings: &SampleSettings<'_, B::Indices>
        ) -> Result<Option<B::Indices>>;
        eval_async(logits: B::Tensor, chosen: &B::Indices) -> Result<B::Tensor>;
        reshape(x: &B::Tensor, shape: &[usize]) -> Result<B::Tensor>;
        slice_last(x: &B::Tensor, range: Range<usize>) -> Result<B::Tensor>;
    }

    tensor_ops! {
        embed(table: &B::Weight, ids: &B::Indices);
        rms_norm(x: &B::Tensor, weight: &B::Weight, eps: f32);
        linear(x: &B::Tensor, weight: &B::Weight);
        gather_linear(x: &B::Tensor, weight: &B::Weight, experts: &B::Indices);
        head_linear(x: &B::Tensor, weight: &B::Weight);
        rope(x: &B::Tensor, step: &B::Step, rope: &Rope);
        attention(
            inputs: AttentionInputs<'_, B::Tensor, B::Weight>,
            cache: &mut B::Cache,
            step: &B::Step,
            settings: &AttentionSettings
        );
        latent_attention(
            inputs: MlaInputs<'_, B::Tensor>,
            cache: &mut B::Cache,
            step: &B::Step,
            scale: f32
        );
        add(a: &B::Tensor, b: &B::Tensor);
        swiglu(gate: &B::Tensor, up: &B::Tensor);
        softmax(x: &B::Tensor);
        sigmoid(x: &B::Tensor);
        add_vector(x: &B::Tensor, vector: &B::Weight);
        keep_top_groups(x: &B::Tensor, n_group: usize, topk_group: usize);
        take_last(x: &B::Tensor, indices: &B::Indices);
        div_by_sum(x: &B::Tensor, eps: f32);
        scale(x: &B::Tensor, factor: f32);
        weighted_sum(x: &B::Tensor, weights: &B::Tensor);
        take_logit_rows(x: &B::Tensor, step: &B::Step);
    }

    fn upload(&self, weight: HostWeight) -> Result<B::Weight> {
        self.hooks.upload(&self.inner, weight)
    }

    /// With hooks that time or count ops all of them run.
    fn run_step(
        &self,
        key: &StepKey,
        step: &B::Step,
        ids: &B::Indices,
        body: &mut dyn FnMut(&B::Indices) -> Result<B::Tensor>,
    ) -> Result<B::Tensor> {
        if self.hooks.waits() || self.hooks.takes_apart() {
            return body(ids);
        }
        self.inner.run_step(key, step, ids, body)
    }

    // Reading waits by itself.

    fn read(&self, x: &B::Tensor, out: &mut Vec<f32>) -> Result<()> {
        self.hooks.around("read", || self.inner.read(x, out))
    }

    fn read_indices(&self, indices: &B::Indices, out: &mut Vec<u32>) -> Result<()> {
        self.hooks.around("read_indices", || self.inner.read_indices(indices, out))
    }

    fn top_k(&self, x: &B::Tensor, k: usize) -> Result<B::Indices> {
        self.hooks.around("top_k", || self.inner.top_k(x, k))
    }

    fn mla_attention(
        &self,
        inputs: MlaInputs<'_, B::Tensor>,
        weights: MlaWeights<'_, B::Weight>,
        cache: &mut B::Cache,
        step: &B::Step,
        scale: f32,
    ) -> Result<B::Tensor> {
        if self.hooks.takes_apart() {
            return stock::mla_attention(self, inputs, weights, cache, step, scale);
        }
        let run = || self.inner.mla_attention(inputs, weights, cache, step, scale);
        self.run("mla_attention", run, |y| y)
    }

    fn stock_route_softmax_top_k(
        &self,
        logits: &B::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(B::Indices, B::Tensor)> {
        if self.hooks.takes_apart() {
            return stock::route_softmax_top_k(self, logits, settings);
        }
        let run = || self.inner.stock_route_softmax_top_k(logits, settings);
        self.run("stock_route_softmax_top_k", run, |(_, weights)| weights)
    }

    fn stock_route_noaux_tc(
        &self,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)> {
        if self.hooks.takes_apart() {
            return stock::route_noaux_tc(self, logits, bias, settings);
        }
        let run = || self.inner.stock_route_noaux_tc(logits, bias, settings);
        self.run("stock_route_noaux_tc", run, |(_, weights)| weights)
    }

    fn gather_qmm_swiglu(
        &self,
        x: &B::Tensor,
        weights: GateUp<'_, B::Weight>,
        experts: &B::Indices,
    ) -> Result<B::Tensor> {
        let run = || self.hooks.gather_qmm_swiglu(&self.inner, x, weights, experts);
        self.run("gather_qmm_swiglu", run, |y| y)
    }

    fn gather_qmm_combine(
        &self,
        x: &B::Tensor,
        down: &B::Weight,
        experts: &B::Indices,
        weights: &B::Tensor,
    ) -> Result<B::Tensor> {
        let run = || self.hooks.gather_qmm_combine(&self.inner, x, down, experts, weights);
        self.run("gather_qmm_combine", run, |y| y)
    }

    fn qmm_swiglu(&self, x: &B::Tensor, weights: GateUp<'_, B::Weight>) -> Result<B::Tensor> {
        self.run("qmm_swiglu", || self.hooks.qmm_swiglu(&self.inner, x, weights), |y| y)
    }

    fn add_rms_norm(
        &self,
        x: &B::Tensor,
        residual: &B::Tensor,
        weight: &B::Weight,
        eps: f32,
    ) -> Result<(B::Tensor, B::Tensor)> {
        let run = || self.hooks.add_rms_norm(&self.inner, x, residual, weight, eps);
        self.run("add_rms_norm", run, |(_, normed)| normed)
    }

    fn route_softmax_top_k(
        &self,
        logits: &B::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(B::Indices, B::Tensor)> {
        let run = || self.hooks.route_softmax_top_k(&self.inner, logits, settings);
        self.run("route_softmax_top_k", run, |(_, weights)| weights)
    }

    fn route_noaux_tc(
        &self,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)> {
        let run = || self.hooks.route_noaux_tc(&self.inner, logits, bias, settings);
        self.run("route_noaux_tc", run, |(_, weights)| weights)
    }
}

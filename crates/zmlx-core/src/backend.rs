//! The [`Backend`] trait: every op of a decoder, plain and fused.

mod cache;
mod step;
mod types;

pub use cache::{AttentionInputs, AttentionSettings, CacheKind, CacheSpec, KvFormat};
pub use step::{Logits, MAX_POSITIONS, MAX_SLOTS, Span, StepKey, check_spans, logit_rows};
pub use types::{
    Barriers, GateUp, MlaInputs, MlaWeights, NoauxTc, PrefillStyle, Renormalize, Repetition, Rope,
    RopeFrequencies, RopePairing, SampleSettings, SoftmaxTopK,
};

use crate::{HostWeight, Result, stock};

/// A device, its memory, and the ops on it.
///
/// Ops are functional: they return new tensors and never change their inputs (but for what caches hold behind their
/// sequences). Shapes are
/// checked before anything is written. `n` stands for the number of tokens of the batch, row-major.
///
/// A fused op has a default body: its composition of plain ops. A backend overrides it with one kernel; the
/// conformance suite holds both to the same oracle. Unless a backend says otherwise, activations are f32, every
/// product accumulates in f32 and rounds once (the *accurate* mode of the crate docs).
pub trait Backend {
    /// Activations: a row-major array on the device. Cloning is cheap.
    type Tensor: Clone;
    /// Token ids and expert indices: an array of u32 on the device. Cloning is cheap.
    type Indices: Clone;
    /// A dense or quantised matrix or bank of matrices in the backend's own layout. Cloning is cheap.
    type Weight: Clone;
    /// What one layer keeps of all sequences, each in a slot.
    type Cache;
    /// A step's tokens, positions, slots and wanted logits in the backend's own form.
    type Step;

    /// The name that the command line and the errors use.
    fn name(&self) -> &'static str;

    // ---- between host and device

    /// Takes a weight over. Backends that compute on the CPU use its bytes in place.
    ///
    /// # Errors
    /// If the backend does not support the format.
    fn upload(&self, weight: HostWeight) -> Result<Self::Weight>;

    /// The weight whose rows are those of all `parts` in order (within each matrix of a bank): one product instead
    /// of several. Formats may differ; widths and bank sizes may not.
    ///
    /// # Errors
    /// If `n_in` or the number of matrices differ, or `parts` is empty.
    fn concat_rows(&self, parts: &[&Self::Weight]) -> Result<Self::Weight>;

    /// A tensor with these values.
    ///
    /// # Errors
    /// If the number of values does not fit the shape, or the shape has no or more than four dimensions.
    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Self::Tensor>;

    /// Replaces `out` by the values of `x`, waiting for them where the device is lazy.
    ///
    /// # Errors
    /// A device fault.
    fn read(&self, x: &Self::Tensor, out: &mut Vec<f32>) -> Result<()>;

    /// The dimensions of `x`.
    fn shape(&self, x: &Self::Tensor) -> Vec<usize>;

    /// Indices with these values: token ids `[n]`, or expert choices `[n, top_k]`.
    ///
    /// # Errors
    /// If the number of values does not fit the shape.
    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<Self::Indices>;

    /// Replaces `out` by the indices.
    ///
    /// # Errors
    /// A device fault.
    fn read_indices(&self, indices: &Self::Indices, out: &mut Vec<u32>) -> Result<()>;

    // ---- steps and caches

    /// Prepares a step: checks its spans once, and puts what the ops need of them where the device can read it. Ops see
    /// the step only: nothing that changes from token to token reaches them as a number of the host.
    ///
    /// # Errors
    /// As [`check_spans`](crate::check::check_spans).
    fn step(&self, spans: &[Span]) -> Result<Self::Step>;

    /// Number of tokens of a step: the rows of its tensors.
    fn n_tokens(&self, step: &Self::Step) -> usize;

    /// Runs the ops of a step: `body` takes the token ids to logits. A backend may keep what the body does as a program of
    /// its own, and run that for later steps of the same key and shape instead of the body; caches have been
    /// [reserved](Backend::reserve) before. The default body calls `body`.
    ///
    /// # Errors
    /// Those of the ops.
    fn run_step(
        &self,
        _key: &StepKey,
        _step: &Self::Step,
        ids: &Self::Indices,
        body: &mut dyn FnMut(&Self::Indices) -> Result<Self::Tensor>,
    ) -> Result<Self::Tensor> {
        body(ids)
    }

    /// An empty cache for one layer. Its slots are all empty; any number below [`MAX_SLOTS`] may be used.
    ///
    /// # Errors
    /// If a dimension is zero; [`Error::Unsupported`](crate::Error::Unsupported) for kinds and formats that the backend
    /// does not have.
    fn cache(&self, spec: &CacheSpec) -> Result<Self::Cache>;

    /// Bytes that one sequence of `n_tokens` tokens takes in a cache of that kind, if it shares none of them.
    fn cache_bytes(&self, spec: &CacheSpec, n_tokens: usize) -> u64;

    /// Bytes that the sequences of a cache take; what several share counts once.
    fn resident_bytes(&self, cache: &Self::Cache) -> u64;

    /// Bytes that one sequence takes, shared ones included.
    fn slot_bytes(&self, cache: &Self::Cache, slot: usize) -> u64;

    /// Bytes by which [`Backend::resident_bytes`] may grow when the sequence grows to `n_tokens` tokens: never less than
    /// it does, and more only where sequences that share a part are extended in one step.
    fn growth_bytes(&self, cache: &Self::Cache, slot: usize, n_tokens: usize) -> u64;

    /// Gets the memory for the sequence in `slot` to grow to `n_tokens` tokens: the next step up to there needs no more.
    ///
    /// # Errors
    /// If the slot is not below [`MAX_SLOTS`]; a device that is out of memory.
    fn reserve(&self, cache: &mut Self::Cache, slot: usize, n_tokens: usize) -> Result<()>;

    /// Makes the sequence in `to` the first `n_tokens` tokens of that in `from`, without copying them; what `to` held is
    /// released. Later each of the two grows for itself. With all tokens of `from` this is a snapshot, which every kind of
    /// cache allows.
    ///
    /// # Errors
    /// If `from` holds fewer tokens, or no longer what so short a sequence needs; if the slots are equal. Nothing has
    /// changed then.
    fn fork(&self, cache: &mut Self::Cache, from: usize, to: usize, n_tokens: usize) -> Result<()>;

    /// Shortens the sequence in `slot` to its first `n_tokens` tokens and frees what only the others needed.
    ///
    /// # Errors
    /// If it holds fewer tokens, or no longer what so short a sequence needs. Nothing has changed then.
    fn truncate(&self, cache: &mut Self::Cache, slot: usize, n_tokens: usize) -> Result<()>;

    /// Empties a slot and frees what no other sequence shares.
    fn release(&self, cache: &mut Self::Cache, slot: usize);

    /// The fewest tokens, apart from none, that the sequence in `slot` can be shortened or forked to; 0 where any length can
    /// be had.
    fn shortest(&self, _cache: &Self::Cache, _slot: usize) -> usize {
        0
    }

    /// Ends a step whose ops have all succeeded: its tokens now belong to their sequences. Until then the caches' lengths
    /// are as before, and so are their contents up to there.
    fn commit(&self, cache: &mut Self::Cache, step: &Self::Step);

    /// Ends a step that failed: the sequences are as before. Ops of the step need not have run on this cache.
    fn rollback(&self, cache: &mut Self::Cache, step: &Self::Step);

    // ---- the order of steps: default bodies for backends that compute at once

    /// Waits until `x` is computed.
    ///
    /// # Errors
    /// A device fault.
    fn wait(&self, _x: &Self::Tensor) -> Result<()> {
        Ok(())
    }

    /// How often the fused op `op` (the name of its method) has run as a kernel of its own on this thread; none where every
    /// call is such a run. Other calls are compositions of plain ops.
    fn kernel_runs(&self, _op: &str) -> Option<u64> {
        None
    }

    /// What the threads that compute have waited for each other since the backend was made; none where nobody counts.
    fn barriers(&self) -> Option<Barriers> {
        None
    }

    /// How prompts are cut.
    fn prefill_style(&self) -> PrefillStyle {
        PrefillStyle::Whole
    }

    /// Computes what the caches hold, so that a lazy device does not gather the work of a whole prompt.
    ///
    /// # Errors
    /// A device fault.
    fn eval_caches(&self, _caches: &[Self::Cache]) -> Result<()> {
        Ok(())
    }

    /// Chooses the next token of one sequence from row `row` of the logits, still on the device: the next step can be built on it before it is
    /// computed. `None` where ops compute at once, as there is nothing to overlap.
    ///
    /// **Formula** repetition penalty; `p = softmax(logits)`; of the ranking by p the tokens with less than `top_p` above
    /// them, the first `top_k`, and those with at least `min_p` times the largest p; one of them by chance, each with
    /// weight `p^(1 / temperature)`. At temperature 0 the most probable one. **Shapes** logits `[n, vocab]` → `[1]`.
    /// **Numerics** f32; of equal logits the lowest index ranks first; a backend that follows a stock engine may take the
    /// most probable token from that engine's rounded log-probabilities. Equal settings and logits give equal tokens.
    /// **Source** mlx-lm `sample_utils`.
    ///
    /// # Errors
    /// If the logits are no matrix or lack the row, or a recent token has no logit.
    fn sample(
        &self,
        _logits: &Self::Tensor,
        _row: usize,
        _settings: &SampleSettings<'_, Self::Indices>,
    ) -> Result<Option<Self::Indices>> {
        Ok(None)
    }

    /// Starts to compute a step's results without waiting for them, and returns its logits in the form that
    /// [`Backend::read`] only copies: read after the next step has been started, they do not wait for that one.
    ///
    /// # Errors
    /// A device fault.
    fn eval_async(&self, logits: Self::Tensor, _chosen: &Self::Indices) -> Result<Self::Tensor> {
        Ok(logits)
    }

    // ---- plain ops

    /// Rows of the table: `y[t] = table[ids[t]]`, dequantised.
    ///
    /// **Shapes** ids `[n]`, table `[vocab, hidden]` → `[n, hidden]`. **Numerics** one rounding of `scale·q + bias`.
    /// **Work** n rows read. **Source** `mlx.nn.QuantizedEmbedding`.
    ///
    /// # Errors
    /// If an id is not below `vocab`.
    fn embed(&self, table: &Self::Weight, ids: &Self::Indices) -> Result<Self::Tensor>;

    /// `y = x / sqrt(mean(x²) + eps) · weight` over the last dimension.
    ///
    /// **Shapes** x `[.., d]`, weight `1 × [1, d]` → as x. **Numerics** the mean accumulates in f32.
    /// **Work** 8 bytes and 4 FLOPs per value. **Source** `mx.fast.rms_norm`.
    ///
    /// # Errors
    /// If the widths differ.
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Weight, eps: f32) -> Result<Self::Tensor>;

    /// `y = x · Wᵀ`.
    ///
    /// **Shapes** x `[.., n_in]`, W `1 × [n_out, n_in]` → `[.., n_out]`. **Dtypes** any weight format.
    /// **Numerics** f32 products and sums; scale and bias applied per group in f32.
    /// **Work** the weight's bytes once per call, 2·n·n_out·n_in FLOPs. **Source** `mx.quantized_matmul(transpose=True)`.
    ///
    /// # Errors
    /// If the widths differ or W is a bank.
    fn linear(&self, x: &Self::Tensor, weight: &Self::Weight) -> Result<Self::Tensor>;

    /// Each token's chosen experts: `y[t, s] = x[t] · W[experts[t, s]]ᵀ`, or from `x[t, s]` if x has a row per slot.
    ///
    /// **Shapes** x `[n, n_in]` or `[n, top_k, n_in]`, W `n_experts × [n_out, n_in]`, experts `[n, top_k]` →
    /// `[n, top_k, n_out]`. **Numerics** as [`Backend::linear`]. **Work** each expert that occurs is read once per
    /// call, however many tokens chose it; 2·n·top_k·n_out·n_in FLOPs. **Source** `mx.gather_qmm(transpose=True)`.
    ///
    /// # Errors
    /// If shapes do not fit or an index is not below `n_experts`.
    fn gather_linear(
        &self,
        x: &Self::Tensor,
        weight: &Self::Weight,
        experts: &Self::Indices,
    ) -> Result<Self::Tensor>;

    /// One matrix per head: `y[t, h] = x[t, h] · W[h]ᵀ`.
    ///
    /// **Shapes** x `[n, n_heads, n_in]`, W `n_heads × [n_out, n_in]` → `[n, n_heads, n_out]`. **Numerics** and
    /// **Work** as [`Backend::linear`]. **Source** mlx-lm `QuantizedMultiLinear`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn head_linear(&self, x: &Self::Tensor, weight: &Self::Weight) -> Result<Self::Tensor>;

    /// Rotates the first `rope.dims` dimensions of every head by its token's position, and multiplies them by
    /// `rope.scale`.
    ///
    /// **Shapes** x `[n, n_heads, d]`, n the step's tokens. **Numerics** angles in f32, sine and
    /// cosine as the platform's; absolute error grows with the position as f32 angles do. **Source** `mx.fast.rope`.
    ///
    /// # Errors
    /// If `rope.dims` is odd or above d, there are not `dims / 2` frequencies, or x has another number of tokens.
    fn rope(&self, x: &Self::Tensor, step: &Self::Step, rope: &Rope) -> Result<Self::Tensor>;

    /// Writes the new keys and values behind those in the cache and attends causally:
    /// `y[t, h] = Σ_j w[j]·v[j, h']`, `w = softmax_j(scale · q[t, h]·k[j, h'])` over the cached positions j ≤ the token's
    /// own, with a window w those of the last w, `h' = h / (n_heads / n_kv_heads)`. With sinks, `exp(sinks[h])` is added
    /// to the softmax's sum.
    ///
    /// **Shapes** as [`AttentionInputs`] → `[n, n_heads, d]`. **Numerics** f32 scores,
    /// softmax with the maximum subtracted. **Work** the cache read once per span and kv head; 4·n_heads·d FLOPs per
    /// pair of positions. **Source** `mx.fast.scaled_dot_product_attention`.
    ///
    /// # Errors
    /// If shapes, the cache's kind or the window do not fit, or a span does not start at its slot's length. The cache is
    /// then unchanged.
    fn attention(
        &self,
        inputs: AttentionInputs<'_, Self::Tensor, Self::Weight>,
        cache: &mut Self::Cache,
        step: &Self::Step,
        settings: &AttentionSettings,
    ) -> Result<Self::Tensor>;

    /// Attention on latents: writes `kv` and `k_pe` behind those in the cache, then
    /// `y[t, h] = softmax_j(scale · (q_nope[t, h]·kv[j] + q_pe[t, h]·k_pe[j]))·kv[j]`, causal.
    ///
    /// **Shapes** as [`MlaInputs`], q_nope in latent space → `[n, n_heads, rank]`. **Numerics** as
    /// [`Backend::attention`]. **Work** `rank + rope_dim` values read once per position for all heads. **Source**
    /// mlx-lm `glm4_moe_lite`, absorbed form.
    ///
    /// # Errors
    /// As [`Backend::attention`].
    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, Self::Tensor>,
        cache: &mut Self::Cache,
        step: &Self::Step,
        scale: f32,
    ) -> Result<Self::Tensor>;

    /// `a + b`, equal shapes.
    ///
    /// # Errors
    /// If the shapes differ.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// `silu(gate) · up` with `silu(v) = v / (1 + exp(-v))`, equal shapes. **Source** mlx-lm `swiglu`.
    ///
    /// # Errors
    /// If the shapes differ.
    fn swiglu(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;

    /// Softmax over the last dimension, the maximum subtracted first.
    ///
    /// # Errors
    /// A device fault.
    fn softmax(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// `1 / (1 + exp(-x))`.
    ///
    /// # Errors
    /// A device fault.
    fn sigmoid(&self, x: &Self::Tensor) -> Result<Self::Tensor>;

    /// `x + vector` over the last dimension. **Shapes** x `[.., d]`, vector `1 × [1, d]`.
    ///
    /// # Errors
    /// If the widths differ.
    fn add_vector(&self, x: &Self::Tensor, vector: &Self::Weight) -> Result<Self::Tensor>;

    /// Sets every score outside the best groups to 0: the experts are split into `n_group` equal groups, a group's
    /// score is the sum of its two best, the `topk_group` best groups stay (of equal ones the first).
    ///
    /// **Shapes** x `[n, n_experts]` → as x.
    ///
    /// # Errors
    /// If `n_group` does not divide the width into groups of two or more, or `topk_group` is 0 or above `n_group`.
    fn keep_top_groups(&self, x: &Self::Tensor, n_group: usize, topk_group: usize) -> Result<Self::Tensor>;

    /// Indices of the `k` largest of each row, in the backend's order; of equal values the lower index is chosen. NaN
    /// counts as smallest. **Shapes** x `[n, d]` → `[n, k]`.
    ///
    /// # Errors
    /// If k is 0 or above d.
    fn top_k(&self, x: &Self::Tensor, k: usize) -> Result<Self::Indices>;

    /// `y[t, s] = x[t, indices[t, s]]`. **Shapes** x `[n, d]`, indices `[n, k]` → `[n, k]`.
    ///
    /// # Errors
    /// If shapes do not fit or an index is not below d.
    fn take_last(&self, x: &Self::Tensor, indices: &Self::Indices) -> Result<Self::Tensor>;

    /// `x / (Σ x + eps)` over the last dimension.
    ///
    /// # Errors
    /// A device fault.
    fn div_by_sum(&self, x: &Self::Tensor, eps: f32) -> Result<Self::Tensor>;

    /// `x · factor`.
    ///
    /// # Errors
    /// A device fault.
    fn scale(&self, x: &Self::Tensor, factor: f32) -> Result<Self::Tensor>;

    /// `y[t] = Σ_s weights[t, s] · x[t, s]`, summed over s from the first to the last in f32.
    ///
    /// **Shapes** x `[n, top_k, d]`, weights `[n, top_k]` → `[n, d]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn weighted_sum(&self, x: &Self::Tensor, weights: &Self::Tensor) -> Result<Self::Tensor>;

    /// The same values with another shape.
    ///
    /// # Errors
    /// If the numbers of values differ.
    fn reshape(&self, x: &Self::Tensor, shape: &[usize]) -> Result<Self::Tensor>;

    /// The columns `range` of the last dimension.
    ///
    /// # Errors
    /// If the range is empty or reaches past the width.
    fn slice_last(&self, x: &Self::Tensor, range: std::ops::Range<usize>) -> Result<Self::Tensor>;

    /// The rows of a step's tokens whose logits are wanted, in the order of its spans ([`logit_rows`]).
    ///
    /// **Shapes** x `[n, ..]`, n the step's tokens → `[n_logits, ..]`.
    ///
    /// # Errors
    /// If x has another number of rows.
    fn take_logit_rows(&self, x: &Self::Tensor, step: &Self::Step) -> Result<Self::Tensor>;

    // ---- compositions that depend on the backend

    /// [`Backend::route_softmax_top_k`] unfused. A backend that follows a stock engine overrides it with that engine's
    /// ops, whose order of experts and rounding may be others.
    ///
    /// # Errors
    /// As [`Backend::route_softmax_top_k`].
    fn stock_route_softmax_top_k(
        &self,
        logits: &Self::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(Self::Indices, Self::Tensor)> {
        stock::route_softmax_top_k(self, logits, settings)
    }

    /// [`Backend::route_noaux_tc`] unfused, as [`Backend::stock_route_softmax_top_k`].
    ///
    /// # Errors
    /// As [`Backend::route_noaux_tc`].
    fn stock_route_noaux_tc(
        &self,
        logits: &Self::Tensor,
        bias: &Self::Weight,
        settings: &NoauxTc,
    ) -> Result<(Self::Indices, Self::Tensor)> {
        stock::route_noaux_tc(self, logits, bias, settings)
    }

    // ---- fused ops: the default body is the composition

    /// `silu(x · gateᵀ) · (x · upᵀ)` for the chosen experts, in one pass over gate and up.
    ///
    /// **Shapes** x `[n, n_in]`, gate, up `n_experts × [n_out, n_in]`, experts `[n, top_k]` → `[n, top_k, n_out]`.
    /// **Dtypes** any format; gate and up may differ. **Numerics** accurate: gate and up stay in f32 until the
    /// product, which is rounded once. **Work** gate and up of each expert that occurs once per call,
    /// 4·n·top_k·n_out·n_in FLOPs; no intermediate leaves the kernel. **Source** the four ops `gather_qmm`,
    /// `gather_qmm`, `silu`, `multiply` of mlx-lm's `SwitchGLU`.
    ///
    /// # Errors
    /// As [`Backend::gather_linear`]; also if gate and up differ in shape.
    fn gather_qmm_swiglu(
        &self,
        x: &Self::Tensor,
        weights: GateUp<'_, Self::Weight>,
        experts: &Self::Indices,
    ) -> Result<Self::Tensor> {
        stock::gather_qmm_swiglu(self, x, weights, experts)
    }

    /// `y[t] = Σ_s weights[t, s] · (x[t, s] · down[experts[t, s]]ᵀ)`.
    ///
    /// **Shapes** x `[n, top_k, n_in]`, down `n_experts × [n_out, n_in]`, weights, experts `[n, top_k]` →
    /// `[n, n_out]`. **Numerics** the sum is in f32; its order over s is the backend's. **Work** down of each expert
    /// that occurs once per call, 2·n·top_k·n_out·(n_in + 1) FLOPs. **Source** `gather_qmm`, `multiply`, `sum` of
    /// mlx-lm's MoE blocks.
    ///
    /// # Errors
    /// As [`Backend::gather_linear`] and [`Backend::weighted_sum`].
    fn gather_qmm_combine(
        &self,
        x: &Self::Tensor,
        down: &Self::Weight,
        experts: &Self::Indices,
        weights: &Self::Tensor,
    ) -> Result<Self::Tensor> {
        stock::gather_qmm_combine(self, x, down, experts, weights)
    }

    /// `silu(x · gateᵀ) · (x · upᵀ)` of a dense MLP or shared expert.
    ///
    /// **Shapes** x `[n, n_in]`, gate, up `1 × [n_out, n_in]` → `[n, n_out]`. **Numerics**, **Work** and **Errors**
    /// as [`Backend::gather_qmm_swiglu`] with one expert.
    ///
    /// # Errors
    /// As [`Backend::linear`]; also if gate and up differ in shape.
    fn qmm_swiglu(&self, x: &Self::Tensor, weights: GateUp<'_, Self::Weight>) -> Result<Self::Tensor> {
        stock::qmm_swiglu(self, x, weights)
    }

    /// The sum `x + residual` and its norm, `(sum, rms_norm(sum))`: one pass over both.
    ///
    /// **Shapes** x, residual `[.., d]`, weight `1 × [1, d]`. **Numerics** as the composition, bit for bit.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn add_rms_norm(
        &self,
        x: &Self::Tensor,
        residual: &Self::Tensor,
        weight: &Self::Weight,
        eps: f32,
    ) -> Result<(Self::Tensor, Self::Tensor)> {
        stock::add_rms_norm(self, x, residual, weight, eps)
    }

    /// Chooses experts by softmax probability: `p = softmax(logits)`, the `top_k` largest, renormalised if asked.
    ///
    /// **Shapes** logits `[n, n_experts]` → indices and weights `[n, top_k]`, in the backend's order; of equal
    /// probabilities the lower index is chosen. **Numerics** f32. **Source** mlx-lm `qwen3_moe`.
    ///
    /// # Errors
    /// If `top_k` is 0 or above `n_experts`.
    fn route_softmax_top_k(
        &self,
        logits: &Self::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(Self::Indices, Self::Tensor)> {
        self.stock_route_softmax_top_k(logits, settings)
    }

    /// Chooses experts without an auxiliary loss: `s = sigmoid(logits)`; the bias takes part in the choice only.
    ///
    /// **Formula** `sel = s + bias`; with several groups, [`Backend::keep_top_groups`]; the `top_k` largest of sel;
    /// weights `s` of those, divided by `Σ + eps` if renormalised and more than one, times
    /// `routed_scaling_factor`. **Shapes** logits `[n, n_experts]`, bias `1 × [1, n_experts]` → indices and weights
    /// `[n, top_k]`, in the backend's order; of equal sel the lower index is chosen. **Numerics** f32. **Source** mlx-lm `group_expert_select`.
    ///
    /// # Errors
    /// If the settings do not fit `n_experts`.
    fn route_noaux_tc(
        &self,
        logits: &Self::Tensor,
        bias: &Self::Weight,
        settings: &NoauxTc,
    ) -> Result<(Self::Indices, Self::Tensor)> {
        self.stock_route_noaux_tc(logits, bias, settings)
    }

    /// Multi-head latent attention in its absorbed form: queries into latent space, attention there, results out.
    ///
    /// **Shapes** as [`MlaInputs`] and [`MlaWeights`] → `[n, n_heads, v_dim]`. **Numerics** and **Errors** as its
    /// parts. **Source** mlx-lm `glm4_moe_lite`.
    ///
    /// # Errors
    /// As [`Backend::head_linear`] and [`Backend::latent_attention`].
    fn mla_attention(
        &self,
        inputs: MlaInputs<'_, Self::Tensor>,
        weights: MlaWeights<'_, Self::Weight>,
        cache: &mut Self::Cache,
        step: &Self::Step,
        scale: f32,
    ) -> Result<Self::Tensor> {
        stock::mla_attention(self, inputs, weights, cache, step, scale)
    }
}

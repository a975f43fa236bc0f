//! The table of fused ops: several plain ops in one. Each is composed by the function of its name in [`crate::stock`]
//! unless a backend implements it; the conformance suite holds both to the same oracle.

macro_rules! fused_ops {
    ($callback:ident, $B:ident) => {
        $callback! { $B;

        /// `activation(x · gateᵀ + gate's bias, x · upᵀ + up's bias)` for the chosen experts, in one pass over gate and
        /// up. Usually this is `silu(x · gateᵀ) · (x · upᵀ)`.
        ///
        /// **Shapes** x `[n, n_in]`, gate, up `n_experts × [n_out, n_in]`, their biases if there are any
        /// `n_experts × [1, n_out]`, experts `[n, top_k]` → `[n, top_k, n_out]`. **Dtypes** any format; gate and up may
        /// differ. **Numerics** accurate: gate and up stay in f32 until they are joined, and the result is rounded
        /// once. **Work** each call reads gate and up of each expert that occurs once, 4·n·top_k·n_out·n_in FLOPs; no
        /// intermediate leaves the kernel. **Source** the four ops `gather_qmm`, `gather_qmm`, `silu`, `multiply` of
        /// mlx-lm's `SwitchGLU`.
        ///
        /// # Errors
        /// As [`Backend::gather_linear`]; also if gate and up differ in shape.
        #[op(GATHER_QMM_SWIGLU, Activation, Some(Experts))]
        fn gather_qmm_swiglu(
            x: &$B::Tensor,
            weights: GateUp<'_, $B::Weight>,
            experts: &$B::Indices,
        ) -> Tensor;

        /// `y[t] = Σ_s weights[t, s] · (x[t, s] · down[experts[t, s]]ᵀ + bias[experts[t, s]])`; the bias is optional.
        ///
        /// **Shapes** x `[n, top_k, n_in]`, down `n_experts × [n_out, n_in]`, bias `n_experts × [1, n_out]`, weights,
        /// experts `[n, top_k]` → `[n, n_out]`. **Numerics** the sum is in f32, and the backend chooses its order over
        /// s. **Work** each call reads down of each expert that occurs once, 2·n·top_k·n_out·(n_in + 1) FLOPs.
        /// **Source** `gather_qmm`, `multiply`, `sum` of mlx-lm's MoE blocks.
        ///
        /// # Errors
        /// As [`Backend::gather_linear`] and [`Backend::weighted_sum`].
        #[op(GATHER_QMM_COMBINE, Down, Some(Combine))]
        fn gather_qmm_combine(
            x: &$B::Tensor,
            down: Down<'_, $B::Weight>,
            experts: &$B::Indices,
            weights: &$B::Tensor,
        ) -> Tensor;

        /// `activation(x · gateᵀ + gate's bias, x · upᵀ + up's bias)` of a dense MLP or shared expert.
        ///
        /// **Shapes** x `[n, n_in]`, gate, up `1 × [n_out, n_in]`, their biases `1 × [1, n_out]` → `[n, n_out]`.
        /// **Numerics** and **Work** as [`Backend::gather_qmm_swiglu`] with one expert.
        ///
        /// # Errors
        /// As [`Backend::linear`]; also if gate and up differ in shape.
        #[op(QMM_SWIGLU, Activation, Some(DenseSwiglu))]
        fn qmm_swiglu(x: &$B::Tensor, weights: GateUp<'_, $B::Weight>) -> Tensor;

        /// [`Backend::gather_qmm_swiglu`] of the chosen experts, and [`Backend::qmm_swiglu`] of an expert that every token shares.
        /// Models call it where [`Backend::takes_shared_experts`] is true.
        ///
        /// **Shapes** as there → `[n, top_k, n_out]` and `[n, n_out of the shared expert]`. **Numerics** as there. **Source** the
        /// MoE block of mlx-lm `glm4_moe_lite`.
        ///
        /// # Errors
        /// As its parts.
        #[op(GATHER_QMM_SWIGLU_SHARED, Activation, None)]
        fn gather_qmm_swiglu_shared(
            x: &$B::Tensor,
            weights: GateUp<'_, $B::Weight>,
            shared: GateUp<'_, $B::Weight>,
            experts: &$B::Indices,
        ) -> (Tensor, Tensor);

        /// [`Backend::gather_qmm_combine`] of the chosen experts, plus what the shared one gives: the first of `x` is the chosen
        /// experts' and the second that of the shared one, whose down projection is `shared`. Models call it where
        /// [`Backend::takes_shared_experts`] is true.
        ///
        /// **Shapes** x `[n, top_k, n_in]` and `[n, its n_in]`, shared `1 × [n_out, its n_in]`; the others as there → `[n, n_out]`.
        /// **Numerics** as its parts. **Source** the MoE block of mlx-lm `glm4_moe_lite`.
        ///
        /// # Errors
        /// As its parts.
        #[op(GATHER_QMM_COMBINE_SHARED, Down, None)]
        fn gather_qmm_combine_shared(
            x: [&$B::Tensor; 2],
            down: Down<'_, $B::Weight>,
            shared: &$B::Weight,
            experts: &$B::Indices,
            weights: &$B::Tensor,
        ) -> Tensor;

        /// The sum `x + residual` and its norm, `(sum, rms_norm(sum))`: one pass over both.
        ///
        /// **Shapes** x, residual `[.., d]`, weight `1 × [1, d]`. **Numerics** as the composition, bit for bit.
        ///
        /// # Errors
        /// If the shapes do not fit.
        #[op(ADD_RMS_NORM, Other, Some(AddRmsNorm))]
        fn add_rms_norm(
            x: &$B::Tensor,
            residual: &$B::Tensor,
            weight: &$B::Weight,
            eps: f32,
        ) -> (Tensor, Tensor);

        /// A norm and a gate: `rms_norm(x, weight, eps) · silu(gate)`.
        ///
        /// **Shapes** x `[.., d]`, gate as x, weight `1 × [1, d]` → as x. **Numerics** accurate: as the composition, bit for
        /// bit. **Source** mlx-lm `Qwen3NextRMSNormGated`.
        ///
        /// # Errors
        /// If the shapes do not fit.
        #[op(RMS_NORM_GATED, Attention, None)]
        fn rms_norm_gated(
            x: &$B::Tensor,
            gate: &$B::Tensor,
            weight: &$B::Weight,
            eps: f32,
        ) -> Tensor;

        /// Chooses experts by softmax probability: `p = softmax(logits)`, the `top_k` largest, renormalised if the
        /// settings say so.
        ///
        /// **Shapes** logits `[n, n_experts]` → indices and weights `[n, top_k]`, in the backend's order; of equal
        /// probabilities the lower index is chosen. **Numerics** f32. **Source** mlx-lm `qwen3_moe`.
        ///
        /// # Errors
        /// If `top_k` is 0 or above `n_experts`.
        #[op(ROUTE_SOFTMAX_TOP_K, Route, Some(Route))]
        fn route_softmax_top_k(logits: &$B::Tensor, settings: &SoftmaxTopK) -> (Indices, Tensor);

        /// Chooses experts by `s = sigmoid(logits)` plus a bias, without an auxiliary loss. The bias affects only the
        /// choice, not the weights.
        ///
        /// **Formula** `sel = s + bias`; with several groups, [`Backend::keep_top_groups`]; take the `top_k` largest of
        /// sel. Their weights are `s`, divided by `Σ + eps` if renormalised and more than one, times
        /// `routed_scaling_factor`. **Shapes** logits `[n, n_experts]`, bias `1 × [1, n_experts]` → indices and weights
        /// `[n, top_k]`, in the backend's order. Of equal sel the lower index is chosen. **Numerics** f32. **Source**
        /// mlx-lm `group_expert_select`.
        ///
        /// # Errors
        /// If the settings do not fit `n_experts`.
        #[op(ROUTE_NOAUX_TC, Route, Some(Route))]
        fn route_noaux_tc(
            logits: &$B::Tensor,
            bias: &$B::Weight,
            settings: &NoauxTc,
        ) -> (Indices, Tensor);

        /// The norm of each query and key, then their rotation: `rope(rms_norm(q))` and `rope(rms_norm(k))`.
        ///
        /// **Shapes** as [`NormRope`] → as q and as k. **Numerics** and **Errors** as the composition; **Source** mlx-lm
        /// `qwen3_moe`.
        ///
        /// # Errors
        /// As [`Backend::rms_norm`] and [`Backend::rope`].
        #[op(NORM_ROPE, Attention, None)]
        fn norm_rope(
            inputs: NormRope<'_, $B::Tensor, $B::Weight>,
            step: &$B::Step,
            rope: &Rope,
        ) -> (Tensor, Tensor);

        /// Multi-head latent attention in its absorbed form: queries go into latent space, attention runs there, and
        /// results come out.
        ///
        /// **Shapes** as [`MlaInputs`] and [`MlaWeights`] → `[n, n_heads, v_dim]`. **Numerics** as its parts.
        /// **Source** mlx-lm `glm4_moe_lite`.
        ///
        /// # Errors
        /// As [`Backend::head_linear`] and [`Backend::latent_attention`].
        #[op(MLA_ATTENTION, Attention, None)]
        fn mla_attention(
            inputs: MlaInputs<'_, $B::Tensor>,
            weights: MlaWeights<'_, $B::Weight>,
            cache: &mut $B::Cache,
            step: &$B::Step,
            scale: f32,
        ) -> Tensor;

        /// [`Backend::mla_attention`] from the projections on: the norm of the latent, and the ropes of the shared key and of the
        /// queries' rotated parts, come first.
        ///
        /// **Shapes** as [`NormRopeMla`] and [`MlaWeights`] → `[n, n_heads, v_dim]`. **Numerics** as its parts; a backend that
        /// follows a stock engine may compute attention in f32 where that engine rounds scores. **Source** mlx-lm
        /// `glm4_moe_lite`.
        ///
        /// # Errors
        /// As its parts.
        #[op(NORM_ROPE_MLA, Attention, None)]
        fn norm_rope_mla(
            inputs: NormRopeMla<'_, $B::Tensor, $B::Weight>,
            weights: MlaWeights<'_, $B::Weight>,
            cache: &mut $B::Cache,
            step: &$B::Step,
            rope: &Rope,
        ) -> Tensor;

        }
    };
}
pub(crate) use fused_ops;

//! The table of plain ops, which models and the compositions of fused ops are made of. Every backend implements each of
//! them.

macro_rules! plain_ops {
    ($callback:ident, $B:ident) => {
        $callback! { $B;

        /// Rows of the table: `y[t] = table[ids[t]]`, dequantised.
        ///
        /// **Shapes** ids `[n]`, table `[vocab, hidden]` → `[n, hidden]`. **Numerics** one rounding of `scale·q + bias`.
        /// **Work** n rows read. **Source** `mlx.nn.QuantizedEmbedding`.
        ///
        /// # Errors
        /// If an id is not below `vocab`.
        #[op(EMBED, Other)]
        fn embed(table: &$B::Weight, ids: &$B::Indices) -> Tensor;

        /// `y = x / sqrt(mean(x²) + eps) · weight` over the last dimension.
        ///
        /// **Shapes** x `[.., d]`, weight `1 × [1, d]` → as x. **Numerics** the mean accumulates in f32.
        /// **Work** 8 bytes and 4 FLOPs per value. **Source** `mx.fast.rms_norm`.
        ///
        /// # Errors
        /// If the widths differ.
        #[op(RMS_NORM, Other)]
        fn rms_norm(x: &$B::Tensor, weight: &$B::Weight, eps: f32) -> Tensor;

        /// `y = x · Wᵀ`.
        ///
        /// **Shapes** x `[.., n_in]`, W `1 × [n_out, n_in]` → `[.., n_out]`. **Dtypes** any weight format.
        /// **Numerics** f32 products and sums; scale and bias applied per group in f32.
        /// **Work** each call reads the weight's bytes once, 2·n·n_out·n_in FLOPs. **Source**
        /// `mx.quantized_matmul(transpose=True)`.
        ///
        /// # Errors
        /// If the widths differ or W is a bank.
        #[op(LINEAR, Product)]
        fn linear(x: &$B::Tensor, weight: &$B::Weight) -> Tensor;

        /// Products with each token's chosen experts: `y[t, s] = x[t] · W[experts[t, s]]ᵀ`, or from `x[t, s]` if x has
        /// a row for each choice.
        ///
        /// **Shapes** x `[n, n_in]` or `[n, top_k, n_in]`, W `n_experts × [n_out, n_in]`, experts `[n, top_k]` →
        /// `[n, top_k, n_out]`. **Numerics** as [`Backend::linear`]. **Work** each call reads each expert that occurs
        /// once, however many tokens chose it; 2·n·top_k·n_out·n_in FLOPs. **Source** `mx.gather_qmm(transpose=True)`.
        ///
        /// # Errors
        /// If shapes do not fit or an index is not below `n_experts`.
        #[op(GATHER_LINEAR, Gather)]
        fn gather_linear(x: &$B::Tensor, weight: &$B::Weight, experts: &$B::Indices) -> Tensor;

        /// Adds the biases of each token's chosen experts: `y[t, s] = x[t, s] + bank[experts[t, s]]`.
        ///
        /// **Shapes** x `[n, top_k, d]`, bank `n_experts × [1, d]`, dense, experts `[n, top_k]` → as x. **Source** mlx-lm
        /// `SwitchLinear`.
        ///
        /// # Errors
        /// If shapes do not fit or an index is not below `n_experts`.
        #[op(GATHER_ADD, Other)]
        fn gather_add(x: &$B::Tensor, bank: &$B::Weight, experts: &$B::Indices) -> Tensor;

        /// One matrix per head: `y[t, h] = x[t, h] · W[h]ᵀ`.
        ///
        /// **Shapes** x `[n, n_heads, n_in]`, W `n_heads × [n_out, n_in]` → `[n, n_heads, n_out]`. **Numerics** and
        /// **Work** as [`Backend::linear`]. **Source** mlx-lm `QuantizedMultiLinear`.
        ///
        /// # Errors
        /// If the shapes do not fit.
        #[op(HEAD_LINEAR, Attention)]
        fn head_linear(x: &$B::Tensor, weight: &$B::Weight) -> Tensor;

        /// Rotates the first `rope.dims` dimensions of every head by its token's position, and multiplies them by
        /// `rope.scale`.
        ///
        /// **Shapes** x `[n, n_heads, d]`, n the step's tokens. **Numerics** angles in f32; sine and cosine are the
        /// platform's. The absolute error grows with the position, as that of f32 angles does. **Source**
        /// `mx.fast.rope`.
        ///
        /// # Errors
        /// If `rope.dims` is odd or above d, there are not `dims / 2` frequencies, or x has another number of tokens.
        #[op(ROPE, Attention)]
        fn rope(x: &$B::Tensor, step: &$B::Step, rope: &Rope) -> Tensor;

        /// Writes the new keys and values after those in the cache and attends causally: `y[t, h] = Σ_j w[j]·v[j, h']`,
        /// `w = softmax_j(scale · q[t, h]·k[j, h'])`, `h' = h / (n_heads / n_kv_heads)`. The positions j are the cached
        /// ones up to the token's own, or with a window the last ones of these, as many as the window says. With sinks,
        /// `exp(sinks[h])` is added to the softmax's sum.
        ///
        /// **Shapes** as [`AttentionInputs`] → `[n, n_heads, d]`. **Numerics** f32 scores; softmax subtracts the
        /// maximum. **Work** the cache is read once per span and kv head; 4·n_heads·d FLOPs per pair of positions.
        /// **Source** `mx.fast.scaled_dot_product_attention`.
        ///
        /// # Errors
        /// If shapes, the cache's kind or the window do not fit, or a span does not start at its slot's length. Then
        /// the cache is unchanged.
        #[op(ATTENTION, Attention)]
        fn attention(
            inputs: AttentionInputs<'_, $B::Tensor, $B::Weight>,
            cache: &mut $B::Cache,
            step: &$B::Step,
            settings: &AttentionSettings,
        ) -> Tensor;

        /// Attends as [`Backend::attention`] to keys and values that another layer has written to `cache` in this step.
        /// It appends nothing.
        ///
        /// **Shapes** q `[n, n_heads, d]` → the same. **Numerics** and **Work** as there. **Source** mlx-lm `gemma4`, layers
        /// that share keys and values.
        ///
        /// # Errors
        /// As [`Backend::attention`]; also if the cache lacks the step's tokens.
        #[op(ATTENTION_SHARED, Attention)]
        fn attention_shared(
            q: &$B::Tensor,
            cache: &$B::Cache,
            step: &$B::Step,
            settings: &AttentionSettings,
        ) -> Tensor;

        /// Attention over latents: writes `kv` and `k_pe` after those in the cache, then
        /// `y[t, h] = softmax_j(scale · (q_nope[t, h]·kv[j] + q_pe[t, h]·k_pe[j]))·kv[j]`, causal.
        ///
        /// **Shapes** as [`MlaInputs`], q_nope in latent space → `[n, n_heads, rank]`. **Numerics** as
        /// [`Backend::attention`]. **Work** `rank + rope_dim` values are read once per position for all heads.
        /// **Source** mlx-lm `glm4_moe_lite`, absorbed form.
        ///
        /// # Errors
        /// As [`Backend::attention`].
        #[op(LATENT_ATTENTION, Attention)]
        fn latent_attention(
            inputs: MlaInputs<'_, $B::Tensor>,
            cache: &mut $B::Cache,
            step: &$B::Step,
            scale: f32,
        ) -> Tensor;

        /// A convolution along each sequence, channel by channel:
        /// `y[t, c] = act( Σ_j taps[j, c]·x[t - kernel + 1 + j, c] + bias[c] )`. Inputs before a sequence's first token
        /// are zeros. The cache keeps the last inputs.
        ///
        /// **Shapes** x `[n, n_channels]`, n the step's tokens, weights as [`ConvWeights`] → as x. **Numerics**
        /// products and sums in f32. **Work** 8 bytes and `2·kernel` FLOPs per value; the state of a sequence,
        /// `(kernel - 1)·n_channels` values, is read and written once. **Source** `mlx.nn.Conv1d` with a group for each
        /// channel, mlx-lm `qwen3_next`, `lfm2`.
        ///
        /// # Errors
        /// If shapes or the cache's kind do not fit, or a span does not start at its slot's length. Then the sequences
        /// are unchanged.
        #[op(CAUSAL_CONV, Attention)]
        fn causal_conv(
            x: &$B::Tensor,
            weights: ConvWeights<'_, $B::Weight>,
            cache: &mut $B::Cache,
            step: &$B::Step,
            activation: ConvActivation,
        ) -> Tensor;

        /// The gated delta rule. Each value head has a matrix `S [v_dim, k_dim]`, which is zero before the first token.
        /// At each token S decays, then learns to answer the token's key with its value, then answers the token's
        /// query. Each key head serves `n_v_heads / n_k_heads` neighbouring value heads:
        ///
        /// ```text
        /// q' = q / √(Σq² + 1e-6) / √k_dim     k' = k / √(Σk² + 1e-6)
        /// β = sigmoid(b)     g = exp(-exp(a_log) · ln(1 + exp(a + dt_bias)))
        /// S ← g·S;  S ← S + β·(v - S·k')⊗k';  y = S·q'
        /// ```
        ///
        /// **Shapes** as [`DeltaInputs`] and [`DeltaWeights`], with the sizes of the cache → `[n, n_v_heads, v_dim]`.
        /// **Numerics** f32, including the state. **Work** the states of the step's sequences are read and written
        /// once, 8 bytes a value; `7·n_v_heads·v_dim·k_dim` FLOPs per token. **Source** mlx-lm `gated_delta`.
        ///
        /// # Errors
        /// As [`Backend::causal_conv`].
        #[op(GATED_DELTA, Attention)]
        fn gated_delta(
            inputs: DeltaInputs<'_, $B::Tensor>,
            weights: DeltaWeights<'_, $B::Weight>,
            cache: &mut $B::Cache,
            step: &$B::Step,
        ) -> Tensor;

        /// `a · b`, equal shapes.
        ///
        /// # Errors
        /// If the shapes differ.
        #[op(MUL, Other)]
        fn mul(a: &$B::Tensor, b: &$B::Tensor) -> Tensor;

        /// `x · sigmoid(gate)`. **Shapes** x `[.., d]`, gate as x, or one value for each row: `[.., 1]`.
        ///
        /// # Errors
        /// If the shapes do not fit.
        #[op(MUL_SIGMOID, Other)]
        fn mul_sigmoid(x: &$B::Tensor, gate: &$B::Tensor) -> Tensor;

        /// `a + b`, equal shapes.
        ///
        /// # Errors
        /// If the shapes differ.
        #[op(ADD, Other)]
        fn add(a: &$B::Tensor, b: &$B::Tensor) -> Tensor;

        /// Joins the two projections of a gated MLP by one of the formulas of [`Activation`]; equal shapes. **Numerics** f32,
        /// NaN stays NaN. **Source** mlx-lm `swiglu`, `geglu`, gpt_oss's `swiglu`.
        ///
        /// # Errors
        /// If the shapes differ.
        #[op(GATED, Activation)]
        fn gated(gate: &$B::Tensor, up: &$B::Tensor, activation: Activation) -> Tensor;

        /// `cap · tanh(x / cap)`. **Source** mlx-lm `logit_softcap`.
        ///
        /// # Errors
        /// If the cap is not positive.
        #[op(SOFT_CAP, Other)]
        fn soft_cap(x: &$B::Tensor, cap: f32) -> Tensor;

        /// Softmax over the last dimension, the maximum subtracted first.
        ///
        /// # Errors
        /// A device fault.
        #[op(SOFTMAX, Other)]
        fn softmax(x: &$B::Tensor) -> Tensor;

        /// `1 / (1 + exp(-x))`.
        ///
        /// # Errors
        /// A device fault.
        #[op(SIGMOID, Other)]
        fn sigmoid(x: &$B::Tensor) -> Tensor;

        /// `x + vector` over the last dimension. **Shapes** x `[.., d]`, vector `1 × [1, d]`.
        ///
        /// # Errors
        /// If the widths differ.
        #[op(ADD_VECTOR, Other)]
        fn add_vector(x: &$B::Tensor, vector: &$B::Weight) -> Tensor;

        /// Sets every score outside the best groups to 0. The experts are split into `n_group` equal groups. A group's
        /// score is the sum of its two best scores. The `topk_group` best groups stay; of equal groups the first is
        /// better.
        ///
        /// **Shapes** x `[n, n_experts]` → as x.
        ///
        /// # Errors
        /// If `n_group` does not divide the width into groups of two or more, or `topk_group` is 0 or above `n_group`.
        #[op(KEEP_TOP_GROUPS, Route)]
        fn keep_top_groups(x: &$B::Tensor, n_group: usize, topk_group: usize) -> Tensor;

        /// Indices of the `k` largest of each row, in the backend's order; of equal values the lower index is chosen. NaN
        /// counts as smallest. **Shapes** x `[n, d]` → `[n, k]`.
        ///
        /// # Errors
        /// If k is 0 or above d.
        #[op(TOP_K, Route)]
        fn top_k(x: &$B::Tensor, k: usize) -> Indices;

        /// `y[t, s] = x[t, indices[t, s]]`. **Shapes** x `[n, d]`, indices `[n, k]` → `[n, k]`.
        ///
        /// # Errors
        /// If shapes do not fit or an index is not below d.
        #[op(TAKE_LAST, Other)]
        fn take_last(x: &$B::Tensor, indices: &$B::Indices) -> Tensor;

        /// `y[t, s] = x[t, s] · vector[indices[t, s]]`. **Shapes** x, indices `[n, k]`, vector `1 × [1, d]` → as x.
        ///
        /// # Errors
        /// If shapes do not fit or an index is not below d.
        #[op(MUL_TAKEN, Route)]
        fn mul_taken(x: &$B::Tensor, vector: &$B::Weight, indices: &$B::Indices) -> Tensor;

        /// `x / (Σ x + eps)` over the last dimension.
        ///
        /// # Errors
        /// A device fault.
        #[op(DIV_BY_SUM, Other)]
        fn div_by_sum(x: &$B::Tensor, eps: f32) -> Tensor;

        /// `x · factor`.
        ///
        /// # Errors
        /// A device fault.
        #[op(SCALE, Other)]
        fn scale(x: &$B::Tensor, factor: f32) -> Tensor;

        /// `y[t] = Σ_s weights[t, s] · x[t, s]`, summed over s from the first to the last in f32.
        ///
        /// **Shapes** x `[n, top_k, d]`, weights `[n, top_k]` → `[n, d]`.
        ///
        /// # Errors
        /// If the shapes do not fit.
        #[op(WEIGHTED_SUM, Down)]
        fn weighted_sum(x: &$B::Tensor, weights: &$B::Tensor) -> Tensor;

        /// The rows of a step's tokens whose logits are wanted, in the order of the step's spans ([`logit_rows`]).
        ///
        /// **Shapes** x `[n, ..]`, n the step's tokens → `[n_logits, ..]`.
        ///
        /// # Errors
        /// If x has another number of rows.
        #[op(TAKE_LOGIT_ROWS, Other)]
        fn take_logit_rows(x: &$B::Tensor, step: &$B::Step) -> Tensor;

        }
    };
}
pub(crate) use plain_ops;

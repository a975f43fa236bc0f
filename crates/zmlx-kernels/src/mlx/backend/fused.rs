//! The fused kernels on the backend's arrays. Each function gives none where the call is to be composed of stock
//! ops: without a GPU, without a kernel for the shape, or where many sorted choices make MLX's tile kernels the better
//! and, in exact numerics, the only equal way.

use mlx_rs::{Array, Dtype};

use super::arrays::{dims, shape_i32};
use super::{MlxBackend, MlxIndices, MlxStep, MlxWeight, f};
use crate::metal::{self, CombineShape, KernelSpec, NotFused, SwigluShape};
use crate::mlx::{Gpu, QuantizedExperts, cuda, raw};
use crate::{DType, GateUp, NoauxTc, NormRope, Result, Rope, SoftmaxTopK};

/// The type as this crate names it, if kernels know it.
pub(super) fn dtype(x: &Array) -> Option<DType> {
    match x.dtype() {
        Dtype::Float32 => Some(DType::F32),
        Dtype::Float16 => Some(DType::F16),
        Dtype::Bfloat16 => Some(DType::BF16),
        _ => None,
    }
}

/// Whether affine scales have the type of the activations, as the kernels need.
fn takes(bank: &QuantizedExperts, x: &Array) -> bool {
    !bank.spec().has_biases() || bank.scales().dtype() == x.dtype()
}

/// The weight's arrays, if kernels can take them beside `x`.
fn bank<'a>(weight: &'a MlxWeight, x: &Array) -> Option<&'a QuantizedExperts> {
    weight.experts().filter(|bank| takes(bank, x))
}

/// Weight, scales and biases; scales again where there are no biases.
fn arrays(bank: &QuantizedExperts) -> [&Array; 3] {
    [bank.weight(), bank.scales(), bank.biases().unwrap_or(bank.scales())]
}

/// The kernel, or none with the reason in the log.
pub(super) fn fits(op: &'static str, spec: std::result::Result<KernelSpec, NotFused>) -> Option<KernelSpec> {
    spec.inspect_err(|why| tracing::debug!(op, %why, "composed of stock ops")).ok()
}

/// The only result of a kernel.
fn one(op: &'static str, spec: &KernelSpec, inputs: &[&Array]) -> Result<Array> {
    let [y] = raw::launch(op, Gpu::Metal, spec, inputs)?;
    Ok(y)
}

/// Which rows and experts meet.
#[derive(Clone, Copy)]
pub(in crate::mlx) struct Pairs<'a> {
    /// Batch entries of x and rows of each: pair p takes entry `p / (pairs / x_batch)`.
    pub(in crate::mlx) x_shape: [usize; 2],
    /// The expert of each pair, u32; its shape does not matter.
    pub(in crate::mlx) experts: &'a Array,
    /// Whether the experts ascend.
    pub(in crate::mlx) sorted: bool,
}

/// [`metal::gather_qmm_swiglu`], or [`cuda::gather_qmm_swiglu`], for x `[.., K]` of the given number of rows; the result is `[pairs, M, N]`.
pub(in crate::mlx) fn launch_gather_qmm_swiglu(
    b: &MlxBackend,
    x: &Array,
    gate: &QuantizedExperts,
    up: &QuantizedExperts,
    pairs: Pairs<'_>,
) -> Result<Option<Array>> {
    const OP: &str = "gather_qmm_swiglu";
    let ready = takes(gate, x) && takes(up, x) && gate.spec() == up.spec();
    let (true, Some(gpu), Some(dtype)) = (ready, b.runtime.launches(), dtype(x)) else { return Ok(None) };
    let ([x_batch, n_rows], n_pairs, n_in) = (pairs.x_shape, pairs.experts.size(), gate.n_in());
    let (n_experts, n_out, sorted) = (gate.n_experts(), gate.n_out(), pairs.sorted);
    let shape = SwigluShape { n_pairs, x_batch, n_rows, n_experts, n_out, n_in, sorted };
    let spec = match gpu {
        Gpu::Metal => metal::gather_qmm_swiglu(dtype, gate.spec(), &shape, b.numerics),
        Gpu::Cuda => cuda::gather_qmm_swiglu(dtype, gate.spec(), &shape, b.numerics),
    };
    let Some(spec) = fits(OP, spec) else { return Ok(None) };
    let x = x.reshape(&shape_i32(&[x_batch, n_rows, n_in])).map_err(f(OP))?;
    let rhs = pairs.experts.reshape(&shape_i32(&[n_pairs])).map_err(f(OP))?;
    let ([gw, gs, gb], [uw, us, ub]) = (arrays(gate), arrays(up));
    let [y] = raw::launch(OP, gpu, &spec, &[&x, gw, gs, gb, uw, us, ub, &rhs])?;
    Ok(Some(y))
}

impl MlxBackend {
    /// [`metal::gather_qmm_swiglu`] for one row per token.
    pub(super) fn fused_gather_qmm_swiglu(
        &self,
        x: &Array,
        weights: GateUp<'_, MlxWeight>,
        experts: &MlxIndices,
    ) -> Result<Option<Array>> {
        let (&[n, _], &[_, top_k]) = (&dims(x)[..], &dims(experts.array())[..]) else { return Ok(None) };
        let (Some(gate), Some(up)) = (weights.gate.experts(), weights.up.experts()) else { return Ok(None) };
        if experts.sorted().is_some() {
            return Ok(None);
        }
        let pairs = Pairs { x_shape: [n, 1], experts: experts.array(), sorted: false };
        let Some(y) = launch_gather_qmm_swiglu(self, x, gate, up, pairs)? else { return Ok(None) };
        y.reshape(&shape_i32(&[n, top_k, gate.n_out()])).map(Some).map_err(f("gather_qmm_swiglu"))
    }

    /// [`metal::gather_qmm_combine`].
    pub(in crate::mlx) fn fused_gather_qmm_combine(
        &self,
        x: &Array,
        down: &MlxWeight,
        experts: &MlxIndices,
        weights: &Array,
    ) -> Result<Option<Array>> {
        const OP: &str = "gather_qmm_combine";
        let &[n_tokens, top_k, n_in] = &dims(x)[..] else { return Ok(None) };
        let types = (dtype(x), dtype(weights), bank(down, x));
        let (Some(dtype), Some(weights_dtype), Some(down)) = types else { return Ok(None) };
        if !self.runtime.launches_metal() || experts.sorted().is_some() {
            return Ok(None);
        }
        let shape = CombineShape { n_tokens, top_k, n_experts: down.n_experts(), n_out: down.n_out(), n_in };
        let spec = metal::gather_qmm_combine(dtype, weights_dtype, down.spec(), &shape, self.numerics);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let [w, scales, biases] = arrays(down);
        one(OP, &spec, &[x, w, scales, biases, experts.array(), weights]).map(Some)
    }

    /// [`metal::gather_qmm_swiglu_shared`]; none where shapes do not fit, whose composition says so.
    pub(super) fn fused_gather_qmm_swiglu_shared(
        &self,
        x: &Array,
        [weights, shared]: [GateUp<'_, MlxWeight>; 2],
        experts: &MlxIndices,
    ) -> Result<Option<[Array; 2]>> {
        const OP: &str = "gather_qmm_swiglu";
        let (&[n, n_in], &[n_chosen, top_k]) = (&dims(x)[..], &dims(experts.array())[..]) else {
            return Ok(None);
        };
        let banks = [weights.gate, weights.up, shared.gate, shared.up].map(|weight| bank(weight, x));
        let (Some(dtype), [Some(gate), Some(up), Some(shared_gate), Some(shared_up)]) = (dtype(x), banks)
        else {
            return Ok(None);
        };
        let (n_experts, n_out) = (gate.n_experts(), gate.n_out());
        let format = |bank: &QuantizedExperts| (bank.spec(), bank.n_experts(), bank.n_out(), bank.n_in());
        let of_all = |n_mats| (gate.spec(), n_mats, n_out, n_in);
        let fits_bank = [gate, up].iter().all(|bank| format(bank) == of_all(n_experts));
        let fits_one = [shared_gate, shared_up].iter().all(|bank| format(bank) == of_all(1));
        let is_ready = self.runtime.launches_metal() && experts.sorted().is_none();
        if !(fits_bank && fits_one && is_ready && n == n_chosen) {
            return Ok(None);
        }
        let shape =
            SwigluShape { n_pairs: n * top_k, x_batch: n, n_rows: 1, n_experts, n_out, n_in, sorted: false };
        let spec = metal::gather_qmm_swiglu_shared(dtype, gate.spec(), &shape, self.numerics);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let rhs = experts.array().reshape(&shape_i32(&[n * top_k])).map_err(f(OP))?;
        let banks = [gate, up, shared_gate, shared_up].map(arrays);
        let inputs: Vec<&Array> =
            std::iter::once(x).chain(banks.into_iter().flatten()).chain([&rhs]).collect();
        let [y, of_shared] = raw::launch(OP, Gpu::Metal, &spec, &inputs)?;
        let y = y.reshape(&shape_i32(&[n, top_k, n_out])).map_err(f(OP))?;
        Ok(Some([y, of_shared]))
    }

    /// [`metal::gather_qmm_combine_shared`]; none where shapes do not fit, whose composition says so.
    pub(super) fn fused_gather_qmm_combine_shared(
        &self,
        [x, of_shared]: [&Array; 2],
        [down, shared]: [&MlxWeight; 2],
        experts: &MlxIndices,
        weights: &Array,
    ) -> Result<Option<Array>> {
        const OP: &str = "gather_qmm_combine";
        let &[n_tokens, top_k, n_in] = &dims(x)[..] else { return Ok(None) };
        let banks = [down, shared].map(|weight| bank(weight, x));
        let (Some(dtype), Some(weights_dtype), [Some(down), Some(shared)]) =
            (dtype(x), dtype(weights), banks)
        else {
            return Ok(None);
        };
        let sizes = |bank: &QuantizedExperts| (bank.spec(), bank.n_out(), bank.n_in());
        let fits_each_other = sizes(down) == sizes(shared) && shared.n_experts() == 1 && down.n_in() == n_in;
        let chosen = [n_tokens, top_k];
        let fits_x = dims(of_shared) == [n_tokens, n_in] && of_shared.dtype() == x.dtype();
        let fits_choice = dims(experts.array()) == chosen && dims(weights) == chosen;
        let is_ready = self.runtime.launches_metal() && experts.sorted().is_none();
        if !(fits_each_other && fits_x && fits_choice && is_ready) {
            return Ok(None);
        }
        let shape = CombineShape { n_tokens, top_k, n_experts: down.n_experts(), n_out: down.n_out(), n_in };
        let spec = metal::gather_qmm_combine_shared(dtype, weights_dtype, down.spec(), &shape, self.numerics);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let ([w, s, z], [shared_w, shared_s, shared_z]) = (arrays(down), arrays(shared));
        let inputs = [x, of_shared, w, s, z, shared_w, shared_s, shared_z, experts.array(), weights];
        one(OP, &spec, &inputs).map(Some)
    }

    /// [`metal::qmm_swiglu`].
    pub(in crate::mlx) fn fused_qmm_swiglu(
        &self,
        x: &Array,
        weights: GateUp<'_, MlxWeight>,
    ) -> Result<Option<Array>> {
        const OP: &str = "qmm_swiglu";
        let &[n_rows, n_in] = &dims(x)[..] else { return Ok(None) };
        let banks = (dtype(x), bank(weights.gate, x), bank(weights.up, x));
        let (Some(dtype), Some(gate), Some(up)) = banks else { return Ok(None) };
        if !self.runtime.launches_metal() || gate.spec() != up.spec() {
            return Ok(None);
        }
        let n_out = gate.n_out();
        let spec = metal::qmm_swiglu(dtype, gate.spec(), [n_rows, n_out, n_in], self.numerics);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let x = x.expand_dims(0).map_err(f(OP))?;
        let first = Array::from_slice(&[0_u32], &[1]);
        let ([gw, gs, gb], [uw, us, ub]) = (arrays(gate), arrays(up));
        let y = one(OP, &spec, &[&x, gw, gs, gb, uw, us, ub, &first])?;
        y.reshape(&[n_rows as i32, n_out as i32]).map(Some).map_err(f(OP))
    }

    /// [`metal::route_softmax_top_k`].
    pub(in crate::mlx) fn fused_route_softmax_top_k(
        &self,
        logits: &Array,
        settings: &SoftmaxTopK,
    ) -> Result<Option<(MlxIndices, Array)>> {
        const OP: &str = "route_softmax_top_k";
        let (&[n, n_experts], Some(dtype)) = (&dims(logits)[..], dtype(logits)) else { return Ok(None) };
        if !self.runtime.launches_metal() {
            return Ok(None);
        }
        let spec = metal::route_softmax_top_k(dtype, [n, n_experts], settings, self.numerics);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let [experts, weights] = raw::launch(OP, Gpu::Metal, &spec, &[logits])?;
        Ok(Some((MlxIndices::computed(OP, experts, n_experts)?, weights)))
    }

    /// [`metal::route_noaux_tc`].
    pub(in crate::mlx) fn fused_route_noaux_tc(
        &self,
        logits: &Array,
        bias: &MlxWeight,
        settings: &NoauxTc,
    ) -> Result<Option<(MlxIndices, Array)>> {
        const OP: &str = "route_noaux_tc";
        let (&[n, n_experts], Some(dtype)) = (&dims(logits)[..], dtype(logits)) else { return Ok(None) };
        if !self.runtime.launches_metal() {
            return Ok(None);
        }
        let spec = metal::route_noaux_tc(dtype, [n, n_experts], settings);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let bias = bias.vector(OP, n_experts)?;
        let factors = Array::from_slice(&[settings.routed_scaling_factor, settings.eps], &[2]);
        let [experts, weights] = raw::launch(OP, Gpu::Metal, &spec, &[logits, &bias, &factors])?;
        Ok(Some((MlxIndices::computed(OP, experts, n_experts)?, weights)))
    }

    /// [`metal::add_rms_norm`].
    pub(super) fn fused_add_rms_norm(
        &self,
        [x, residual, weight]: [&Array; 3],
        eps: f32,
    ) -> Result<Option<[Array; 2]>> {
        const OP: &str = "add_rms_norm";
        let (&[n, width], Some(dtype)) = (&dims(x)[..], dtype(x)) else { return Ok(None) };
        let is_one_type = residual.dtype() == x.dtype() && weight.dtype() == x.dtype();
        if !is_one_type || !self.runtime.launches_metal() {
            return Ok(None);
        }
        let Some(spec) = fits(OP, metal::add_rms_norm(dtype, [n, width], eps)) else { return Ok(None) };
        raw::launch(OP, Gpu::Metal, &spec, &[x, residual, weight]).map(Some)
    }

    /// [`metal::norm_rope`].
    pub(super) fn fused_norm_rope(
        &self,
        inputs: &NormRope<'_, Array, MlxWeight>,
        step: &MlxStep,
        rope: &Rope,
    ) -> Result<Option<[Array; 2]>> {
        const OP: &str = "norm_rope";
        let (q, k) = (inputs.q, inputs.k);
        let (&[n, n_heads, d], &[n_keys, n_kv_heads, k_dim]) = (&dims(q)[..], &dims(k)[..]) else {
            return Ok(None);
        };
        let Some(dtype) = dtype(q).filter(|_| self.runtime.launches_metal()) else { return Ok(None) };
        let (q_norm, k_norm) = (inputs.q_norm.vector(OP, d)?, inputs.k_norm.vector(OP, k_dim)?);
        let is_one_type = [k, &q_norm, &k_norm].iter().all(|x| x.dtype() == q.dtype());
        if !is_one_type || [n, d] != [n_keys, k_dim] || n != step.n_tokens() {
            return Ok(None);
        }
        rope.check(OP, d)?;
        let spec = metal::norm_rope(dtype, [n, n_heads, n_kv_heads, d], inputs.eps, rope);
        let Some(spec) = fits(OP, spec) else { return Ok(None) };
        let periods = super::attention::periods(rope).unwrap_or_else(|| Array::from_slice(&[1.0_f32], &[1]));
        raw::launch(OP, Gpu::Metal, &spec, &[q, k, &q_norm, &k_norm, step.positions(), &periods]).map(Some)
    }
}

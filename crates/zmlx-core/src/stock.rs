//! The fused ops as compositions of plain ops. They are the default bodies of [`Backend`], and what a model runs when a
//! fused op is switched off. They have the shapes, errors and meaning of the ops of the same names.

use std::ops::Range;

use crate::Result;
use crate::backend::{
    Activation, Backend, Down, GateUp, MlaInputs, MlaWeights, NoauxTc, NormRope, NormRopeMla, Renormalize,
    Rope, SoftmaxTopK,
};
use crate::error::ensure;

/// The routers of a stock engine, for a backend that follows it: see [`Backend::stock_routers`].
pub trait Routers<B: Backend + ?Sized> {
    /// What [`route_softmax_top_k`] does.
    ///
    /// # Errors
    /// As [`Backend::route_softmax_top_k`].
    fn softmax_top_k(&self, logits: &B::Tensor, settings: &SoftmaxTopK) -> Result<(B::Indices, B::Tensor)>;

    /// What [`route_noaux_tc`] does.
    ///
    /// # Errors
    /// As [`Backend::route_noaux_tc`].
    fn noaux_tc(
        &self,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)>;
}

/// [`Backend::gather_qmm_swiglu`] as two gathers, [`Backend::gather_add`] if there are biases, and [`Backend::gated`].
///
/// # Errors
/// As its parts.
pub fn gather_qmm_swiglu<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    weights: GateUp<'_, B::Weight>,
    experts: &B::Indices,
) -> Result<B::Tensor> {
    let gate = b.gather_linear(x, weights.gate, experts)?;
    let up = b.gather_linear(x, weights.up, experts)?;
    gated(b, [gate, up], weights.biases, experts, weights.activation)
}

/// Adds the chosen experts' biases, if there are any, and joins gate and up.
fn gated<B: Backend + ?Sized>(
    b: &B,
    [mut gate, mut up]: [B::Tensor; 2],
    biases: Option<[&B::Weight; 2]>,
    experts: &B::Indices,
    activation: Activation,
) -> Result<B::Tensor> {
    if let Some([of_gate, of_up]) = biases {
        (gate, up) = (b.gather_add(&gate, of_gate, experts)?, b.gather_add(&up, of_up, experts)?);
    }
    b.gated(&gate, &up, activation)
}

/// [`Backend::gather_qmm_swiglu`] as one gather over `gate_up`, the concatenation of gate and up
/// ([`Backend::concat_rows`]). Biases and activation are those of `weights`.
///
/// # Errors
/// As its parts.
pub fn gather_concat_swiglu<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    (gate_up, weights): (&B::Weight, GateUp<'_, B::Weight>),
    experts: &B::Indices,
) -> Result<B::Tensor> {
    let y = b.gather_linear(x, gate_up, experts)?;
    let width = b.shape(&y).last().copied().unwrap_or(0);
    ensure(width.is_multiple_of(2), "gather_concat_swiglu", "gate_up", "an even number of rows", width)?;
    let halves = [b.slice_last(&y, 0..width / 2)?, b.slice_last(&y, width / 2..width)?];
    gated(b, halves, weights.biases, experts, weights.activation)
}

/// [`Backend::gather_qmm_combine`] as a gather, [`Backend::gather_add`] if there is a bias, and [`Backend::weighted_sum`].
///
/// # Errors
/// As its parts.
pub fn gather_qmm_combine<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    down: Down<'_, B::Weight>,
    experts: &B::Indices,
    weights: &B::Tensor,
) -> Result<B::Tensor> {
    let mut y = b.gather_linear(x, down.weight, experts)?;
    if let Some(bias) = down.bias {
        y = b.gather_add(&y, bias, experts)?;
    }
    b.weighted_sum(&y, weights)
}

/// [`Backend::qmm_swiglu`] as two products, [`Backend::add_vector`] if there are biases, and [`Backend::gated`].
///
/// # Errors
/// As its parts.
pub fn qmm_swiglu<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    weights: GateUp<'_, B::Weight>,
) -> Result<B::Tensor> {
    let (mut gate, mut up) = (b.linear(x, weights.gate)?, b.linear(x, weights.up)?);
    if let Some([of_gate, of_up]) = weights.biases {
        (gate, up) = (b.add_vector(&gate, of_gate)?, b.add_vector(&up, of_up)?);
    }
    b.gated(&gate, &up, weights.activation)
}

/// [`Backend::gather_qmm_swiglu_shared`] as [`Backend::gather_qmm_swiglu`] and [`Backend::qmm_swiglu`].
///
/// # Errors
/// As its parts.
pub fn gather_qmm_swiglu_shared<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    weights: GateUp<'_, B::Weight>,
    shared: GateUp<'_, B::Weight>,
    experts: &B::Indices,
) -> Result<(B::Tensor, B::Tensor)> {
    Ok((b.gather_qmm_swiglu(x, weights, experts)?, b.qmm_swiglu(x, shared)?))
}

/// [`Backend::gather_qmm_combine_shared`] as [`Backend::gather_qmm_combine`], [`Backend::linear`] and [`Backend::add`].
///
/// # Errors
/// As its parts.
pub fn gather_qmm_combine_shared<B: Backend + ?Sized>(
    b: &B,
    [x, of_shared]: [&B::Tensor; 2],
    down: Down<'_, B::Weight>,
    shared: &B::Weight,
    experts: &B::Indices,
    weights: &B::Tensor,
) -> Result<B::Tensor> {
    let y = b.gather_qmm_combine(x, down, experts, weights)?;
    b.add(&y, &b.linear(of_shared, shared)?)
}

/// [`Backend::add_rms_norm`] as [`Backend::add`] and [`Backend::rms_norm`].
///
/// # Errors
/// As its parts.
pub fn add_rms_norm<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    residual: &B::Tensor,
    weight: &B::Weight,
    eps: f32,
) -> Result<(B::Tensor, B::Tensor)> {
    let sum = b.add(x, residual)?;
    let normed = b.rms_norm(&sum, weight, eps)?;
    Ok((sum, normed))
}

/// [`Backend::rms_norm_gated`] as [`Backend::rms_norm`] and [`Backend::gated`].
///
/// # Errors
/// As its parts.
pub fn rms_norm_gated<B: Backend + ?Sized>(
    b: &B,
    x: &B::Tensor,
    gate: &B::Tensor,
    weight: &B::Weight,
    eps: f32,
) -> Result<B::Tensor> {
    b.gated(gate, &b.rms_norm(x, weight, eps)?, Activation::SwiGlu)
}

/// [`Backend::route_softmax_top_k`] as softmax, top-k, take and division, or as a stock engine does it
/// ([`Backend::stock_routers`]).
///
/// # Errors
/// As its parts.
pub fn route_softmax_top_k<B: Backend + ?Sized>(
    b: &B,
    logits: &B::Tensor,
    settings: &SoftmaxTopK,
) -> Result<(B::Indices, B::Tensor)> {
    if let Some(routers) = b.stock_routers() {
        return routers.softmax_top_k(logits, settings);
    }
    let p = b.softmax(logits)?;
    let experts = b.top_k(&p, settings.top_k)?;
    let weights = b.take_last(&p, &experts)?;
    match settings.renormalize {
        Renormalize::Yes => Ok((experts, b.div_by_sum(&weights, 0.0)?)),
        Renormalize::No => Ok((experts, weights)),
    }
}

/// [`Backend::route_noaux_tc`] as sigmoid, sum, group choice, top-k, take, division and scale, or as a stock engine does it
/// ([`Backend::stock_routers`]).
///
/// # Errors
/// As its parts.
pub fn route_noaux_tc<B: Backend + ?Sized>(
    b: &B,
    logits: &B::Tensor,
    bias: &B::Weight,
    settings: &NoauxTc,
) -> Result<(B::Indices, B::Tensor)> {
    if let Some(routers) = b.stock_routers() {
        return routers.noaux_tc(logits, bias, settings);
    }
    let scores = b.sigmoid(logits)?;
    let mut sel = b.add_vector(&scores, bias)?;
    if settings.n_group > 1 {
        sel = b.keep_top_groups(&sel, settings.n_group, settings.topk_group)?;
    }
    let experts = b.top_k(&sel, settings.top_k)?;
    let mut weights = b.take_last(&scores, &experts)?;
    if settings.top_k > 1 && settings.renormalize == Renormalize::Yes {
        weights = b.div_by_sum(&weights, settings.eps)?;
    }
    Ok((experts, b.scale(&weights, settings.routed_scaling_factor)?))
}

/// [`Backend::norm_rope`] as [`Backend::rms_norm`] and [`Backend::rope`] of queries and of keys.
///
/// # Errors
/// As its parts.
pub fn norm_rope<B: Backend + ?Sized>(
    b: &B,
    inputs: NormRope<'_, B::Tensor, B::Weight>,
    step: &B::Step,
    rope: &Rope,
) -> Result<(B::Tensor, B::Tensor)> {
    let q = b.rms_norm(inputs.q, inputs.q_norm, inputs.eps)?;
    let k = b.rms_norm(inputs.k, inputs.k_norm, inputs.eps)?;
    Ok((b.rope(&q, step, rope)?, b.rope(&k, step, rope)?))
}

/// [`Backend::mla_attention`] as [`Backend::latent_attention`] between two calls of [`Backend::head_linear`].
///
/// # Errors
/// As its parts.
pub fn mla_attention<B: Backend + ?Sized>(
    b: &B,
    inputs: MlaInputs<'_, B::Tensor>,
    weights: MlaWeights<'_, B::Weight>,
    cache: &mut B::Cache,
    step: &B::Step,
    scale: f32,
) -> Result<B::Tensor> {
    let q_latent = b.head_linear(inputs.q_nope, weights.embed_q)?;
    let inputs = MlaInputs { q_nope: &q_latent, ..inputs };
    let latent = b.latent_attention(inputs, cache, step, scale)?;
    b.head_linear(&latent, weights.unembed_out)
}

/// [`Backend::norm_rope_mla`] as [`Backend::rms_norm`] of the latent, [`Backend::rope`] of the key and the queries, and
/// [`Backend::mla_attention`].
///
/// # Errors
/// As its parts.
pub fn norm_rope_mla<B: Backend + ?Sized>(
    b: &B,
    inputs: NormRopeMla<'_, B::Tensor, B::Weight>,
    weights: MlaWeights<'_, B::Weight>,
    cache: &mut B::Cache,
    step: &B::Step,
    rope: &Rope,
) -> Result<B::Tensor> {
    const OP: &str = "norm_rope_mla";
    let NormRopeMla { q, kv_a, kv_norm, eps, rope_dim, scale } = inputs;
    // The widths before the rotated parts.
    let [nope, rank] = [q, kv_a].map(|x| {
        let width = b.shape(x).last().copied().unwrap_or(0);
        ensure(width > rope_dim, OP, "rope_dim", format_args!("less than {width}"), rope_dim)?;
        Ok(width - rope_dim)
    });
    let (nope, rank, n_tokens) = (nope?, rank?, b.n_tokens(step));
    let q_nope = b.slice_last(q, 0..nope)?;
    let q_pe = b.slice_last(q, nope..nope + rope_dim)?;
    let kv = b.rms_norm(&b.slice_last(kv_a, 0..rank)?, kv_norm, eps)?;
    let k_pe = b.slice_last(kv_a, rank..rank + rope_dim)?;
    let k_pe = b.rope(&b.reshape(&k_pe, &[n_tokens, 1, rope_dim])?, step, rope)?;
    let inputs = MlaInputs {
        q_nope: &q_nope,
        q_pe: &b.rope(&q_pe, step, rope)?,
        kv: &kv,
        k_pe: &b.reshape(&k_pe, &[n_tokens, rope_dim])?,
    };
    b.mla_attention(inputs, weights, cache, step, scale)
}

/// [`Backend::linear_parts`] as one product and its columns.
///
/// # Errors
/// As there.
pub fn linear_parts<B: Backend + ?Sized, const N: usize>(
    b: &B,
    x: &B::Tensor,
    weight: &B::Weight,
    widths: [usize; N],
) -> Result<[B::Tensor; N]> {
    let (all, mut end) = (b.linear(x, weight)?, 0);
    let mut parts = Vec::with_capacity(N);
    for width in widths {
        parts.push(b.slice_last(&all, end..end + width)?);
        end += width;
    }
    parts.try_into().map_err(|_| unreachable!("there is one for each width"))
}

/// [`Backend::held_experts`] on the host.
///
/// # Errors
/// As there.
pub fn held_experts<B: Backend + ?Sized>(
    b: &B,
    experts: &B::Indices,
    weights: &B::Tensor,
    held: Range<usize>,
) -> Result<(B::Indices, B::Tensor)> {
    const OP: &str = "held_experts";
    ensure(!held.is_empty(), OP, "held", "at least one expert", &held)?;
    let (mut chosen, mut factors, shape) = (Vec::new(), Vec::new(), b.shape(weights));
    b.read_indices(experts, &mut chosen)?;
    b.read(weights, &mut factors)?;
    ensure(
        shape.len() == 2 && chosen.len() == factors.len(),
        OP,
        "weights",
        "[n, top_k], as experts",
        &shape,
    )?;
    for (expert, factor) in chosen.iter_mut().zip(&mut factors) {
        let is_held = held.contains(&(*expert as usize));
        *expert = if is_held { *expert - held.start as u32 } else { 0 };
        *factor = if is_held { *factor } else { 0.0 };
    }
    Ok((b.indices(&chosen, &shape)?, b.tensor(&factors, &shape)?))
}

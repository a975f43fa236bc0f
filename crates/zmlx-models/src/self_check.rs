//! Compares each fused op with its composition, on the weights of a loaded model.

use std::fmt;

use zmlx_kernels::{
    Backend, ExpertFusion, Fusion, FusionPart, HostWeight, Logits, Op, SoftmaxRoute, Span, stock,
};
use zmlx_moe::{Mlp, MoeBlock, Router, Routing};

use crate::architecture::{FeedForwardSpec, MixerSpec, MlpSpec, MoeSpec};
use crate::attention::{Attention, Rows};
use crate::layer::FeedForward;
use crate::{Model, PoolOptions, Result};

/// The largest difference between a fused op and its composition that is accepted: see [`Outcome::Agrees`].
///
/// With activations in bf16 the composition rounds each intermediate result to 8 bits, where the fused op may round
/// once: gate, up, SiLU, product, and each of a token's summed experts, by 2^-9 each. 2^-5 leaves room for all of them
/// to point in the same direction. A value from a wrong kernel differs by about 1.
pub const MAX_DIFFERENCE: f64 = 1.0 / 32.0;

/// The result of a self-check.
#[derive(Clone, Debug)]
pub struct SelfCheck {
    /// One entry for each fused op that was requested and that the model has.
    pub ops: Vec<OpCheck>,
    /// The requested fusion, without the ops that failed.
    pub fusion: Fusion,
}

impl SelfCheck {
    /// Whether every op agrees with its composition.
    pub fn passed(&self) -> bool {
        self.ops.iter().all(|op| op.outcome.is_sound())
    }

    /// The first op that ended with an error.
    pub fn failed(&self) -> Option<&OpCheck> {
        self.ops.iter().find(|op| matches!(op.outcome, Outcome::Failed { .. }))
    }
}

/// The check of a fused op in one shape, over all layers with that shape.
#[derive(Clone, Debug)]
pub struct OpCheck {
    /// The part of a [`Fusion`] that it belongs to.
    pub part: FusionPart,
    /// The op that was compared.
    pub op: Op,
    /// The widths of the op's input and output.
    pub shape: String,
    /// The layer with the largest difference, or the first layer that failed.
    pub layer_idx: usize,
    /// Number of layers that were compared.
    pub n_layers: usize,
    /// The result.
    pub outcome: Outcome,
}

/// Whether a fused op and its composition agree.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// They agree.
    Agrees {
        /// The largest `|fused - composed| / (|composed| + r)` of all values, where r is the root mean square of
        /// `composed`.
        difference: f64,
    },
    /// They differ by more than [`MAX_DIFFERENCE`], or the result is not a number.
    Differs {
        /// As in [`Outcome::Agrees`].
        difference: f64,
    },
    /// The fused op ended with an error, but its composition did not.
    Failed {
        /// The error.
        why: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agrees { difference: 0.0 } => f.write_str("ok (equal)"),
            Self::Agrees { difference } => write!(f, "ok (differs by {difference:.1e})"),
            Self::Differs { difference } => {
                write!(f, "differs by {difference:.1e}, at most {MAX_DIFFERENCE:.1e} is allowed")
            }
            Self::Failed { why } => write!(f, "failed: {why}"),
        }
    }
}

/// Computes one token on every layer. Each op that `wanted` fuses is computed both ways. Logs a warning for each op
/// that fails.
///
/// It takes as long as a few decoded tokens.
///
/// # Errors
/// If the model cannot be computed without fused ops.
pub fn self_check<B: Backend>(model: &Model<B>, wanted: &Fusion) -> Result<SelfCheck> {
    let b = &*model.backend;
    let mut check = Checker { b, wanted, eps: model.eps, layer_idx: 0, ops: Vec::new() };
    // One sequence for the stock attention, and one for the fused attention.
    let mut pool = model.pool(PoolOptions::default())?;
    let token = (model.architecture.vocab_size / 2) as u32;
    let ids = b.indices(&[token], &[1])?;
    let mut h = model.enter(&ids, 1)?;
    let inputs = model.per_layer_inputs.as_ref().map(|of| of.of(b, &ids, &h, model.eps)).transpose()?;
    let Some(first) = model.layers.first() else { return Ok(check.finish()) };
    let mut x = b.rms_norm(&h, &first.input_norm, model.eps)?;
    let specs = &model.architecture.layers;
    for (layer_idx, ((layer, spec), cache)) in model.layers.iter().zip(specs).zip(&model.cache_of).enumerate()
    {
        check.layer_idx = layer_idx;
        let cache = &mut pool.caches[*cache];
        let mut attend = |slot: usize, fusion: &Fusion| {
            b.reserve(cache, slot, 1)?;
            let step = b.step(&[Span { slot, start: 0, n_tokens: 1, logits: Logits::Last }])?;
            layer.attention.forward(b, &x, (&mut *cache, &step), Rows::All, fusion)
        };
        let y = attend(0, &Fusion::STOCK)?;
        if let MixerSpec::Delta(a) = &spec.mixer {
            let shape = format!("{} → {}", model.architecture.hidden_size, a.n_projected());
            check.tensor((FusionPart::Qkv, Op::LINEAR), &shape, &y, |fusion| attend(1, fusion))?;
        }
        if let MixerSpec::Latent(a) = &spec.mixer
            && let Some(width) = a.qkv_a_width()
        {
            let shape = format!("{} → {width}", model.architecture.hidden_size);
            check.tensor((FusionPart::Qkv, Op::LINEAR), &shape, &y, |fusion| attend(1, fusion))?;
        }
        if let MixerSpec::Attention(a) = &spec.mixer {
            let shape = format!("{} → {}", model.architecture.hidden_size, a.qkv_width());
            check.tensor((FusionPart::Qkv, Op::LINEAR), &shape, &y, |fusion| attend(1, fusion))?;
        }
        if let MixerSpec::Latent(a) = &spec.mixer {
            let shape = format!("{} heads, {} + {}", a.n_heads, a.rank, a.rope_dim);
            check.latent(&layer.attention, cache, &x, &shape)?;
        }
        let y = model.normed(b.all_sum(y)?, layer.extras.mixer_norm.as_ref())?;
        (h, x) = check.add_norm(&h, &y, &layer.post_norm)?;
        let y = match (&layer.feed_forward, &spec.feed_forward) {
            (FeedForward::Dense(mlp), FeedForwardSpec::Dense(spec)) => check.mlp(mlp, spec, &x)?,
            (FeedForward::Moe(moe), FeedForwardSpec::Moe(spec)) => check.moe(moe, spec, [&x, &x])?,
            (FeedForward::Beside(beside), FeedForwardSpec::Beside(spec)) => {
                let y = model.normed(check.mlp(&beside.mlp, &spec.mlp, &x)?, Some(&beside.mlp_norm))?;
                let x = b.rms_norm(&h, &beside.moe_input_norm, model.eps)?;
                let of_experts = check.moe(&beside.moe, &spec.moe, [&h, &x])?;
                b.add(&y, &model.normed(of_experts, Some(&beside.moe_norm))?)?
            }
            _ => unreachable!("a layer is made from its spec"),
        };
        let next_norm = match (model.layers.get(layer_idx + 1), &model.end) {
            (Some(next), _) => &next.input_norm,
            (None, Some(end)) => &end.norm,
            (None, None) => &layer.input_norm,
        };
        let y = model.normed(b.all_sum(y)?, layer.extras.feed_forward_norm.as_ref())?;
        if layer.extras.ends_with_sum() {
            (h, x) = check.add_norm(&h, &y, next_norm)?;
        } else {
            h = model.end_of_layer(layer, b.add(&h, &y)?, |width| {
                let input = |inputs| b.slice_last(inputs, layer_idx * width..(layer_idx + 1) * width);
                inputs.as_ref().map(input).transpose()
            })?;
            x = b.rms_norm(&h, next_norm, model.eps)?;
        }
    }
    if model.end.is_none() {
        // The next rank checks its layers with what this one has computed.
        model.pass_on(&h, 0)?;
    } else {
        // What another rank has sent must be received, even if nothing of it was compared.
        b.wait(&h)?;
    }
    Ok(check.finish())
}

/// The name of an MLP's shapes in reports.
fn mlp_shape(spec: &MlpSpec) -> String {
    format!("{} → {}", spec.gate.n_in, spec.gate.n_out)
}

struct Checker<'a, B> {
    b: &'a B,
    wanted: &'a Fusion,
    eps: f32,
    layer_idx: usize,
    /// Each check, with the layer in which it was last compared.
    ops: Vec<(OpCheck, usize)>,
}

impl<B: Backend> Checker<'_, B> {
    /// The fusion of only that part, as it is wanted; `None` if it is not wanted.
    fn only(&self, part: FusionPart) -> Option<Fusion> {
        // The experimental routes are compositions, so nothing is fused.
        if part == FusionPart::Route && self.wanted.softmax_route != SoftmaxRoute::Probabilities {
            return None;
        }
        let fusion = Fusion::STOCK.with(part, self.wanted);
        (fusion != Fusion::STOCK).then_some(fusion)
    }

    /// Compares the result of `compute`, which uses the fused op `op`, with `want`, the result without it.
    fn tensor(
        &mut self,
        (part, op): (FusionPart, Op),
        shape: &str,
        want: &B::Tensor,
        compute: impl FnOnce(&Fusion) -> zmlx_kernels::Result<B::Tensor>,
    ) -> Result<()> {
        let Some(fusion) = self.only(part) else { return Ok(()) };
        let want = read(self.b, want)?;
        let got = compute(&fusion).and_then(|y| read(self.b, &y));
        self.record((part, op), shape, got.map(|got| difference(&got, &want)));
        Ok(())
    }

    fn add_norm(
        &mut self,
        h: &B::Tensor,
        y: &B::Tensor,
        weight: &B::Weight,
    ) -> Result<(B::Tensor, B::Tensor)> {
        const CHECKED: (FusionPart, Op) = (FusionPart::AddRmsNorm, Op::ADD_RMS_NORM);
        let (b, eps) = (self.b, self.eps);
        let (sum, normed) = stock::add_rms_norm(b, h, y, weight, eps)?;
        let shape = b.shape(h).last().copied().unwrap_or(0).to_string();
        self.tensor(CHECKED, &shape, &sum, |_| Ok(b.add_rms_norm(h, y, weight, eps)?.0))?;
        self.tensor(CHECKED, &shape, &normed, |_| Ok(b.add_rms_norm(h, y, weight, eps)?.1))?;
        Ok((sum, normed))
    }

    /// Latent attention: two tokens of a sequence, then one more beside the first of another. Scores matter only among different
    /// tokens, and kernels may differ with the number of sequences.
    fn latent(
        &mut self,
        attention: &Attention<B::Weight>,
        cache: &mut B::Cache,
        x: &B::Tensor,
        shape: &str,
    ) -> Result<()> {
        let Some(fusion) = self.only(FusionPart::Qkv) else { return Ok(()) };
        let b = self.b;
        let rows = two_rows(b, x)?;
        let mut attend = |[slot, other]: [usize; 2], fusion: &Fusion| {
            let mut run = |spans: &[Span]| {
                spans.iter().try_for_each(|s| b.reserve(cache, s.slot, s.start + s.n_tokens))?;
                let step = b.step(spans)?;
                let y = attention.forward(b, &rows, (&mut *cache, &step), Rows::All, fusion)?;
                b.commit(cache, &step);
                read(b, &y)
            };
            let span = |slot, start, n_tokens| Span { slot, start, n_tokens, logits: Logits::Last };
            Ok([run(&[span(slot, 0, 2)])?, run(&[span(slot, 2, 1), span(other, 0, 1)])?])
        };
        let want = attend([2, 3], &Fusion::STOCK)?;
        let got: zmlx_kernels::Result<[Vec<f32>; 2]> = attend([4, 5], &fusion);
        let result = got.map(|got| worse(difference(&got[0], &want[0]), difference(&got[1], &want[1])));
        self.record((FusionPart::Qkv, Op::NORM_ROPE_MLA), shape, result);
        Ok(())
    }

    fn mlp(&mut self, mlp: &Mlp<B::Weight>, spec: &MlpSpec, x: &B::Tensor) -> Result<B::Tensor> {
        let y = mlp.forward(self.b, x, &Fusion::STOCK)?;
        let (b, shape) = (self.b, &mlp_shape(spec));
        let checked = (FusionPart::DenseSwiglu, Op::QMM_SWIGLU);
        self.tensor(checked, shape, &y, |fusion| mlp.forward(b, x, fusion))?;
        Ok(y)
    }

    /// A mixture whose router sees `to_route` and whose experts see `x`.
    fn moe(
        &mut self,
        moe: &MoeBlock<B::Weight>,
        spec: &MoeSpec,
        [to_route, x]: [&B::Tensor; 2],
    ) -> Result<B::Tensor> {
        let b = self.b;
        let (top_k, n_experts) = (spec.router.top_k(), spec.experts.n_experts);
        let (hidden, inter) = (spec.experts.hidden, spec.experts.inter);
        let chosen_of = format!("{top_k} of {n_experts}");
        let up = format!("{hidden} → {inter}, {chosen_of}");
        let down = format!("{inter} → {hidden}, {chosen_of}");
        let routing = moe.router.route(b, to_route, &Fusion::STOCK)?;
        if let Some(fusion) = self.only(FusionPart::Route) {
            let op = match &moe.router {
                Router::SoftmaxTopK { .. } | Router::SoftmaxOfChosen { .. } => Op::ROUTE_SOFTMAX_TOP_K,
                Router::NoauxTc { .. } => Op::ROUTE_NOAUX_TC,
            };
            let want = choices(b, &routing)?;
            let got = moe.router.route(b, to_route, &fusion).and_then(|routing| choices(b, &routing));
            let result = got.map(|got| {
                let part = |i: usize| difference(&got[i], &want[i]);
                worse(part(0), part(1))
            });
            self.record((FusionPart::Route, op), &chosen_of, result);
        }
        let chosen = (&routing.experts, &routing.weights);
        let mut y = moe.experts.forward(b, x, chosen, &Fusion::STOCK)?;
        let experts = match self.wanted.experts {
            ExpertFusion::Fused => Op::GATHER_QMM_SWIGLU,
            ExpertFusion::Concat | ExpertFusion::Stock => Op::GATHER_LINEAR,
        };
        let checked =
            [((FusionPart::Experts, experts), &up), ((FusionPart::Combine, Op::GATHER_QMM_COMBINE), &down)];
        for (checked, shape) in checked {
            self.tensor(checked, shape, &y, |fusion| moe.experts.forward(b, x, chosen, fusion))?;
        }
        if let (Some(shared), Some(spec)) = (&moe.shared, &spec.shared) {
            let mut of_shared = self.mlp(shared, spec, x)?;
            if let Some(gate) = &moe.shared_gate {
                of_shared = b.mul_sigmoid(&of_shared, &b.linear(x, gate)?)?;
            }
            y = b.add(&y, &of_shared)?;
            if moe.takes_shared(b, self.wanted) {
                let result = moe.experts.forward_with(shared, b, x, chosen).and_then(|y| read(b, &y));
                let want = read(b, &y)?;
                let checked = (FusionPart::DenseSwiglu, Op::GATHER_QMM_COMBINE_SHARED);
                self.record(checked, &format!("{down} and 1"), result.map(|got| difference(&got, &want)));
            }
        }
        Ok(y)
    }

    /// Keeps the worst result for an op in a shape.
    fn record(&mut self, (part, op): (FusionPart, Op), shape: &str, result: zmlx_kernels::Result<f64>) {
        let outcome = match result {
            // This is false if it is NaN.
            Ok(difference) if difference <= MAX_DIFFERENCE => Outcome::Agrees { difference },
            Ok(difference) => Outcome::Differs { difference },
            Err(e) => Outcome::Failed { why: e.to_string() },
        };
        let layer_idx = self.layer_idx;
        match self.ops.iter_mut().find(|(c, _)| c.part == part && c.op == op && c.shape == shape) {
            None => {
                let shape = shape.to_owned();
                self.ops.push((OpCheck { part, op, shape, layer_idx, n_layers: 1, outcome }, layer_idx));
            }
            Some((known, last)) => {
                known.n_layers += usize::from(*last != layer_idx);
                *last = layer_idx;
                if outcome.is_worse_than(&known.outcome) {
                    (known.layer_idx, known.outcome) = (layer_idx, outcome);
                }
            }
        }
    }

    fn finish(self) -> SelfCheck {
        let mut fusion = *self.wanted;
        let ops: Vec<OpCheck> = self.ops.into_iter().map(|(check, _)| check).collect();
        for check in &ops {
            if check.outcome.is_sound() {
                continue;
            }
            tracing::warn!(
                "{} ({}) on the {} backend, layer {}: {}: {} is switched off",
                check.op.name,
                check.shape,
                self.b.name(),
                check.layer_idx,
                check.outcome,
                check.part.name()
            );
            fusion = fusion.with(check.part, &Fusion::STOCK);
        }
        SelfCheck { ops, fusion }
    }
}

impl Outcome {
    /// Whether the op may be used.
    pub fn is_sound(&self) -> bool {
        matches!(self, Self::Agrees { .. })
    }

    fn is_worse_than(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Failed { .. }) => false,
            (Self::Failed { .. }, _) => true,
            (
                Self::Agrees { difference } | Self::Differs { difference },
                Self::Agrees { difference: known } | Self::Differs { difference: known },
            ) => difference.is_nan() || difference > known,
        }
    }
}

/// A token's activations, and others of the same size, as those of two tokens.
fn two_rows<B: Backend>(b: &B, x: &B::Tensor) -> zmlx_kernels::Result<B::Tensor> {
    let mut values = read(b, x)?;
    let width = values.len();
    values.extend_from_within(1..);
    values.push(values[0]);
    values[width..].iter_mut().for_each(|v| *v = -*v);
    let table = b.upload(HostWeight::from_f32(&values, 2, width)?.to_bf16())?;
    b.embed(&table, &b.indices(&[0, 1], &[2])?)
}

fn read<B: Backend>(b: &B, x: &B::Tensor) -> zmlx_kernels::Result<Vec<f32>> {
    let mut values = Vec::new();
    b.read(x, &mut values)?;
    Ok(values)
}

/// The logits and the weights of the chosen experts, in the order of the logits. Experts with equal logits may be
/// exchanged, others may not. The order in which experts were chosen does not matter.
fn choices<B: Backend>(b: &B, routing: &Routing<B>) -> zmlx_kernels::Result<[Vec<f32>; 2]> {
    let (logits, weights) = (read(b, &routing.logits)?, read(b, &routing.weights)?);
    let mut experts = Vec::new();
    b.read_indices(&routing.experts, &mut experts)?;
    let logit = |e: &u32| logits.get(*e as usize).copied().unwrap_or(f32::NAN);
    let mut chosen: Vec<(f32, f32)> = experts.iter().map(logit).zip(weights).collect();
    chosen.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    Ok([chosen.iter().map(|c| c.0).collect(), chosen.iter().map(|c| c.1).collect()])
}

/// The difference of [`Outcome::Agrees`]; infinite if the numbers of values differ, NaN if a value is not a number.
fn difference(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let power: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    let rms = (power / want.len().max(1) as f64).sqrt();
    let of = |(g, w): (&f32, &f32)| match f64::from(*g) - f64::from(*w) {
        0.0 => 0.0,
        error => error.abs() / (f64::from(*w).abs() + rms),
    };
    got.iter().zip(want).map(of).fold(0.0, worse)
}

/// The larger one. NaN is larger than any number.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        assert_eq!(difference(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert_eq!(difference(&[0.0; 3], &[0.0; 3]), 0.0);
        // One of the four values is wrong by 2: 2 / (|1| + 1).
        assert_eq!(difference(&[1.0, 1.0, -1.0, 1.0], &[1.0; 4]), 1.0);
        assert_eq!(difference(&[1.0], &[1.0, 1.0]), f64::INFINITY);
        for (got, want) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
            assert!(difference(&[got, 1.0, 5.0], &[want, 1.0, 1.0]).is_nan(), "{got} {want}");
        }
    }
}

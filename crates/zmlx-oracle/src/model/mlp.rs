//! The MLP modules: dense, and mixtures of experts.

use candle_core::{DType, Device, Tensor};

use super::gemma::GemmaMlp;
use super::layers::{Linear, to_slice, to_tensor};
use super::trace::Recorder;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{Activation, NoauxTc, Routing, SoftmaxTopK, gated, mul_sigmoid, noaux_tc, softmax_top_k};
use crate::plan::{MlpPlan, MoePlan, RouterPlan};

/// An MLP module of either kind.
#[derive(Debug)]
pub(super) enum Mlp {
    Dense(Dense),
    Moe(Box<Moe>),
    Gemma(Box<GemmaMlp>),
}

impl Mlp {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        plan: &MlpPlan,
        (hidden, eps): (usize, f64),
    ) -> Result<Self> {
        Ok(match plan {
            MlpPlan::Dense(inner) => {
                Self::Dense(Dense::load(checkpoint, path, [hidden, *inner], Activation::SwiGlu)?)
            }
            MlpPlan::Moe(plan) => Self::Moe(Box::new(Moe::load(checkpoint, path, plan, hidden)?)),
            MlpPlan::Gemma(inner, moe) => {
                let plans = (*inner, moe.as_ref());
                Self::Gemma(Box::new(GemmaMlp::load(checkpoint, path, plans, hidden, eps)?))
            }
        })
    }

    /// `h [n_tokens, hidden]` is the residual stream, `x` its norm → `[n_tokens, hidden]`.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        x: &Tensor,
        layer_idx: usize,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::Moe(moe) => moe.forward(x, layer_idx, recorder),
            Self::Gemma(mlp) => mlp.forward(h, x, layer_idx, recorder),
        }
    }
}

/// `down_proj(activation(gate_proj(x), up_proj(x)))`.
#[derive(Debug)]
pub(super) struct Dense {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: Activation,
}

impl Dense {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        [hidden, intermediate]: [usize; 2],
        activation: Activation,
    ) -> Result<Self> {
        let linear = |part: &str, out, input| Linear::load(checkpoint, &format!("{path}.{part}"), out, input);
        Ok(Self {
            gate_proj: linear("gate_proj", intermediate, hidden)?,
            up_proj: linear("up_proj", intermediate, hidden)?,
            down_proj: linear("down_proj", hidden, intermediate)?,
            activation,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        let inner = gated(&to_slice(&gate)?, &to_slice(&up)?, self.activation);
        self.down_proj.forward(&to_tensor(&inner, gate.dims())?)
    }
}

/// `Σ_k weight_k · expert_k(x)`, plus `shared_experts(x)` if there are any.
#[derive(Debug)]
pub(super) struct Moe {
    gate: Linear,
    router: Router,
    experts: Vec<Dense>,
    shared_experts: Option<Dense>,
    shared_expert_gate: Option<Linear>,
}

#[derive(Debug)]
enum Router {
    Softmax(SoftmaxTopK),
    NoauxTc(NoauxTc, Vec<f32>),
}

impl Moe {
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, plan: &MoePlan, hidden: usize) -> Result<Self> {
        let n_experts = plan.router.n_experts();
        let router = match plan.router {
            RouterPlan::Softmax(router) => Router::Softmax(router),
            // exp(l_i) divided by the sum over the chosen equals the probability divided by the sum of theirs.
            RouterPlan::SoftmaxOfChosen { n_experts, top_k } => {
                Router::Softmax(SoftmaxTopK { n_experts, top_k, norm_topk_prob: true })
            }
            RouterPlan::NoauxTc(router, bias) => {
                let name = format!("{path}.{bias}");
                let bias = if bias.is_empty() {
                    vec![0.0; n_experts]
                } else {
                    checkpoint.floats(&name, &[n_experts])?
                };
                Router::NoauxTc(router, bias)
            }
        };
        let [gate_proj, up_proj, down_proj] = checkpoint.experts(path, [n_experts, plan.inner, hidden])?;
        let biases = checkpoint.expert_biases(path, [n_experts, plan.inner, hidden])?;
        let bias = |i: usize, e: usize| biases.as_ref().map(|of| of[i].get(e)).transpose();
        let experts = (0..n_experts)
            .map(|e| {
                Ok(Dense {
                    gate_proj: Linear::from_parts(gate_proj.get(e)?, bias(0, e)?),
                    up_proj: Linear::from_parts(up_proj.get(e)?, bias(1, e)?),
                    down_proj: Linear::from_parts(down_proj.get(e)?, bias(2, e)?),
                    activation: plan.activation,
                })
            })
            .collect::<Result<_>>()?;
        let shared_experts = match plan.shared_inner {
            0 => None,
            inner => {
                let name = if plan.shared_gate { "shared_expert" } else { "shared_experts" };
                let path = format!("{path}.{name}");
                Some(Dense::load(checkpoint, &path, [hidden, inner], plan.activation)?)
            }
        };
        let shared_expert_gate =
            || Linear::load(checkpoint, &format!("{path}.shared_expert_gate"), 1, hidden);
        let shared_expert_gate = plan.shared_gate.then(shared_expert_gate).transpose()?;
        let gate = Linear::load(checkpoint, &format!("{path}.{}", plan.gate), n_experts, hidden)?;
        Ok(Self { gate, router, experts, shared_experts, shared_expert_gate })
    }

    fn forward(&self, x: &Tensor, layer_idx: usize, recorder: &mut Recorder) -> Result<Tensor> {
        self.forward_with(x, x, &[], layer_idx, recorder)
    }

    /// The router sees `to_route`, and the experts see `x`. Each expert's weight is multiplied by its factor, if there
    /// are factors.
    pub(super) fn forward_with(
        &self,
        to_route: &Tensor,
        x: &Tensor,
        factors: &[f32],
        layer_idx: usize,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        let logits = self.gate.forward(to_route)?;
        recorder.record(format!("layers.{layer_idx}.router_logits"), &logits)?;
        let logits = to_slice(&logits)?;
        let (mut routing, top_k) = match &self.router {
            Router::Softmax(router) => (softmax_top_k(&logits, *router), router.top_k),
            Router::NoauxTc(router, bias) => (noaux_tc(&logits, bias, *router), router.top_k),
        };
        if !factors.is_empty() {
            for (weight, &expert) in routing.weights.iter_mut().zip(&routing.indices) {
                *weight *= f64::from(factors[expert as usize]);
            }
        }
        recorder.record_routing(layer_idx, top_k, &routing);
        let mut y = Tensor::zeros(x.dims(), DType::F32, &Device::Cpu)?;
        for (expert_idx, expert) in self.experts.iter().enumerate() {
            y = add_expert(&y, x, expert, tokens_of(&routing, expert_idx, top_k))?;
        }
        match &self.shared_experts {
            Some(shared) => {
                let out = shared.forward(x)?;
                Ok(match &self.shared_expert_gate {
                    Some(gate) => {
                        let out = mul_sigmoid(&to_slice(&out)?, &to_slice(&gate.forward(x)?)?);
                        (y + to_tensor(&out, x.dims())?)?
                    }
                    None => (y + out)?,
                })
            }
            None => Ok(y),
        }
    }
}

/// The tokens that chose an expert, and their weights for it.
fn tokens_of(routing: &Routing, expert_idx: usize, top_k: usize) -> (Vec<u32>, Vec<f32>) {
    let slots = routing.indices.iter().zip(&routing.weights).enumerate();
    slots
        .filter(|(_, (chosen, _))| **chosen as usize == expert_idx)
        .map(|(slot, (_, &weight))| ((slot / top_k) as u32, weight as f32))
        .unzip()
}

/// Returns `y` with `weight · expert(x)` added to the rows of the tokens that chose the expert.
fn add_expert(
    y: &Tensor,
    x: &Tensor,
    expert: &Dense,
    (tokens, weights): (Vec<u32>, Vec<f32>),
) -> Result<Tensor> {
    if tokens.is_empty() {
        return Ok(y.clone());
    }
    let n = tokens.len();
    let tokens = Tensor::from_vec(tokens, n, &Device::Cpu)?;
    let weights = Tensor::from_vec(weights, (n, 1), &Device::Cpu)?;
    let out = expert.forward(&x.index_select(&tokens, 0)?)?.broadcast_mul(&weights)?;
    Ok(y.index_add(&tokens, &out, 0)?)
}

//! The MLP modules: dense, and mixtures of experts.

use candle_core::{DType, Device, Tensor};

use super::layers::{Linear, to_slice, to_tensor};
use super::trace::Recorder;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{NoauxTc, Routing, SoftmaxTopK, mul_sigmoid, noaux_tc, softmax_top_k, swiglu};
use crate::plan::{MlpPlan, MoePlan, RouterPlan};

/// An MLP module of either kind.
#[derive(Debug)]
pub(super) enum Mlp {
    Dense(Dense),
    Moe(Box<Moe>),
}

impl Mlp {
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, plan: &MlpPlan, hidden: usize) -> Result<Self> {
        Ok(match plan {
            MlpPlan::Dense(inner) => Self::Dense(Dense::load(checkpoint, path, hidden, *inner)?),
            MlpPlan::Moe(plan) => Self::Moe(Box::new(Moe::load(checkpoint, path, plan, hidden)?)),
        })
    }

    /// `x [n_tokens, hidden]`, already normed, → `[n_tokens, hidden]`.
    pub(super) fn forward(&self, x: &Tensor, layer_idx: usize, recorder: &mut Recorder) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x),
            Self::Moe(moe) => moe.forward(x, layer_idx, recorder),
        }
    }
}

/// `down_proj(silu(gate_proj(x)) · up_proj(x))`.
#[derive(Debug)]
pub(super) struct Dense {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Dense {
    fn load(checkpoint: &Checkpoint, path: &str, hidden: usize, intermediate: usize) -> Result<Self> {
        let linear = |part: &str, out, input| Linear::load(checkpoint, &format!("{path}.{part}"), out, input);
        Ok(Self {
            gate_proj: linear("gate_proj", intermediate, hidden)?,
            up_proj: linear("up_proj", intermediate, hidden)?,
            down_proj: linear("down_proj", hidden, intermediate)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        let inner = swiglu(&to_slice(&gate)?, &to_slice(&up)?);
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
    fn load(checkpoint: &Checkpoint, path: &str, plan: &MoePlan, hidden: usize) -> Result<Self> {
        let n_experts = plan.router.n_experts();
        let router = match plan.router {
            RouterPlan::Softmax(router) => Router::Softmax(router),
            RouterPlan::NoauxTc(router) => {
                let name = format!("{path}.gate.e_score_correction_bias");
                Router::NoauxTc(router, checkpoint.floats(&name, &[n_experts])?)
            }
        };
        let [gate_proj, up_proj, down_proj] = checkpoint.experts(path, [n_experts, plan.inner, hidden])?;
        let experts = (0..n_experts)
            .map(|e| {
                Ok(Dense {
                    gate_proj: Linear::from_weight(gate_proj.get(e)?),
                    up_proj: Linear::from_weight(up_proj.get(e)?),
                    down_proj: Linear::from_weight(down_proj.get(e)?),
                })
            })
            .collect::<Result<_>>()?;
        let shared_experts = match plan.shared_inner {
            0 => None,
            inner => {
                let name = if plan.shared_gate { "shared_expert" } else { "shared_experts" };
                Some(Dense::load(checkpoint, &format!("{path}.{name}"), hidden, inner)?)
            }
        };
        let shared_expert_gate =
            || Linear::load(checkpoint, &format!("{path}.shared_expert_gate"), 1, hidden);
        let shared_expert_gate = plan.shared_gate.then(shared_expert_gate).transpose()?;
        let gate = Linear::load(checkpoint, &format!("{path}.gate"), n_experts, hidden)?;
        Ok(Self { gate, router, experts, shared_experts, shared_expert_gate })
    }

    fn forward(&self, x: &Tensor, layer_idx: usize, recorder: &mut Recorder) -> Result<Tensor> {
        let logits = self.gate.forward(x)?;
        recorder.record(format!("layers.{layer_idx}.router_logits"), &logits)?;
        let logits = to_slice(&logits)?;
        let (routing, top_k) = match &self.router {
            Router::Softmax(router) => (softmax_top_k(&logits, *router), router.top_k),
            Router::NoauxTc(router, bias) => (noaux_tc(&logits, bias, *router), router.top_k),
        };
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

/// The tokens that chose an expert, and the weights they give it.
fn tokens_of(routing: &Routing, expert_idx: usize, top_k: usize) -> (Vec<u32>, Vec<f32>) {
    let slots = routing.indices.iter().zip(&routing.weights).enumerate();
    slots
        .filter(|(_, (chosen, _))| **chosen as usize == expert_idx)
        .map(|(slot, (_, &weight))| ((slot / top_k) as u32, weight as f32))
        .unzip()
}

/// `y` with `weight · expert(x)` added to the rows of the tokens that chose the expert.
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

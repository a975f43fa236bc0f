//! The MLP modules: dense, and mixtures of experts.

use candle_core::{DType, Device, Tensor};

use super::layers::{Linear, to_slice, to_tensor};
use super::trace::Recorder;
use crate::Result;
use crate::checkpoint::{Checkpoint, ModelConfig};
use crate::ops::{NoauxTc, Routing, SoftmaxTopK, noaux_tc, softmax_top_k, swiglu};

/// An MLP module of either kind.
#[derive(Debug)]
pub(super) enum Mlp {
    Dense(Dense),
    Moe(Box<Moe>),
}

impl Mlp {
    pub(super) fn load(checkpoint: &Checkpoint, path: &str, layer_idx: usize) -> Result<Self> {
        let (hidden, intermediate, is_moe) = match checkpoint.config() {
            ModelConfig::Qwen3Moe(c) => (c.hidden_size, c.intermediate_size, c.is_moe_layer(layer_idx)),
            ModelConfig::Glm4MoeLite(c) => (c.hidden_size, c.intermediate_size, c.is_moe_layer(layer_idx)),
        };
        Ok(if is_moe {
            Self::Moe(Box::new(Moe::load(checkpoint, path)?))
        } else {
            Self::Dense(Dense::load(checkpoint, path, hidden, intermediate)?)
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
}

#[derive(Debug)]
enum Router {
    Softmax(SoftmaxTopK),
    NoauxTc(NoauxTc, Vec<f32>),
}

impl Moe {
    fn load(checkpoint: &Checkpoint, path: &str) -> Result<Self> {
        let (hidden, inner, n_experts, n_shared, router) = match checkpoint.config() {
            ModelConfig::Qwen3Moe(c) => {
                let router = SoftmaxTopK {
                    n_experts: c.num_experts,
                    top_k: c.num_experts_per_tok,
                    norm_topk_prob: c.norm_topk_prob,
                };
                (c.hidden_size, c.moe_intermediate_size, c.num_experts, None, Router::Softmax(router))
            }
            ModelConfig::Glm4MoeLite(c) => {
                let n_experts = c.n_routed_experts.unwrap_or(0);
                let router = NoauxTc {
                    n_experts,
                    top_k: c.num_experts_per_tok,
                    n_group: c.n_group,
                    topk_group: c.topk_group,
                    norm_topk_prob: c.norm_topk_prob,
                    routed_scaling_factor: c.routed_scaling_factor,
                };
                let name = format!("{path}.gate.e_score_correction_bias");
                let router = Router::NoauxTc(router, checkpoint.floats(&name, &[n_experts])?);
                (c.hidden_size, c.moe_intermediate_size, n_experts, c.n_shared_experts, router)
            }
        };
        let gate_proj = checkpoint.experts(path, "gate_proj", [n_experts, inner, hidden])?;
        let up_proj = checkpoint.experts(path, "up_proj", [n_experts, inner, hidden])?;
        let down_proj = checkpoint.experts(path, "down_proj", [n_experts, hidden, inner])?;
        let experts = (0..n_experts)
            .map(|e| {
                Ok(Dense {
                    gate_proj: Linear::from_weight(gate_proj.get(e)?),
                    up_proj: Linear::from_weight(up_proj.get(e)?),
                    down_proj: Linear::from_weight(down_proj.get(e)?),
                })
            })
            .collect::<Result<_>>()?;
        let shared = format!("{path}.shared_experts");
        let shared_experts = match n_shared {
            Some(n) if n > 0 => Some(Dense::load(checkpoint, &shared, hidden, n * inner)?),
            _ => None,
        };
        let gate = Linear::load(checkpoint, &format!("{path}.gate"), n_experts, hidden)?;
        Ok(Self { gate, router, experts, shared_experts })
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
            Some(shared) => Ok((y + shared.forward(x)?)?),
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

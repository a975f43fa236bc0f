//! The parts of Gemma 4 that other families do not have.

use candle_core::Tensor;

use super::layers::{Linear, Norm, to_slice, to_tensor};
use super::mlp::{Dense, Moe};
use super::trace::Recorder;
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::ops::{Activation, gelu_tanh, rms_norm};
use crate::plan::MoePlan;

/// `mlp(x)`, or with experts `rms(mlp(x)) + rms(Σ w · expert(rms(h)))`, where `x = rms(h)`.
#[derive(Debug)]
pub(super) struct GemmaMlp {
    mlp: Dense,
    beside: Option<Beside>,
}

#[derive(Debug)]
struct Beside {
    after_mlp: Norm,
    before_experts: Norm,
    after_experts: Norm,
    moe: Moe,
    /// `scale · hidden^-½`, the weight of the router's norm.
    scale: Vec<f32>,
    eps: f64,
    per_expert_scale: Vec<f32>,
}

impl GemmaMlp {
    /// Loads those of the layer at `path`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        (inner, moe): (usize, Option<&MoePlan>),
        hidden: usize,
        eps: f64,
    ) -> Result<Self> {
        let mlp = Dense::load(checkpoint, &format!("{path}.mlp"), [hidden, inner], Activation::GeGlu)?;
        let norm = |name: &str| Norm::load(checkpoint, &format!("{path}.{name}"), hidden, eps);
        let Some(plan) = moe else { return Ok(Self { mlp, beside: None }) };
        let scale = checkpoint.floats(&format!("{path}.router.scale"), &[hidden])?;
        let beside = Beside {
            after_mlp: norm("post_feedforward_layernorm_1")?,
            before_experts: norm("pre_feedforward_layernorm_2")?,
            after_experts: norm("post_feedforward_layernorm_2")?,
            moe: Moe::load(checkpoint, path, plan, hidden)?,
            scale: scale.iter().map(|s| (f64::from(*s) / (hidden as f64).sqrt()) as f32).collect(),
            eps,
            per_expert_scale: checkpoint
                .floats(&format!("{path}.router.per_expert_scale"), &[plan.router.n_experts()])?,
        };
        Ok(Self { mlp, beside: Some(beside) })
    }

    /// `h [n_tokens, hidden]` is the residual stream, `x` its norm.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        x: &Tensor,
        layer_idx: usize,
        recorder: &mut Recorder,
    ) -> Result<Tensor> {
        let y = self.mlp.forward(x)?;
        let Some(beside) = &self.beside else { return Ok(y) };
        let to_route = to_tensor(&rms_norm(&to_slice(h)?, &beside.scale, beside.eps), h.dims())?;
        let x = beside.before_experts.forward(h)?;
        let of_experts =
            beside.moe.forward_with(&to_route, &x, &beside.per_expert_scale, layer_idx, recorder)?;
        Ok((beside.after_mlp.forward(&y)? + beside.after_experts.forward(&of_experts)?)?)
    }
}

/// The end of a layer: `h += rms(projection(gelu(gate(h)) · input)); h *= layer_scalar`.
#[derive(Debug)]
pub(super) struct GemmaEnd {
    input: Option<(Linear, Linear, Norm)>,
    layer_scalar: f32,
}

impl GemmaEnd {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        path: &str,
        width: Option<usize>,
        hidden: usize,
        eps: f64,
    ) -> Result<Self> {
        let at = |name: &str| format!("{path}.{name}");
        let input = width.map(|width| {
            Ok::<_, crate::Error>((
                Linear::load(checkpoint, &at("per_layer_input_gate"), width, hidden)?,
                Linear::load(checkpoint, &at("per_layer_projection"), hidden, width)?,
                Norm::load(checkpoint, &at("post_per_layer_input_norm"), hidden, eps)?,
            ))
        });
        let scalar = checkpoint.floats(&at("layer_scalar"), &[1])?;
        Ok(Self { input: input.transpose()?, layer_scalar: scalar[0] })
    }

    /// `input` is `[n_tokens, width]`, if the model has one.
    pub(super) fn forward(&self, mut h: Tensor, input: Option<&Tensor>) -> Result<Tensor> {
        if let (Some((gate, projection, norm)), Some(input)) = (&self.input, input) {
            let gate = to_slice(&gate.forward(&h)?)?;
            let inner: Vec<f64> = gate
                .iter()
                .zip(to_slice(input)?)
                .map(|(g, p)| gelu_tanh(f64::from(*g)) * f64::from(p))
                .collect();
            let inner = to_tensor(&inner, input.dims())?;
            h = (&h + norm.forward(&projection.forward(&inner)?)?)?;
        }
        Ok((h * f64::from(self.layer_scalar))?)
    }
}

/// `(rms(projection(h₀) · hidden^-½) + table[id] · √width) · 2^-½` for every layer.
#[derive(Debug)]
pub(super) struct PerLayerInputs {
    /// `[vocab_size, n_layers · width]`
    table: Tensor,
    projection: Linear,
    norm: Norm,
    width: usize,
}

impl PerLayerInputs {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        [vocab_size, n_layers, hidden, width]: [usize; 4],
        eps: f64,
    ) -> Result<Self> {
        let all = n_layers * width;
        Ok(Self {
            table: checkpoint.weight("model.embed_tokens_per_layer", &[vocab_size, all])?,
            projection: Linear::load(checkpoint, "model.per_layer_model_projection", all, hidden)?,
            norm: Norm::load(checkpoint, "model.per_layer_projection_norm", width, eps)?,
            width,
        })
    }

    /// Computes one `[n_tokens, width]` for each layer, from the tokens' ids and their embeddings `[n_tokens, hidden]`.
    pub(super) fn of(&self, ids: &Tensor, embedding: &Tensor) -> Result<Vec<Tensor>> {
        let (n_tokens, hidden) = embedding.dims2()?;
        let projected = (self.projection.forward(embedding)? / (hidden as f64).sqrt())?;
        let n_layers = projected.dim(1)? / self.width;
        let by_layer = self.norm.forward(&projected.reshape((n_tokens, n_layers, self.width))?)?;
        let table = (self.table.index_select(ids, 0)? * (self.width as f64).sqrt())?;
        let all = ((by_layer + table.reshape((n_tokens, n_layers, self.width))?)? / 2f64.sqrt())?;
        (0..n_layers).map(|i| Ok(all.narrow(1, i, 1)?.squeeze(1)?.contiguous()?)).collect()
    }
}

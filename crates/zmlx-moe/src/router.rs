//! Routers: which experts a token goes to, and with which weights.

use zmlx_kernels::{
    Backend, Error, Fusion, NoauxTc, Op, Renormalize, Result, SoftmaxRoute, SoftmaxTopK, stock,
};

/// A linear layer over the hidden state, and the rule that chooses experts from its outputs.
#[derive(Clone, Debug)]
pub enum Router<W> {
    /// Softmax over all experts; the most probable ones are chosen. Qwen3 has it.
    SoftmaxTopK {
        /// `[n_experts, hidden]`.
        gate: W,
        /// The rule's settings.
        settings: SoftmaxTopK,
    },
    /// The largest logits are chosen, and the softmax is over these alone. gpt-oss and Gemma 4 have it.
    SoftmaxOfChosen {
        /// `[n_experts, hidden]`.
        gate: W,
        /// Added to the logits, `[1, n_experts]`.
        bias: Option<W>,
        /// The weight and the epsilon of a norm before the gate, `[1, hidden]`.
        norm: Option<(W, f32)>,
        /// Factors of the experts' weights after the softmax, `[1, n_experts]`.
        factors: Option<W>,
        /// Experts per token.
        top_k: usize,
    },
    /// Sigmoid scores, a correction bias that affects only the choice, and groups of experts. GLM-4 has it.
    NoauxTc {
        /// `[n_experts, hidden]`.
        gate: W,
        /// `e_score_correction_bias`, `[1, n_experts]`.
        bias: W,
        /// The rule's settings.
        settings: NoauxTc,
    },
}

/// The result of a router.
#[derive(Debug)]
pub struct Routing<B: Backend> {
    /// The outputs of the linear layer, before softmax or sigmoid, `[n, n_experts]`.
    pub logits: B::Tensor,
    /// The chosen experts, `[n, top_k]`.
    pub experts: B::Indices,
    /// The weights of their outputs, `[n, top_k]`.
    pub weights: B::Tensor,
}

impl<W> Router<W> {
    /// Chooses experts and weights for each token. **Shapes** x `[n, hidden]`.
    ///
    /// # Errors
    /// If the shapes or settings do not fit, or if [`SoftmaxRoute::ChosenLogits`] is used with weights that are not
    /// renormalised.
    pub fn route<B: Backend<Weight = W>>(&self, b: &B, x: &B::Tensor, fusion: &Fusion) -> Result<Routing<B>> {
        let fused = fusion.route.is_on();
        let (logits, (experts, weights)) = match self {
            Self::SoftmaxTopK { gate, settings } => {
                let logits = b.linear(x, gate)?;
                let chosen = softmax_top_k(b, &logits, settings, fusion)?;
                (logits, chosen)
            }
            Self::SoftmaxOfChosen { gate, bias, norm, factors, top_k } => {
                let mut logits = match norm {
                    Some((weight, eps)) => b.linear(&b.rms_norm(x, weight, *eps)?, gate)?,
                    None => b.linear(x, gate)?,
                };
                if let Some(bias) = bias {
                    logits = b.add_vector(&logits, bias)?;
                }
                // The softmax of the chosen logits equals the softmax of all logits, divided by the sum of the chosen
                // ones.
                let settings = SoftmaxTopK { top_k: *top_k, renormalize: Renormalize::Yes };
                let (experts, mut weights) = softmax_top_k(b, &logits, &settings, fusion)?;
                if let Some(factors) = factors {
                    weights = b.mul_taken(&weights, factors, &experts)?;
                }
                (logits, (experts, weights))
            }
            Self::NoauxTc { gate, bias, settings } => {
                let logits = b.linear(x, gate)?;
                let chosen = if fused {
                    b.route_noaux_tc(&logits, bias, settings)?
                } else {
                    stock::route_noaux_tc(b, &logits, bias, settings)?
                };
                (logits, chosen)
            }
        };
        Ok(Routing { logits, experts, weights })
    }
}

/// Experts and weights by softmax, computed as the fusion says.
fn softmax_top_k<B: Backend>(
    b: &B,
    logits: &B::Tensor,
    settings: &SoftmaxTopK,
    fusion: &Fusion,
) -> Result<(B::Indices, B::Tensor)> {
    match fusion.softmax_route {
        SoftmaxRoute::Probabilities if fusion.route.is_on() => b.route_softmax_top_k(logits, settings),
        SoftmaxRoute::Probabilities => stock::route_softmax_top_k(b, logits, settings),
        SoftmaxRoute::Logits => route_by_logits(b, logits, settings),
        SoftmaxRoute::ChosenLogits => route_by_chosen_logits(b, logits, settings),
    }
}

/// [`SoftmaxRoute::Logits`]: `experts = top_k(logits)`; the weights are their probabilities, renormalised if the
/// settings say so.
fn route_by_logits<B: Backend>(
    b: &B,
    logits: &B::Tensor,
    settings: &SoftmaxTopK,
) -> Result<(B::Indices, B::Tensor)> {
    let experts = b.top_k(logits, settings.top_k)?;
    let weights = b.take_last(&b.softmax(logits)?, &experts)?;
    match settings.renormalize {
        Renormalize::Yes => Ok((experts, b.div_by_sum(&weights, 0.0)?)),
        Renormalize::No => Ok((experts, weights)),
    }
}

/// [`SoftmaxRoute::ChosenLogits`]: `experts = top_k(logits)`; the weights are `softmax(logits[experts])`.
///
/// With `p_i = exp(l_i) / Z`, `p_i / Σ_chosen p = exp(l_i) / Σ_chosen exp(l)`: Z cancels.
fn route_by_chosen_logits<B: Backend>(
    b: &B,
    logits: &B::Tensor,
    settings: &SoftmaxTopK,
) -> Result<(B::Indices, B::Tensor)> {
    if settings.renormalize == Renormalize::No {
        return Err(Error::Precondition {
            op: Op::ROUTE_SOFTMAX_TOP_K.name,
            what: "softmax_route",
            want: "probabilities or logits, as this model's weights are not renormalised (norm_topk_prob)"
                .to_owned(),
            got: SoftmaxRoute::ChosenLogits.name().to_owned(),
        });
    }
    let experts = b.top_k(logits, settings.top_k)?;
    let weights = b.softmax(&b.take_last(logits, &experts)?)?;
    Ok((experts, weights))
}

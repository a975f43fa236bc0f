//! Which experts a token goes to, and with which weights.

use zmlx_kernels::{Backend, Fusion, NoauxTc, Result, SoftmaxTopK};

/// A linear layer over the hidden state, and the rule that turns its outputs into a choice.
#[derive(Clone, Debug)]
pub enum Router<W> {
    /// Softmax over all experts, the most probable ones chosen: Qwen3.
    SoftmaxTopK {
        /// `[n_experts, hidden]`.
        gate: W,
        /// The rule's settings.
        settings: SoftmaxTopK,
    },
    /// Sigmoid scores, a correction bias that takes part in the choice only, groups: GLM-4.
    NoauxTc {
        /// `[n_experts, hidden]`.
        gate: W,
        /// `e_score_correction_bias`, `[1, n_experts]`.
        bias: W,
        /// The rule's settings.
        settings: NoauxTc,
    },
}

/// A router's result.
#[derive(Debug)]
pub struct Routing<B: Backend> {
    /// Before softmax or sigmoid, `[n, n_experts]`.
    pub logits: B::Tensor,
    /// The chosen experts, `[n, top_k]`.
    pub experts: B::Indices,
    /// What multiplies their outputs, `[n, top_k]`.
    pub weights: B::Tensor,
}

impl<W> Router<W> {
    /// **Shapes** x `[n, hidden]`.
    ///
    /// # Errors
    /// If the shapes or settings do not fit.
    pub fn route<B: Backend<Weight = W>>(&self, b: &B, x: &B::Tensor, fusion: &Fusion) -> Result<Routing<B>> {
        let fused = fusion.route.is_on();
        let (logits, (experts, weights)) = match self {
            Self::SoftmaxTopK { gate, settings } => {
                let logits = b.linear(x, gate)?;
                let chosen = if fused {
                    b.route_softmax_top_k(&logits, settings)?
                } else {
                    b.stock_route_softmax_top_k(&logits, settings)?
                };
                (logits, chosen)
            }
            Self::NoauxTc { gate, bias, settings } => {
                let logits = b.linear(x, gate)?;
                let chosen = if fused {
                    b.route_noaux_tc(&logits, bias, settings)?
                } else {
                    b.stock_route_noaux_tc(&logits, bias, settings)?
                };
                (logits, chosen)
            }
        };
        Ok(Routing { logits, experts, weights })
    }
}

//! The bank of routed experts.

use std::ops::Range;
use std::sync::OnceLock;

use zmlx_kernels::{Activation, Backend, Down, ExpertFusion, Fusion, GateUp, Result, stock};

use crate::Mlp;

/// The projections of all experts: three banks with one matrix for each expert.
///
/// **Shapes** gate, up `n_experts × [inter, hidden]`, down `n_experts × [hidden, inter]`.
#[derive(Debug)]
pub struct ExpertBank<W> {
    gate: W,
    up: W,
    down: W,
    /// The biases of gate and up.
    gate_up_biases: Option<[W; 2]>,
    down_bias: Option<W>,
    activation: Activation,
    /// Which of the experts that a router chooses these are, if not all.
    held: Option<Range<usize>>,
    /// Gate and up concatenated. It is made on first use, because some backends copy the rows.
    gate_up: OnceLock<W>,
}

impl<W: Clone> ExpertBank<W> {
    /// A bank of these projections without biases, with SwiGLU as the activation.
    pub fn new(gate: W, up: W, down: W) -> Self {
        Self {
            gate,
            up,
            down,
            gate_up_biases: None,
            down_bias: None,
            activation: Activation::SwiGlu,
            held: None,
            gate_up: OnceLock::new(),
        }
    }

    /// The same bank with another activation.
    #[must_use]
    pub fn joined_by(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// The same bank with biases of gate and up, `n_experts × [1, inter]` each, and of down, `n_experts × [1, hidden]`. Of several
    /// ranks that hold a part of each expert, one alone adds that of down.
    #[must_use]
    pub fn with_biases(self, gate_up: [W; 2], down: Option<W>) -> Self {
        Self { gate_up_biases: Some(gate_up), down_bias: down, ..self }
    }

    /// The same bank as a part of a larger one: its matrices are those of the experts `held`. The outputs of others count as 0.
    #[must_use]
    pub fn holding(self, held: Range<usize>) -> Self {
        Self { held: Some(held), ..self }
    }

    /// The weighted sum of the chosen experts' outputs.
    ///
    /// **Shapes** x `[n, hidden]`, experts, weights `[n, top_k]` → `[n, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit or an index names no expert.
    pub fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        (experts, weights): (&B::Indices, &B::Tensor),
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        let held = self.held.clone().map(|held| b.held_experts(experts, weights, held)).transpose()?;
        let (experts, weights) =
            held.as_ref().map_or((experts, weights), |(experts, weights)| (experts, weights));
        let (gate_up, down) = self.weights();
        let h = match fusion.experts {
            ExpertFusion::Stock => stock::gather_qmm_swiglu(b, x, gate_up, experts)?,
            ExpertFusion::Concat => {
                stock::gather_concat_swiglu(b, x, (self.concatenated(b)?, gate_up), experts)?
            }
            ExpertFusion::Fused => b.gather_qmm_swiglu(x, gate_up, experts)?,
        };
        if fusion.combine.is_on() {
            b.gather_qmm_combine(&h, down, experts, weights)
        } else {
            stock::gather_qmm_combine(b, &h, down, experts, weights)
        }
    }

    /// As [`ExpertBank::forward`] with all fused ops, plus the output of a shared expert, in kernels that take both:
    /// [`Backend::takes_shared_experts`].
    ///
    /// # Errors
    /// As [`ExpertBank::forward`] and [`Mlp::forward`].
    pub fn forward_with<B: Backend<Weight = W>>(
        &self,
        shared: &Mlp<W>,
        b: &B,
        x: &B::Tensor,
        (experts, weights): (&B::Indices, &B::Tensor),
    ) -> Result<B::Tensor> {
        let held = self.held.clone().map(|held| b.held_experts(experts, weights, held)).transpose()?;
        let (experts, weights) =
            held.as_ref().map_or((experts, weights), |(experts, weights)| (experts, weights));
        let (gate_up, down) = self.weights();
        let (h, of_shared) = b.gather_qmm_swiglu_shared(x, gate_up, shared.gate_up(), experts)?;
        b.gather_qmm_combine_shared([&h, &of_shared], down, &shared.down, experts, weights)
    }

    fn weights(&self) -> (GateUp<'_, W>, Down<'_, W>) {
        let biases = self.gate_up_biases.as_ref().map(|[gate, up]| [gate, up]);
        let gate_up = GateUp { gate: &self.gate, up: &self.up, biases, activation: self.activation };
        (gate_up, Down { weight: &self.down, bias: self.down_bias.as_ref() })
    }

    fn concatenated<B: Backend<Weight = W>>(&self, b: &B) -> Result<&W> {
        if let Some(w) = self.gate_up.get() {
            return Ok(w);
        }
        let w = b.concat_rows(&[&self.gate, &self.up])?;
        Ok(self.gate_up.get_or_init(|| w))
    }
}

//! The whole mixture-of-experts block.

use zmlx_kernels::{Backend, ExpertFusion, Fusion, Result};

use crate::{ExpertBank, Mlp, Router, Routing};

/// A router, its routed experts, and the shared experts if the model has any.
#[derive(Debug)]
pub struct MoeBlock<W> {
    /// Chooses the experts.
    pub router: Router<W>,
    /// The routed experts.
    pub experts: ExpertBank<W>,
    /// The shared experts, which every token uses. Their output is added without a routing weight.
    pub shared: Option<Mlp<W>>,
    /// `1 × [1, hidden]`: the sigmoid of its product with the token multiplies the output of the shared experts.
    pub shared_gate: Option<W>,
}

impl<W: Clone> MoeBlock<W> {
    /// Routes each token and adds up the outputs of its experts. **Shapes** x `[n, hidden]` → `[n, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        self.forward_routed(b, x, fusion).map(|(y, _)| y)
    }

    /// As [`MoeBlock::forward`]; also returns the routing.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_routed<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<(B::Tensor, Routing<B>)> {
        self.forward_beside(b, x, x, fusion)
    }

    /// As [`MoeBlock::forward_routed`], but the router sees `to_route` instead of `x`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_beside<B: Backend<Weight = W>>(
        &self,
        b: &B,
        to_route: &B::Tensor,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<(B::Tensor, Routing<B>)> {
        let routing = self.router.route(b, to_route, fusion)?;
        if let Some(shared) = self.shared.as_ref().filter(|_| self.takes_shared(b, fusion)) {
            let y = self.experts.forward_with(shared, b, x, (&routing.experts, &routing.weights))?;
            return Ok((y, routing));
        }
        let mut y = self.experts.forward(b, x, (&routing.experts, &routing.weights), fusion)?;
        if let Some(shared) = &self.shared {
            let mut of_shared = shared.forward(b, x, fusion)?;
            if let Some(gate) = &self.shared_gate {
                of_shared = b.mul_sigmoid(&of_shared, &b.linear(x, gate)?)?;
            }
            y = b.add(&y, &of_shared)?;
        }
        Ok((y, routing))
    }

    /// Whether the shared expert goes with the chosen ones ([`ExpertBank::forward_with`]): all of their ops must be fused, and the
    /// output of the shared one must have no factor.
    pub fn takes_shared<B: Backend>(&self, b: &B, fusion: &Fusion) -> bool {
        let is_fused = fusion.experts == ExpertFusion::Fused && fusion.combine.is_on();
        let has_plain = self.shared.is_some() && self.shared_gate.is_none();
        has_plain && is_fused && fusion.dense_swiglu.is_on() && b.takes_shared_experts()
    }
}

//! A gated MLP: a dense layer, or the shared experts of a mixture.

use zmlx_kernels::{Activation, Backend, Fusion, GateUp, Result, stock};

/// `down( activation(gate(x), up(x)) )`.
///
/// **Shapes** gate, up `[inter, hidden]`, down `[hidden, inter]`. Several shared experts are one MLP with the sum of
/// their widths.
#[derive(Clone, Debug)]
pub struct Mlp<W> {
    /// The projection that goes through the nonlinear function.
    pub gate: W,
    /// The projection that multiplies it.
    pub up: W,
    /// The projection back to the hidden width.
    pub down: W,
    /// How gate and up are joined.
    pub activation: Activation,
}

impl<W> Mlp<W> {
    /// Computes the MLP. **Shapes** x `[n, hidden]` → `[n, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward<B: Backend<Weight = W>>(
        &self,
        b: &B,
        x: &B::Tensor,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        let weights = self.gate_up();
        let h = if fusion.dense_swiglu.is_on() {
            b.qmm_swiglu(x, weights)?
        } else {
            stock::qmm_swiglu(b, x, weights)?
        };
        b.linear(&h, &self.down)
    }

    pub(crate) fn gate_up(&self) -> GateUp<'_, W> {
        GateUp { gate: &self.gate, up: &self.up, biases: None, activation: self.activation }
    }
}

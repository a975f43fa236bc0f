//! Models that compute one thing wrongly, by hooks in their ops. Tests use them to prove that the checks find such
//! errors.

use zmlx_kernels::{
    Backend, Down, GateUp, Hooks, HostWeight, NoauxTc, Result, SoftmaxTopK, WeightBytes, WeightFormat,
};

/// The error in the computation.
#[derive(Debug)]
pub(crate) enum Wrong {
    Nothing,
    /// The weighted sum of the experts has the wrong sign.
    SignOfCombine,
    /// SiLU is applied to up instead of gate.
    GateAndUpSwapped,
    /// The router's correction bias is left out.
    CorrectionBiasDropped,
    /// On every path, the quantisation biases of the experts' down projections are missing.
    QuantizationBiasDropped,
    /// Each expert is replaced by the next one.
    ExpertOffByOne,
    /// Among equally probable experts the one with the higher index is chosen.
    TieBrokenUpwards,
}

impl<B: Backend> Hooks<B> for Wrong {
    fn around<R>(&self, _: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        run()
    }

    fn upload(&self, backend: &B, weight: HostWeight) -> Result<B::Weight> {
        // Among the experts' matrices, the down projections have fewer outputs than inputs.
        let is_down = weight.n_mats() > 1 && weight.n_out() > weight.n_in();
        let WeightFormat::Quantized { spec, .. } = weight.format() else { return backend.upload(weight) };
        if !matches!(self, Self::QuantizationBiasDropped) || !is_down || !spec.has_biases() {
            return backend.upload(weight);
        }
        let without_biases = |i: usize| {
            let WeightBytes { data, scales, biases } = weight.mat(i).clone();
            let bytes = WeightBytes { data, scales, biases: vec![0; biases.len()].into() };
            HostWeight::new(weight.format(), [1, weight.n_out(), weight.n_in()], bytes)
        };
        let factors: Vec<f32> = (0..weight.n_mats()).map(|i| weight.factor(i)).collect();
        let weights = HostWeight::stack((0..weight.n_mats()).map(without_biases).collect::<Result<_>>()?)?;
        backend.upload(if weight.has_factors() { weights.with_factors(factors)? } else { weights })
    }

    fn gather_qmm_swiglu(
        &self,
        backend: &B,
        x: &B::Tensor,
        weights: GateUp<'_, B::Weight>,
        experts: &B::Indices,
    ) -> Result<B::Tensor> {
        match self {
            Self::GateAndUpSwapped => {
                let weights = GateUp { gate: weights.up, up: weights.gate, ..weights };
                backend.gather_qmm_swiglu(x, weights, experts)
            }
            Self::ExpertOffByOne => {
                let mut chosen = Vec::new();
                backend.read_indices(experts, &mut chosen)?;
                // Both fixtures have 16 experts.
                let next: Vec<u32> = chosen.iter().map(|e| (e + 1) % 16).collect();
                let top_k = next.len() / backend.shape(x)[0];
                let experts = backend.indices(&next, &[next.len() / top_k, top_k])?;
                backend.gather_qmm_swiglu(x, weights, &experts)
            }
            _ => backend.gather_qmm_swiglu(x, weights, experts),
        }
    }

    fn gather_qmm_combine(
        &self,
        backend: &B,
        x: &B::Tensor,
        down: Down<'_, B::Weight>,
        experts: &B::Indices,
        weights: &B::Tensor,
    ) -> Result<B::Tensor> {
        let y = backend.gather_qmm_combine(x, down, experts, weights)?;
        if matches!(self, Self::SignOfCombine) { backend.scale(&y, -1.0) } else { Ok(y) }
    }

    fn route_noaux_tc(
        &self,
        backend: &B,
        logits: &B::Tensor,
        bias: &B::Weight,
        settings: &NoauxTc,
    ) -> Result<(B::Indices, B::Tensor)> {
        match self {
            Self::CorrectionBiasDropped => {
                let n_experts = backend.shape(logits)[1];
                let none = backend.upload(HostWeight::from_f32(&vec![0.0; n_experts], 1, n_experts)?)?;
                backend.route_noaux_tc(logits, &none, settings)
            }
            _ => backend.route_noaux_tc(logits, bias, settings),
        }
    }

    fn route_softmax_top_k(
        &self,
        backend: &B,
        logits: &B::Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(B::Indices, B::Tensor)> {
        if !matches!(self, Self::TieBrokenUpwards) {
            return backend.route_softmax_top_k(logits, settings);
        }
        // If the experts are in reverse order, the lowest index among equal ones is the highest.
        let shape = backend.shape(logits);
        let mut values = Vec::new();
        backend.read(logits, &mut values)?;
        let reversed: Vec<f32> = values.chunks(shape[1]).flat_map(|row| row.iter().rev().copied()).collect();
        let reversed = backend.tensor(&reversed, &shape)?;
        let (experts, weights) = backend.route_softmax_top_k(&reversed, settings)?;
        let mut chosen = Vec::new();
        backend.read_indices(&experts, &mut chosen)?;
        let chosen: Vec<u32> = chosen.iter().map(|e| shape[1] as u32 - 1 - e).collect();
        let experts = backend.indices(&chosen, &[shape[0], chosen.len() / shape[0]])?;
        Ok((experts, weights))
    }
}

//! The CPU backend with every op counted and, on request, with one of its fused ops broken.

use std::cell::RefCell;
use std::collections::BTreeMap;

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{
    Backend, Down, Error, GateUp, Hooked, Hooks, MlaWeights, NoauxTc, NormRopeMla, Result, Rope, SoftmaxTopK,
};

type Tensor = <CpuBackend as Backend>::Tensor;
type Indices = <CpuBackend as Backend>::Indices;
type Weight = <CpuBackend as Backend>::Weight;

pub(crate) type Wrapped = Hooked<CpuBackend, Faulty>;

/// How an op is broken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Every value is 1.5 times as large.
    Values,
    /// Every value is NaN.
    NotANumber,
    /// It ends with an error.
    Error,
}

/// Counts ops and breaks one.
#[derive(Default)]
pub(crate) struct Faulty {
    fault: Option<(&'static str, Fault)>,
    counts: RefCell<BTreeMap<&'static str, usize>>,
}

impl Faulty {
    pub(crate) fn backend(fault: Option<(&'static str, Fault)>) -> Wrapped {
        Hooked::new(CpuBackend::new(Some(2)).unwrap(), Self { fault, ..Self::default() })
    }

    /// How often each op ran since the last call.
    pub(crate) fn take_counts(&self) -> BTreeMap<&'static str, usize> {
        self.counts.take()
    }

    /// The result of the fused op `op`, changed by its fault if it has one.
    fn spoil(&self, backend: &CpuBackend, op: &str, y: Tensor) -> Result<Tensor> {
        match self.fault.filter(|(broken, _)| *broken == op) {
            None => Ok(y),
            Some((_, Fault::Values)) => backend.scale(&y, 1.5),
            Some((_, Fault::NotANumber)) => backend.scale(&y, f32::NAN),
            Some((_, Fault::Error)) => {
                Err(Error::Fault { op: "test", backend: "wrapped", why: "broken on purpose".to_owned() })
            }
        }
    }
}

impl Hooks<CpuBackend> for Faulty {
    fn around<R>(&self, op: &'static str, run: impl FnOnce() -> Result<R>) -> Result<R> {
        // Reading launches nothing.
        if !op.starts_with("read") {
            *self.counts.borrow_mut().entry(op).or_default() += 1;
        }
        run()
    }

    /// But for the op that is broken.
    fn takes_apart(&self) -> bool {
        self.fault.is_none_or(|(op, _)| op != "norm_rope_mla")
    }

    fn norm_rope_mla(
        &self,
        b: &CpuBackend,
        inputs: NormRopeMla<'_, Tensor, Weight>,
        weights: MlaWeights<'_, Weight>,
        cache: &mut <CpuBackend as Backend>::Cache,
        step: &<CpuBackend as Backend>::Step,
        rope: &Rope,
    ) -> Result<Tensor> {
        self.spoil(b, "norm_rope_mla", b.norm_rope_mla(inputs, weights, cache, step, rope)?)
    }

    fn gather_qmm_swiglu(
        &self,
        b: &CpuBackend,
        x: &Tensor,
        weights: GateUp<'_, Weight>,
        experts: &Indices,
    ) -> Result<Tensor> {
        self.spoil(b, "gather_qmm_swiglu", b.gather_qmm_swiglu(x, weights, experts)?)
    }

    fn gather_qmm_combine(
        &self,
        b: &CpuBackend,
        x: &Tensor,
        down: Down<'_, Weight>,
        experts: &Indices,
        weights: &Tensor,
    ) -> Result<Tensor> {
        self.spoil(b, "gather_qmm_combine", b.gather_qmm_combine(x, down, experts, weights)?)
    }

    fn qmm_swiglu(&self, b: &CpuBackend, x: &Tensor, weights: GateUp<'_, Weight>) -> Result<Tensor> {
        self.spoil(b, "qmm_swiglu", b.qmm_swiglu(x, weights)?)
    }

    fn add_rms_norm(
        &self,
        b: &CpuBackend,
        x: &Tensor,
        residual: &Tensor,
        weight: &Weight,
        eps: f32,
    ) -> Result<(Tensor, Tensor)> {
        let (sum, normed) = b.add_rms_norm(x, residual, weight, eps)?;
        Ok((sum, self.spoil(b, "add_rms_norm", normed)?))
    }

    fn route_softmax_top_k(
        &self,
        b: &CpuBackend,
        logits: &Tensor,
        settings: &SoftmaxTopK,
    ) -> Result<(Indices, Tensor)> {
        let (experts, weights) = b.route_softmax_top_k(logits, settings)?;
        Ok((experts, self.spoil(b, "route_softmax_top_k", weights)?))
    }

    fn route_noaux_tc(
        &self,
        b: &CpuBackend,
        logits: &Tensor,
        bias: &Weight,
        settings: &NoauxTc,
    ) -> Result<(Indices, Tensor)> {
        let (experts, weights) = b.route_noaux_tc(logits, bias, settings)?;
        Ok((experts, self.spoil(b, "route_noaux_tc", weights)?))
    }
}

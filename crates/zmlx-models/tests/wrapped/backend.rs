//! The CPU backend, with every op counted, and one of its fused ops broken if asked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use zmlx_kernels::cpu::CpuBackend;
use zmlx_kernels::{
    Backend, Error, GateUp, HostWeight, KvLayout, MlaInputs, NoauxTc, Result, Rope, SoftmaxTopK, Span,
};

type Tensor = <CpuBackend as Backend>::Tensor;
type Indices = <CpuBackend as Backend>::Indices;
type Weight = <CpuBackend as Backend>::Weight;
type KvCache = <CpuBackend as Backend>::KvCache;

/// What is wrong with an op.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Every value is half as large again.
    Values,
    /// Every value is no number.
    NotANumber,
    /// It ends with an error.
    Error,
}

pub(crate) struct Wrapped {
    inner: CpuBackend,
    fault: Option<(&'static str, Fault)>,
    counts: RefCell<BTreeMap<&'static str, usize>>,
}

impl Wrapped {
    pub(crate) fn new(fault: Option<(&'static str, Fault)>) -> Self {
        let inner = CpuBackend::new(Some(2)).unwrap();
        Self { inner, fault, counts: RefCell::default() }
    }

    /// How often each op ran since the last call.
    pub(crate) fn take_counts(&self) -> BTreeMap<&'static str, usize> {
        self.counts.take()
    }

    fn count(&self, op: &'static str) -> &CpuBackend {
        *self.counts.borrow_mut().entry(op).or_default() += 1;
        &self.inner
    }

    /// The result of the fused op `op`, or what its fault makes of it.
    fn spoil(&self, op: &str, y: Tensor) -> Result<Tensor> {
        match self.fault.filter(|(broken, _)| *broken == op) {
            None => Ok(y),
            Some((_, Fault::Values)) => self.inner.scale(&y, 1.5),
            Some((_, Fault::NotANumber)) => self.inner.scale(&y, f32::NAN),
            Some((_, Fault::Error)) => {
                Err(Error::Fault { op: "test", backend: "wrapped", why: "broken on purpose".to_owned() })
            }
        }
    }
}

impl Backend for Wrapped {
    type Tensor = Tensor;
    type Indices = Indices;
    type Weight = Weight;
    type KvCache = KvCache;

    fn name(&self) -> &'static str {
        "wrapped"
    }

    // Host and device, and views of the same values: nothing is launched.

    fn upload(&self, weight: HostWeight) -> Result<Weight> {
        self.inner.upload(weight)
    }
    fn concat_rows(&self, parts: &[&Weight]) -> Result<Weight> {
        self.inner.concat_rows(parts)
    }
    fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        self.inner.tensor(values, shape)
    }
    fn read(&self, x: &Tensor, out: &mut Vec<f32>) -> Result<()> {
        self.inner.read(x, out)
    }
    fn shape(&self, x: &Tensor) -> Vec<usize> {
        self.inner.shape(x)
    }
    fn indices(&self, values: &[u32], shape: &[usize]) -> Result<Indices> {
        self.inner.indices(values, shape)
    }
    fn read_indices(&self, indices: &Indices, out: &mut Vec<u32>) -> Result<()> {
        self.inner.read_indices(indices, out)
    }
    fn kv_cache(&self, layout: KvLayout, n_slots: usize) -> Result<KvCache> {
        self.inner.kv_cache(layout, n_slots)
    }
    fn truncate(&self, cache: &mut KvCache, slot: usize, n_tokens: usize) -> Result<()> {
        self.inner.truncate(cache, slot, n_tokens)
    }
    fn reshape(&self, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
        self.inner.reshape(x, shape)
    }
    fn slice_last(&self, x: &Tensor, range: Range<usize>) -> Result<Tensor> {
        self.inner.slice_last(x, range)
    }

    // Plain ops.

    fn embed(&self, table: &Weight, ids: &Indices) -> Result<Tensor> {
        self.count("embed").embed(table, ids)
    }
    fn rms_norm(&self, x: &Tensor, weight: &Weight, eps: f32) -> Result<Tensor> {
        self.count("rms_norm").rms_norm(x, weight, eps)
    }
    fn linear(&self, x: &Tensor, weight: &Weight) -> Result<Tensor> {
        self.count("linear").linear(x, weight)
    }
    fn gather_linear(&self, x: &Tensor, weight: &Weight, experts: &Indices) -> Result<Tensor> {
        self.count("gather_linear").gather_linear(x, weight, experts)
    }
    fn head_linear(&self, x: &Tensor, weight: &Weight) -> Result<Tensor> {
        self.count("head_linear").head_linear(x, weight)
    }
    fn rope(&self, x: &Tensor, spans: &[Span], rope: &Rope) -> Result<Tensor> {
        self.count("rope").rope(x, spans, rope)
    }
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        cache: &mut KvCache,
        spans: &[Span],
        scale: f32,
    ) -> Result<Tensor> {
        self.count("attention").attention(q, k, v, cache, spans, scale)
    }
    fn latent_attention(
        &self,
        inputs: MlaInputs<'_, Tensor>,
        cache: &mut KvCache,
        spans: &[Span],
        scale: f32,
    ) -> Result<Tensor> {
        self.count("latent_attention").latent_attention(inputs, cache, spans, scale)
    }
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.count("add").add(a, b)
    }
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        self.count("swiglu").swiglu(gate, up)
    }
    fn softmax(&self, x: &Tensor) -> Result<Tensor> {
        self.count("softmax").softmax(x)
    }
    fn sigmoid(&self, x: &Tensor) -> Result<Tensor> {
        self.count("sigmoid").sigmoid(x)
    }
    fn add_vector(&self, x: &Tensor, vector: &Weight) -> Result<Tensor> {
        self.count("add_vector").add_vector(x, vector)
    }
    fn keep_top_groups(&self, x: &Tensor, n_group: usize, topk_group: usize) -> Result<Tensor> {
        self.count("keep_top_groups").keep_top_groups(x, n_group, topk_group)
    }
    fn top_k(&self, x: &Tensor, k: usize) -> Result<Indices> {
        self.count("top_k").top_k(x, k)
    }
    fn take_last(&self, x: &Tensor, indices: &Indices) -> Result<Tensor> {
        self.count("take_last").take_last(x, indices)
    }
    fn div_by_sum(&self, x: &Tensor, eps: f32) -> Result<Tensor> {
        self.count("div_by_sum").div_by_sum(x, eps)
    }
    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        self.count("scale").scale(x, factor)
    }
    fn weighted_sum(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        self.count("weighted_sum").weighted_sum(x, weights)
    }
    fn take_rows(&self, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
        self.count("take_rows").take_rows(x, rows)
    }

    // Fused ops: one each. `mla_attention` keeps its default body, as no backend fuses it.

    fn gather_qmm_swiglu(
        &self,
        x: &Tensor,
        weights: GateUp<'_, Weight>,
        experts: &Indices,
    ) -> Result<Tensor> {
        const OP: &str = "gather_qmm_swiglu";
        self.spoil(OP, self.count(OP).gather_qmm_swiglu(x, weights, experts)?)
    }
    fn gather_qmm_combine(
        &self,
        x: &Tensor,
        down: &Weight,
        experts: &Indices,
        weights: &Tensor,
    ) -> Result<Tensor> {
        const OP: &str = "gather_qmm_combine";
        self.spoil(OP, self.count(OP).gather_qmm_combine(x, down, experts, weights)?)
    }
    fn qmm_swiglu(&self, x: &Tensor, weights: GateUp<'_, Weight>) -> Result<Tensor> {
        const OP: &str = "qmm_swiglu";
        self.spoil(OP, self.count(OP).qmm_swiglu(x, weights)?)
    }
    fn add_rms_norm(
        &self,
        x: &Tensor,
        residual: &Tensor,
        weight: &Weight,
        eps: f32,
    ) -> Result<(Tensor, Tensor)> {
        const OP: &str = "add_rms_norm";
        let (sum, normed) = self.count(OP).add_rms_norm(x, residual, weight, eps)?;
        Ok((sum, self.spoil(OP, normed)?))
    }
    fn route_softmax_top_k(&self, logits: &Tensor, settings: &SoftmaxTopK) -> Result<(Indices, Tensor)> {
        const OP: &str = "route_softmax_top_k";
        let (experts, weights) = self.count(OP).route_softmax_top_k(logits, settings)?;
        Ok((experts, self.spoil(OP, weights)?))
    }
    fn route_noaux_tc(
        &self,
        logits: &Tensor,
        bias: &Weight,
        settings: &NoauxTc,
    ) -> Result<(Indices, Tensor)> {
        const OP: &str = "route_noaux_tc";
        let (experts, weights) = self.count(OP).route_noaux_tc(logits, bias, settings)?;
        Ok((experts, self.spoil(OP, weights)?))
    }
}

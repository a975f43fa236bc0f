//! Products: checks of arguments, and what goes along with a product.

use zmlx_core::{Down, GateUp, Result, stock};

use super::CudaBackend;
use crate::device::Device;
use crate::matmul::MIN_TOKENS;
use crate::products::{Beside, Epilogue, Product};
use crate::rows;
use crate::tensor::{CudaIndices, CudaTensor, Pending, Shape, ensure};
use crate::weight::{CudaWeight, PartFormat};

impl CudaBackend {
    /// The sum of two tensors; a product or a sum over ranks that has not been launched takes the other one along.
    pub(super) fn sum(&self, op: &'static str, a: &CudaTensor, b: &CudaTensor) -> Result<CudaTensor> {
        ensure(a.dims() == b.dims(), op, "b", format_args!("{:?}", a.shape), b)?;
        if let Some(both) = with_shared(&self.device, a, b).or_else(|| with_shared(&self.device, b, a)) {
            return Ok(both);
        }
        for (pending, other) in [(a, b), (b, a)] {
            let sum = match pending.op() {
                Some(Pending::Product(product)) => {
                    product.launch(&self.device, Some(&other.contiguous(&self.device)?))?
                }
                Some(Pending::RankSum(sum)) => {
                    sum.launch(&self.device, Some(&other.contiguous(&self.device)?))?
                }
                Some(Pending::Heads(_)) | None => continue,
            };
            return Ok(CudaTensor::ready(a.shape, sum));
        }
        let b = b.contiguous(&self.device)?;
        rows::binary(&self.device, (op, "add"), a, (b.at(), b.len))
    }

    /// What [`Backend::gather_linear`] and its fused kin share: checks, and the product with a row per choice.
    pub(super) fn gathered(
        &self,
        op: &'static str,
        x: &CudaTensor,
        weights: &[&CudaWeight],
        experts: &CudaIndices,
    ) -> Result<Product> {
        let w = weights[0];
        ensure(experts.dims().len() == 2, op, "experts", "[n, top_k]", experts)?;
        let (n, top_k) = (experts.dims()[0], experts.dims()[1]);
        let per_token = x.dims() == [n, w.n_in];
        let fits = per_token || x.dims() == [n, top_k, w.n_in];
        let want = format_args!("[{n}, {}] or [{n}, {top_k}, {}]", w.n_in, w.n_in);
        ensure(fits, op, "x", want, x)?;
        experts.check(op, "expert", w.n_mats)?;
        let n_jobs = n * top_k;
        Ok(Product {
            op,
            parts: weights.iter().flat_map(|w| w.parts.iter().cloned()).collect(),
            n_mats: w.n_mats,
            n_out: w.n_out,
            n_in: w.n_in,
            x: x.clone(),
            n_jobs,
            n_slots: 1,
            rows_per_x: if per_token { top_k.max(1) } else { 1 },
            experts: Some(experts.clone()),
            slot_weights: None,
            shared: Vec::new(),
            epilogue: Epilogue::None,
            beside: Beside::None,
        })
    }

    /// The product of all rows with one matrix.
    pub(super) fn product(
        &self,
        op: &'static str,
        x: &CudaTensor,
        weights: &[&CudaWeight],
    ) -> Result<Product> {
        let w = weights[0];
        ensure(w.n_mats == 1, op, "weight", "one matrix", w)?;
        ensure(x.shape.last() == w.n_in, op, "x", format_args!("rows of {}", w.n_in), x)?;
        let n_jobs = x.shape.n_rows();
        Ok(Product {
            op,
            parts: weights.iter().flat_map(|w| w.parts.iter().cloned()).collect(),
            n_mats: 1,
            n_out: w.n_out,
            n_in: w.n_in,
            x: x.clone(),
            n_jobs,
            n_slots: 1,
            rows_per_x: 1,
            experts: None,
            slot_weights: None,
            shared: Vec::new(),
            epilogue: Epilogue::None,
            beside: Beside::None,
        })
    }

    /// The product of each head's rows with its matrix.
    pub(super) fn head_product(&self, x: &CudaTensor, weight: &CudaWeight) -> Result<Product> {
        const OP: &str = "head_linear";
        let (n, n_heads, n_in) = (x.dims()[0], weight.n_mats, weight.n_in);
        ensure(x.dims() == [n, n_heads, n_in], OP, "x", format_args!("[n, {n_heads}, {n_in}]"), x)?;
        Ok(Product {
            op: OP,
            parts: weight.parts.clone(),
            n_mats: n_heads,
            n_out: weight.n_out,
            n_in,
            x: x.clone(),
            n_jobs: n * n_heads,
            n_slots: 1,
            rows_per_x: 1,
            experts: None,
            slot_weights: None,
            shared: Vec::new(),
            epilogue: Epilogue::None,
            beside: Beside::None,
        })
    }

    pub(super) fn gathered_swiglu(
        &self,
        x: &CudaTensor,
        weights: GateUp<'_, CudaWeight>,
        experts: &CudaIndices,
    ) -> Result<CudaTensor> {
        const OP: &str = "gather_qmm_swiglu";
        if !check_gate_up(OP, weights)? {
            return stock::gather_qmm_swiglu(self, x, weights, experts);
        }
        let mut product = self.gathered(OP, x, &[weights.gate, weights.up], experts)?;
        product.epilogue = Epilogue::SwiGlu;
        let shape = Shape::new(OP, &[experts.dims()[0], experts.dims()[1], weights.gate.n_out])?;
        Ok(CudaTensor::pending(shape, Pending::Product(Box::new(product))))
    }

    pub(super) fn gathered_sum(
        &self,
        x: &CudaTensor,
        down: Down<'_, CudaWeight>,
        experts: &CudaIndices,
        weights: &CudaTensor,
    ) -> Result<CudaTensor> {
        const OP: &str = "gather_qmm_combine";
        if down.bias.is_some() {
            return stock::gather_qmm_combine(self, x, down, experts, weights);
        }
        let down = down.weight;
        ensure(experts.dims().len() == 2, OP, "experts", "[n, top_k]", experts)?;
        let (n, top_k) = (experts.dims()[0], experts.dims()[1]);
        ensure(x.dims() == [n, top_k, down.n_in], OP, "x", format_args!("[{n}, {top_k}, {}]", down.n_in), x)?;
        ensure(weights.dims() == [n, top_k], OP, "weights", format_args!("[{n}, {top_k}]"), weights)?;
        let mut product = self.gathered(OP, x, &[down], experts)?;
        (product.n_jobs, product.n_slots) = (n, top_k);
        if n >= MIN_TOKENS || !product.fits(&self.device) {
            return stock::gather_qmm_combine(self, x, Down::plain(down), experts, weights);
        }
        product.slot_weights = Some(weights.contiguous(&self.device)?);
        let shape = Shape::new(OP, &[n, down.n_out])?;
        Ok(CudaTensor::pending(shape, Pending::Product(Box::new(product))))
    }

    pub(super) fn swiglu_product(
        &self,
        x: &CudaTensor,
        weights: GateUp<'_, CudaWeight>,
    ) -> Result<CudaTensor> {
        const OP: &str = "qmm_swiglu";
        if !check_gate_up(OP, weights)? {
            return stock::qmm_swiglu(self, x, weights);
        }
        let mut product = self.product(OP, x, &[weights.gate, weights.up])?;
        product.epilogue = Epilogue::SwiGlu;
        let shape = x.shape.with_last(weights.gate.n_out);
        Ok(CudaTensor::pending(shape, Pending::Product(Box::new(product))))
    }
}

/// Checks that gate and up are alike, and tells whether one kernel can take both: it knows SwiGLU without biases.
fn check_gate_up(op: &'static str, w: GateUp<'_, CudaWeight>) -> Result<bool> {
    let (gate, up) = (w.gate, w.up);
    let same = (gate.n_mats, gate.n_out, gate.n_in) == (up.n_mats, up.n_out, up.n_in);
    ensure(same, op, "up", format_args!("{gate:?}"), up)?;
    Ok(w.is_plain()
        && gate.parts.len() == 1
        && up.parts.len() == 1
        && gate.parts[0].format == up.parts[0].format)
}

/// The sum of what a token's experts give and what an MLP that all tokens share gives, where that is another matrix of the same
/// format and size: one product in which the shared one is one more choice, and one for gate and up. `None` if it is not.
fn with_shared(device: &Device, of_experts: &CudaTensor, of_shared: &CudaTensor) -> Option<CudaTensor> {
    let product = |x: &CudaTensor| match x.op() {
        Some(Pending::Product(product)) => Some(product),
        _ => None,
    };
    let (mut down, shared_down) = (product(of_experts)?, product(of_shared)?);
    down.slot_weights.as_ref()?;
    let (mut gate_up, shared_gate_up) = (product(&down.x)?, product(&shared_down.x)?);
    let is_alike = |routed: &Product, shared: &Product| {
        let formats = |p: &Product| p.parts.iter().map(|part| part.format).collect::<Vec<_>>();
        routed.experts.is_some()
            && routed.shared.is_empty()
            && shared.experts.is_none()
            && shared.n_mats == 1
            && shared.slot_weights.is_none()
            && (routed.n_in, routed.n_out, routed.epilogue) == (shared.n_in, shared.n_out, shared.epilogue)
            && formats(routed) == formats(shared)
            && formats(routed)
                .iter()
                .all(|f| matches!(f, PartFormat::Coded { .. }) && *f == routed.parts[0].format)
    };
    let fits = gate_up.x.is_same(&shared_gate_up.x)
        && gate_up.epilogue == Epilogue::SwiGlu
        && down.epilogue == Epilogue::None
        && is_alike(&gate_up, &shared_gate_up)
        && is_alike(&down, &shared_down)
        && gate_up.n_jobs == down.n_jobs * down.n_slots
        && gate_up.rows_per_x == down.n_slots
        && down.n_jobs < MIN_TOKENS;
    if !fits {
        return None;
    }
    let (n, n_slots) = (down.n_jobs, down.n_slots + 1);
    (gate_up.n_jobs, gate_up.rows_per_x) = (n * n_slots, n_slots);
    gate_up.shared = shared_gate_up.parts;
    let shape = Shape::new(down.op, &[n, n_slots, gate_up.n_out]).ok()?;
    down.x = CudaTensor::pending(shape, Pending::Product(gate_up));
    down.n_slots = n_slots;
    down.shared = shared_down.parts;
    down.fits(device).then(|| CudaTensor::pending(of_experts.shape, Pending::Product(down)))
}

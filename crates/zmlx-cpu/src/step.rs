//! A step of the CPU backend: its spans, in recycled memory.

use super::CpuBackend;
use super::pool::{CpuTensor, Poison, Shape, Shared};
use zmlx_core::check::{check_spans, ensure};
use zmlx_core::{Logits, Result, Span, logit_rows};

/// A step of the CPU backend.
#[derive(Clone)]
pub struct CpuStep {
    spans: Shared<Span>,
    n_tokens: usize,
    /// Number of rows whose logits are wanted.
    n_logits: usize,
}

impl Poison for Span {
    const POISON: Self =
        Self { slot: usize::MAX, start: usize::MAX, n_tokens: usize::MAX, logits: Logits::None };
}

impl CpuStep {
    pub(super) fn spans(&self) -> &[Span] {
        self.spans.values()
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Checks that an op's argument has a row for each token.
    pub(super) fn check(&self, op: &'static str, what: &'static str, x: &CpuTensor) -> Result<()> {
        let n = self.n_tokens;
        ensure(x.dims()[0] == n, op, what, format_args!("the {n} tokens of the step"), x)
    }
}

impl std::fmt::Debug for CpuStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuStep").field("spans", &self.spans()).finish_non_exhaustive()
    }
}

impl CpuBackend {
    pub(super) fn new_step(&self, spans: &[Span]) -> Result<CpuStep> {
        let n_tokens = check_spans(spans)?;
        let mut copy = self.spans.take("step", spans.len())?;
        copy.copy_from_slice(spans);
        let n_logits = spans.iter().map(Span::n_logits).sum();
        Ok(CpuStep { spans: copy.freeze(), n_tokens, n_logits })
    }

    pub(super) fn logit_rows_of(&self, x: &CpuTensor, step: &CpuStep) -> Result<CpuTensor> {
        const OP: &str = "take_logit_rows";
        step.check(OP, "x", x)?;
        if step.n_logits == step.n_tokens {
            return Ok(x.clone());
        }
        let mut dims = [0; 4];
        let dims = &mut dims[..x.dims().len()];
        dims.copy_from_slice(x.dims());
        dims[0] = step.n_logits;
        let shape = Shape::new(OP, dims)?;
        let width = x.shape.len() / step.n_tokens;
        let mut y = self.floats.take(OP, shape.len())?;
        for (y, row) in y.chunks_exact_mut(width.max(1)).zip(logit_rows(step.spans())) {
            y.copy_from_slice(&x.values()[row * width..][..width]);
        }
        Ok(CpuTensor::new(shape, y))
    }
}

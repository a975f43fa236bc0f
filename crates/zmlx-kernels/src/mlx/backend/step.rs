//! A step of the MLX backend: positions are parameters of its ops, which work sequence by sequence.

use mlx_rs::Array;

use super::arrays::{dims, zeros};
use super::f;
use crate::check::{check_spans, ensure};
use crate::metal::MAX_SEQUENCES;
use crate::{Result, Span, logit_rows};

/// A step of the MLX backend.
#[derive(Clone, Debug)]
pub struct MlxStep {
    spans: Vec<Span>,
    n_tokens: usize,
    /// Rows whose logits are wanted, if these are some but not all.
    rows: Option<Array>,
    n_logits: usize,
    /// The position of each token, u32.
    positions: Array,
    /// Which of its launch's sequences each token belongs to, u32: launches take [`MAX_SEQUENCES`] of those that have tokens.
    sequences: Array,
}

impl MlxStep {
    pub(super) fn new(spans: &[Span]) -> Result<Self> {
        let n_tokens = check_spans(spans)?;
        let rows: Vec<u32> = logit_rows(spans).map(|row| row as u32).collect();
        let n_logits = rows.len();
        let some = n_logits > 0 && n_logits < n_tokens;
        let rows = some.then(|| Array::from_slice(&rows, &[n_logits as i32]));
        let positions: Vec<u32> =
            spans.iter().flat_map(|s| s.start as u32..(s.start + s.n_tokens) as u32).collect();
        let positions = Array::from_slice(&positions, &[n_tokens as i32]);
        let with_tokens = spans.iter().filter(|s| s.n_tokens > 0).enumerate();
        let sequences: Vec<u32> =
            with_tokens.flat_map(|(i, s)| vec![(i % MAX_SEQUENCES) as u32; s.n_tokens]).collect();
        let sequences = Array::from_slice(&sequences, &[n_tokens as i32]);
        Ok(Self { spans: spans.to_vec(), n_tokens, rows, n_logits, positions, sequences })
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The position of each token, u32 `[n]`.
    pub(super) fn positions(&self) -> &Array {
        &self.positions
    }

    /// Which of its launch's sequences each token belongs to, u32 `[n]`.
    pub(super) fn sequences(&self) -> &Array {
        &self.sequences
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Checks that an op's argument has a row for each token.
    pub(super) fn check(&self, op: &'static str, what: &'static str, x: &Array) -> Result<()> {
        let n = self.n_tokens;
        ensure(dims(x).first() == Some(&n), op, what, format_args!("the {n} tokens of the step"), x.shape())
    }

    /// The rows whose logits are wanted.
    pub(super) fn take_logit_rows(&self, x: &Array) -> Result<Array> {
        const OP: &str = "take_logit_rows";
        self.check(OP, "x", x)?;
        match &self.rows {
            Some(rows) => x.take_axis(rows, 0).map_err(f(OP)),
            None if self.n_logits == self.n_tokens => Ok(x.clone()),
            None => {
                let mut shape = dims(x);
                shape[0] = 0;
                zeros(OP, &shape, x.dtype())
            }
        }
    }
}

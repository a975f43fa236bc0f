//! A step: what its ops need of positions, slots and wanted logits, on the device.

use std::sync::{Arc, Mutex};

use zmlx_core::check::check_spans;
use zmlx_core::{Result, Span, logit_rows};

use crate::device::Device;
use crate::memory::{Buffer, lock};
use crate::tensor::{CudaTensor, ensure};

/// A step of the CUDA backend.
#[derive(Clone)]
pub struct CudaStep(pub(crate) Arc<StepData>);

/// Slots, positions and rows of logits in one buffer, and what the host knows of them.
pub(crate) struct StepData {
    pub(crate) spans: Vec<Span>,
    pub(crate) n_tokens: usize,
    pub(crate) n_logits: usize,
    /// The longest sequence of the step, when it is done.
    pub(crate) longest: usize,
    /// Bytes of the buffer that are in use.
    pub(crate) n_bytes: usize,
    /// Blocks of tokens of one sequence each, made when they are first asked for.
    blocks: Mutex<Vec<TokenBlocks>>,
    /// `[n_tokens]` rows of the caches' tables, `[n_tokens]` positions, `[n_logits]` rows; where each sequence has one token, a
    /// block for each, first token and number of tokens, at the end.
    pub(crate) buffer: Arc<Buffer>,
}

/// Blocks of consecutive tokens of one sequence each.
#[derive(Clone)]
pub(crate) struct TokenBlocks {
    most_tokens: usize,
    pub(crate) n: usize,
    /// First token and number of tokens of each.
    buffer: Arc<Buffer>,
    offset: usize,
}

impl TokenBlocks {
    /// Where they are.
    pub(crate) fn at(&self) -> u64 {
        self.buffer.at() + self.offset as u64
    }
}

/// `Step` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepArgs {
    slots: u64,
    positions: u64,
}

impl StepArgs {
    /// Where the slots and the positions of all tokens are.
    pub(crate) fn both(&self) -> (u64, u64) {
        (self.slots, self.positions)
    }
}

impl StepData {
    pub(crate) fn new(device: &Arc<Device>, spans: &[Span]) -> Result<Self> {
        let n_tokens = check_spans(spans)?;
        let slots = spans.iter().flat_map(|s| std::iter::repeat_n(device.row_of(s.slot) as u32, s.n_tokens));
        let positions = spans.iter().flat_map(|s| (s.start..s.start + s.n_tokens).map(|p| p as u32));
        let rows: Vec<u32> = logit_rows(spans).map(|r| r as u32).collect();
        let n_logits = rows.len();
        let mut words: Vec<u32> = slots.chain(positions).chain(rows).collect();
        if spans.iter().all(|s| s.n_tokens <= 1) {
            // A block for each token: where steps are recorded nothing can be written later.
            words.resize(words.len().next_multiple_of(2), 0);
            words.extend((0..n_tokens as u32).flat_map(|token| [token, 1]));
        }
        let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let buffer = Buffer::scratch(device, words.len())?;
        buffer.write(0, &words)?;
        Ok(Self {
            n_tokens,
            n_logits,
            longest: spans.iter().map(|s| s.start + s.n_tokens).max().unwrap_or(0),
            spans: spans.to_vec(),
            blocks: Mutex::default(),
            n_bytes: words.len(),
            buffer,
        })
    }

    /// The step's tokens in blocks of up to `most_tokens`, those of a sequence in order.
    pub(crate) fn blocks(&self, device: &Arc<Device>, most_tokens: usize) -> Result<TokenBlocks> {
        if self.spans.iter().all(|s| s.n_tokens <= 1) {
            let (buffer, offset) = (Arc::clone(&self.buffer), self.n_bytes - 8 * self.n_tokens);
            return Ok(TokenBlocks { most_tokens, n: self.n_tokens, buffer, offset });
        }
        let mut made = lock(&self.blocks);
        if let Some(blocks) = made.iter().find(|b| b.most_tokens == most_tokens) {
            return Ok(blocks.clone());
        }
        let (mut first, mut words) = (0, Vec::new());
        for span in &self.spans {
            for at in (0..span.n_tokens).step_by(most_tokens) {
                words.extend([(first + at) as u32, most_tokens.min(span.n_tokens - at) as u32]);
            }
            first += span.n_tokens;
        }
        let buffer = Buffer::scratch(device, 4 * words.len())?;
        buffer.write(0, &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>())?;
        let blocks = TokenBlocks { most_tokens, n: words.len() / 2, buffer, offset: 0 };
        made.push(blocks.clone());
        Ok(blocks)
    }

    /// A block for each sequence that has tokens in the step.
    pub(crate) fn whole_spans(&self, device: &Arc<Device>) -> Result<TokenBlocks> {
        self.blocks(device, usize::MAX)
    }

    pub(crate) fn args(&self) -> StepArgs {
        let slots = self.buffer.at();
        StepArgs { slots, positions: slots + 4 * self.n_tokens as u64 }
    }

    /// Where the rows of the wanted logits are.
    pub(crate) fn logit_rows(&self) -> u64 {
        self.buffer.at() + 8 * self.n_tokens as u64
    }

    /// Checks that an op's argument has a row for each token.
    pub(crate) fn check(&self, op: &'static str, what: &'static str, x: &CudaTensor) -> Result<()> {
        let n = self.n_tokens;
        ensure(x.dims()[0] == n, op, what, format_args!("the {n} tokens of the step"), x)
    }
}

impl std::fmt::Debug for CudaStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaStep").field("spans", &self.0.spans).finish_non_exhaustive()
    }
}

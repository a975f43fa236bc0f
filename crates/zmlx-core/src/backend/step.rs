//! What a step computes: consecutive tokens of some sequences.

use crate::error::ensure;
use crate::{Error, Fusion, Result};

/// Slots of a cache are below this number.
pub const MAX_SLOTS: usize = 1 << 20;
/// Positions of a sequence are below this number, so a device may store them as signed 32-bit integers.
pub const MAX_POSITIONS: usize = 1 << 31;

/// Consecutive tokens of one sequence within a batch.
///
/// A prompt is one span of many tokens, a decode step one span of one token per sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The sequence: an index into the caches' slots.
    pub slot: usize,
    /// Position of the first token: the number of tokens of this sequence already cached.
    pub start: usize,
    /// Number of tokens.
    pub n_tokens: usize,
    /// Which of the tokens' logits are wanted.
    pub logits: Logits,
}

/// Which tokens of a span have their logits computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// No token: this part of a prompt does not reach its end.
    None,
    /// The last token, if there is one.
    Last,
    /// Every token.
    All,
}

impl Span {
    /// Number of tokens whose logits are wanted.
    pub fn n_logits(&self) -> usize {
        match self.logits {
            Logits::None => 0,
            Logits::Last => self.n_tokens.min(1),
            Logits::All => self.n_tokens,
        }
    }
}

/// The rows of a batch whose logits are wanted, in the order of the spans.
pub fn logit_rows(spans: &[Span]) -> impl Iterator<Item = usize> + '_ {
    let mut end = 0;
    spans.iter().flat_map(move |span| {
        end += span.n_tokens;
        end - span.n_logits()..end
    })
}

/// What a recorded program of a step depends on, if a backend keeps one: see
/// [`Backend::run_step`](crate::Backend::run_step).
/// Steps with equal keys and equal shapes run the same ops on the same weights and caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepKey {
    /// The caches, and with them the model: a number that is unique in this process.
    pub caches: u64,
    /// The fused ops in use.
    pub fusion: Fusion,
}

/// Checks what every backend requires of the spans of a step, and returns their total number of tokens.
///
/// # Errors
/// If two spans have the same slot, or a slot or position is past [`MAX_SLOTS`] or [`MAX_POSITIONS`].
pub fn check_spans(spans: &[Span]) -> Result<usize> {
    const OP: &str = "step";
    let mut n_tokens = 0usize;
    for (i, span) in spans.iter().enumerate() {
        if span.slot >= MAX_SLOTS {
            return Err(Error::IndexOutOfRange { op: OP, what: "slot", index: span.slot, len: MAX_SLOTS });
        }
        let end = span.start.checked_add(span.n_tokens);
        let fits = end.is_some_and(|end| end <= MAX_POSITIONS);
        ensure(fits, OP, "spans", format_args!("positions below {MAX_POSITIONS}"), span)?;
        // Two spans of one slot would have to follow each other; nothing needs that.
        let once = spans[..i].iter().all(|s| s.slot != span.slot);
        ensure(once, OP, "spans", "each slot once", span)?;
        n_tokens += span.n_tokens;
    }
    ensure(n_tokens < MAX_POSITIONS, OP, "spans", "fewer tokens", n_tokens)?;
    Ok(n_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_logits() {
        let span = |slot, n_tokens, logits| Span { slot, start: 0, n_tokens, logits };
        let spans = [
            span(0, 3, Logits::Last),
            span(1, 2, Logits::None),
            span(2, 0, Logits::Last),
            span(3, 2, Logits::All),
            span(4, 1, Logits::Last),
        ];
        assert_eq!(logit_rows(&spans).collect::<Vec<_>>(), [2, 5, 6, 7]);
        assert_eq!(check_spans(&spans).unwrap(), 8);
    }
}

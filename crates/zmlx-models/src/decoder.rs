//! The decoder: embedding, layers, final norm and head, for every model type.

mod load;

use zmlx_kernels::{Backend, Fusion, PrefillStyle, Span, stock};

use crate::architecture::Architecture;
use crate::attention::take_rows;
use crate::layer::{FeedForward, Layer};
use crate::loader::Progress;
use crate::{Error, Result};

/// Tokens of a prompt that are computed at once: bounds the memory that a long prompt needs. A backend may prefer
/// another size ([`Backend::prefill_style`]).
pub const PREFILL_CHUNK: usize = 512;

/// A loaded model on a backend.
#[derive(Debug)]
pub struct Model<B: Backend> {
    pub(crate) backend: B,
    pub(crate) architecture: Architecture,
    pub(crate) eps: f32,
    pub(crate) embed: B::Weight,
    pub(crate) layers: Vec<Layer<B::Weight>>,
    pub(crate) norm: B::Weight,
    /// The embedding again, if the checkpoint ties them.
    head: B::Weight,
}

/// The caches of some sequences. Made by [`Model::state`].
#[derive(Debug)]
pub struct State<B: Backend> {
    pub(crate) caches: Vec<B::KvCache>,
    n_tokens: Vec<usize>,
}

impl<B: Backend> State<B> {
    /// Number of tokens of the sequence in `slot`; 0 for a slot that does not exist.
    pub fn n_tokens(&self, slot: usize) -> usize {
        self.n_tokens.get(slot).copied().unwrap_or(0)
    }

    /// Number of sequences.
    pub fn n_slots(&self) -> usize {
        self.n_tokens.len()
    }
}

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The sequence.
    pub slot: usize,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
}

/// Which positions' logits a step returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsOf {
    /// The last token of each input.
    Last,
    /// Every token.
    All,
}

/// A tensor inside the model, shown to a [`Tap`].
#[derive(Debug)]
pub enum TapValue<'a, B: Backend> {
    /// Activations.
    Tensor(&'a B::Tensor),
    /// Expert choices.
    Indices(&'a B::Indices),
}

/// Called with the name of each intermediate result: `embed`, `layers.I.attn`, `layers.I.router_logits`,
/// `layers.I.expert_indices`, `layers.I.expert_weights`, `layers.I.out`, `norm`, `logits`. What it returns for
/// `layers.I.out` takes that result's place; for others it is not used. From the last layer's `attn` on these have only the
/// positions whose logits are asked for.
pub type Tap<'a, B> = &'a mut dyn FnMut(&str, TapValue<'_, B>) -> Option<<B as Backend>::Tensor>;

impl<B: Backend> Model<B> {
    /// The backend that the model lives on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The model as its config describes it.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Empty caches for `n_slots` sequences.
    ///
    /// # Errors
    /// If `n_slots` is 0.
    pub fn state(&self, n_slots: usize) -> Result<State<B>> {
        let caches = self.layers.iter().map(|l| self.backend.kv_cache(l.attention.kv_layout(), n_slots));
        Ok(State { caches: caches.collect::<zmlx_kernels::Result<_>>()?, n_tokens: vec![0; n_slots] })
    }

    /// Shortens the sequence in `slot` to its first `n_tokens` tokens; 0 empties it.
    ///
    /// # Errors
    /// If the slot does not exist or holds fewer tokens.
    pub fn truncate(&self, state: &mut State<B>, slot: usize, n_tokens: usize) -> Result<()> {
        for cache in &mut state.caches {
            self.backend.truncate(cache, slot, n_tokens)?;
        }
        state.n_tokens[slot] = n_tokens;
        Ok(())
    }

    /// Computes the new tokens of some sequences and appends them to their caches.
    ///
    /// **Returns** logits, f32 `[n_inputs, vocab]` or `[n_tokens, vocab]`.
    ///
    /// # Errors
    /// If an input is empty, a slot is unknown or given twice, a token is not below the vocabulary's size, or a
    /// sequence would grow past `max_position_embeddings`. The state is then as before.
    pub fn forward(
        &self,
        state: &mut State<B>,
        inputs: &[Input<'_>],
        logits: LogitsOf,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        self.forward_tapped(state, inputs, logits, fusion, None)
    }

    /// As [`Model::forward`], showing every intermediate result to `tap`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_tapped(
        &self,
        state: &mut State<B>,
        inputs: &[Input<'_>],
        logits: LogitsOf,
        fusion: &Fusion,
        tap: Option<Tap<'_, B>>,
    ) -> Result<B::Tensor> {
        let spans = self.spans(state, inputs)?;
        let ids = match inputs {
            [one] => self.backend.indices(one.tokens, &[one.tokens.len()])?,
            _ => {
                let ids: Vec<u32> = inputs.iter().flat_map(|i| i.tokens).copied().collect();
                self.backend.indices(&ids, &[ids.len()])?
            }
        };
        self.append(state, (&ids, &spans), logits, fusion, tap)
    }

    /// As [`Model::forward`] with one token whose id may still be on the device: the result of [`Backend::argmax`].
    ///
    /// **Shapes** id `[1]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_id(
        &self,
        state: &mut State<B>,
        slot: usize,
        id: &B::Indices,
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        // The embedding checks the id; everything else is checked as for a token that exists.
        let spans = self.spans(state, &[Input { slot, tokens: &[0] }])?;
        self.append(state, (id, &spans), LogitsOf::Last, fusion, None)
    }

    fn append(
        &self,
        state: &mut State<B>,
        (ids, spans): (&B::Indices, &[Span]),
        logits: LogitsOf,
        fusion: &Fusion,
        tap: Option<Tap<'_, B>>,
    ) -> Result<B::Tensor> {
        let result = self.step(state, (ids, spans), logits, fusion, tap);
        for span in spans {
            match &result {
                Ok(_) => state.n_tokens[span.slot] += span.n_tokens,
                // Layers before the one that failed have appended already.
                Err(_) => {
                    for cache in &mut state.caches {
                        let _ = self.backend.truncate(cache, span.slot, span.start);
                    }
                }
            }
        }
        result
    }

    /// Appends a prompt to a sequence in chunks and returns the logits of its last token, `[1, vocab]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn prefill(
        &self,
        state: &mut State<B>,
        input: Input<'_>,
        fusion: &Fusion,
        progress: Progress<'_>,
    ) -> Result<B::Tensor> {
        self.spans(state, &[input])?; // the whole prompt is checked before its first chunk
        let n_tokens = input.tokens.len();
        let (chunk, n_in_chunks) = match self.backend.prefill_style() {
            PrefillStyle::Whole => (PREFILL_CHUNK, n_tokens),
            PrefillStyle::LastTokenAlone { chunk } => (chunk.max(1), n_tokens - 1),
        };
        let mut n_done = 0;
        loop {
            let end = if n_done < n_in_chunks { (n_done + chunk).min(n_in_chunks) } else { n_tokens };
            let tokens = &input.tokens[n_done..end];
            let logits = self.forward(state, &[Input { tokens, ..input }], LogitsOf::Last, fusion)?;
            n_done = end;
            if n_done == n_tokens {
                progress(n_done, n_tokens);
                return Ok(logits);
            }
            self.backend.eval_caches(&state.caches)?;
            progress(n_done, n_tokens);
        }
    }

    fn spans(&self, state: &State<B>, inputs: &[Input<'_>]) -> Result<Vec<Span>> {
        let (vocab, limit) = (self.architecture.vocab_size, self.architecture.max_position_embeddings);
        let mut spans: Vec<Span> = Vec::with_capacity(inputs.len());
        for input in inputs {
            if input.slot >= state.n_slots() || spans.iter().any(|s| s.slot == input.slot) {
                return Err(Error::Slot { slot: input.slot, n_slots: state.n_slots() });
            }
            if input.tokens.is_empty() {
                return Err(Error::EmptyPrompt);
            }
            if let Some(token) = input.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(Error::TokenOutOfRange { token: *token, vocab });
            }
            let span =
                Span { slot: input.slot, start: state.n_tokens[input.slot], n_tokens: input.tokens.len() };
            if span.start + span.n_tokens > limit {
                return Err(Error::ContextLength { n_tokens: span.start + span.n_tokens, limit });
            }
            spans.push(span);
        }
        if spans.is_empty() { Err(Error::EmptyPrompt) } else { Ok(spans) }
    }

    fn step(
        &self,
        state: &mut State<B>,
        (ids, spans): (&B::Indices, &[Span]),
        logits: LogitsOf,
        fusion: &Fusion,
        mut tap: Option<Tap<'_, B>>,
    ) -> Result<B::Tensor> {
        let b = &self.backend;
        let wanted = wanted_rows(spans, logits);
        let mut show =
            |name: std::fmt::Arguments<'_>, value: TapValue<'_, B>| tap.as_mut()?(&name.to_string(), value);
        let mut h = b.embed(&self.embed, ids)?;
        show(format_args!("embed"), TapValue::Tensor(&h));
        let Some(first) = self.layers.first() else {
            return Ok(b.linear(&take_rows(b, h, wanted.as_deref())?, &self.head)?);
        };
        let mut x = b.rms_norm(&h, &first.input_norm, self.eps)?;
        for (i, (layer, cache)) in self.layers.iter().zip(&mut state.caches).enumerate() {
            // What no other layer sees is computed only where it is asked for.
            let wanted = wanted.as_deref().filter(|_| i + 1 == self.layers.len());
            let y = layer.attention.forward(b, &x, (cache, spans), wanted, fusion)?;
            h = take_rows(b, h, wanted)?;
            (h, x) = self.add_norm(&h, &y, &layer.post_norm, fusion)?;
            show(format_args!("layers.{i}.attn"), TapValue::Tensor(&h));
            let y = match &layer.feed_forward {
                FeedForward::Dense(mlp) => mlp.forward(b, &x, fusion)?,
                FeedForward::Moe(moe) => {
                    let (y, routing) = moe.forward_routed(b, &x, fusion)?;
                    show(format_args!("layers.{i}.router_logits"), TapValue::Tensor(&routing.logits));
                    show(format_args!("layers.{i}.expert_indices"), TapValue::Indices(&routing.experts));
                    show(format_args!("layers.{i}.expert_weights"), TapValue::Tensor(&routing.weights));
                    y
                }
            };
            let next_norm = self.layers.get(i + 1).map_or(&self.norm, |next| &next.input_norm);
            (h, x) = self.add_norm(&h, &y, next_norm, fusion)?;
            if let Some(other) = show(format_args!("layers.{i}.out"), TapValue::Tensor(&h)) {
                x = b.rms_norm(&other, next_norm, self.eps)?;
                h = other;
            }
        }
        show(format_args!("norm"), TapValue::Tensor(&x));
        let y = b.linear(&x, &self.head)?;
        show(format_args!("logits"), TapValue::Tensor(&y));
        Ok(y)
    }

    fn add_norm(
        &self,
        h: &B::Tensor,
        y: &B::Tensor,
        weight: &B::Weight,
        fusion: &Fusion,
    ) -> Result<(B::Tensor, B::Tensor)> {
        Ok(if fusion.add_rms_norm.is_on() {
            self.backend.add_rms_norm(h, y, weight, self.eps)?
        } else {
            stock::add_rms_norm(&self.backend, h, y, weight, self.eps)?
        })
    }
}

/// The rows whose logits are asked for, if these are not all.
fn wanted_rows(spans: &[Span], logits: LogitsOf) -> Option<Vec<usize>> {
    if logits == LogitsOf::All || spans.iter().all(|s| s.n_tokens == 1) {
        return None;
    }
    let mut end = 0;
    let last = spans.iter().map(|s| {
        end += s.n_tokens;
        end - 1
    });
    Some(last.collect())
}

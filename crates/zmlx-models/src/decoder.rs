//! The decoder: embedding, layers, final norm and head, for every model type.

mod load;

use std::sync::Arc;

use zmlx_kernels::{Backend, CacheSpec, Fusion, Logits, PrefillStyle, Span, StepKey, stock};
use zmlx_moe::Routing;

use crate::architecture::Architecture;
use crate::attention::Rows;
use crate::follow::{Change, StepIds};
use crate::layer::{FeedForward, Layer, PerLayerInputs};
use crate::loader::Progress;
use crate::{CachePool, Error, Lead, PoolOptions, Result, Slot};

/// A loaded model on a backend.
#[derive(Debug)]
pub struct Model<B: Backend> {
    id: u64,
    pub(crate) backend: Arc<B>,
    pub(crate) architecture: Architecture,
    pub(crate) eps: f32,
    /// Of several ranks that each hold some layers, the first has it.
    pub(crate) embed: Option<B::Weight>,
    pub(crate) per_layer_inputs: Option<PerLayerInputs<B::Weight>>,
    /// The index of the cache that each layer uses.
    pub(crate) cache_of: Vec<usize>,
    pub(crate) layers: Vec<Layer<B::Weight>>,
    /// What follows the layers, where this rank holds the last of them.
    pub(crate) end: Option<End<B::Weight>>,
    weight_bytes: u64,
    lead: Option<Arc<dyn Lead>>,
}

/// The final norm and the head.
#[derive(Debug)]
pub(crate) struct End<W> {
    pub(crate) norm: W,
    /// This is the embedding if the checkpoint ties the two.
    head: W,
    /// Rows of the head on each rank, if it is split.
    head_rows: Option<usize>,
}

/// The new tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The sequence.
    pub slot: Slot,
    /// Its next tokens, at least one.
    pub tokens: &'a [u32],
    /// Which of their logits are wanted.
    pub logits: Logits,
}

/// The new token of a sequence, as the device has chosen it from a row of the logits of the step before.
#[derive(Debug)]
pub struct ChosenInput<'a, B: Backend> {
    /// The sequence.
    pub slot: Slot,
    /// The token.
    pub id: &'a B::Indices,
    /// The row.
    pub row: usize,
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
/// `layers.I.expert_indices`, `layers.I.expert_weights`, `layers.I.out`, `norm`, `logits`. The returned value replaces
/// the result of `layers.I.out`; for other names it is ignored. From the `attn` of the last layer on, results have only
/// the positions whose logits are wanted.
pub type Tap<'a, B> = &'a mut dyn FnMut(&str, TapValue<'_, B>) -> Option<<B as Backend>::Tensor>;

impl<B: Backend> Model<B> {
    /// The backend that holds the model.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The model as its config describes it.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// An empty pool of caches for sequences of this model.
    ///
    /// # Errors
    /// If the backend does not have the format.
    pub fn pool(&self, options: PoolOptions) -> Result<CachePool<B>> {
        let kinds = self.architecture.layers.iter().filter_map(|layer| layer.mixer.cache_kind());
        let specs = kinds.map(|kind| CacheSpec { kind, format: options.format });
        CachePool::new(self.id, Arc::clone(&self.backend), specs.collect(), options, self.lead.clone())
    }

    /// Bytes of the weights that it has given to the backend: of one of several ranks those of its part.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// From here on the other ranks are told what this one does: they [follow](crate::follow()). Pools that exist are not
    /// theirs.
    pub fn lead(&mut self, lead: Arc<dyn Lead>) {
        self.lead = Some(lead);
    }

    /// Ends all ranks if an error has come between them: the others were told to compute what has failed here.
    pub(crate) fn check_alike(&self, error: &Error) {
        if let (Some(lead), Error::Kernels(_)) = (&self.lead, error.root()) {
            lead.give_up(error);
        }
    }

    /// Computes the new tokens of some sequences and appends them to their caches.
    ///
    /// **Returns** logits, f32 `[n_logits, vocab]`: a row for each wanted position, in the order of the inputs.
    ///
    /// # Errors
    /// [`Error::Input`], which names the sequence, if an input is empty, its slot is unknown or given twice, a token is
    /// not below the vocabulary's size, or the sequence would grow past `max_position_embeddings`;
    /// [`Error::ForeignPool`]; [`Error::CacheFull`] if the caches would grow past their limit; any error of the
    /// backend. Then the pool is unchanged.
    pub fn forward(
        &self,
        pool: &mut CachePool<B>,
        inputs: &[Input<'_>],
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        self.forward_tapped(pool, inputs, fusion, None)
    }

    /// As [`Model::forward`]; also passes every intermediate result to `tap`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_tapped(
        &self,
        pool: &mut CachePool<B>,
        inputs: &[Input<'_>],
        fusion: &Fusion,
        tap: Option<Tap<'_, B>>,
    ) -> Result<B::Tensor> {
        let spans = self.spans(pool, inputs)?;
        pool.check_room(&spans)?;
        let all = || inputs.iter().flat_map(|i| i.tokens).copied().collect::<Vec<u32>>();
        let ids = match inputs {
            [one] => self.backend.indices(one.tokens, &[one.tokens.len()])?,
            _ => {
                let ids = all();
                self.backend.indices(&ids, &[ids.len()])?
            }
        };
        let known = || StepIds::Known(all());
        pool.tell(|| Change::Step { spans: spans.iter().map(Into::into).collect(), ids: known() });
        self.run(pool, (&ids, &spans), fusion, tap).inspect_err(|error| self.check_alike(error))
    }

    /// As [`Model::forward`] with one token for each sequence, whose id may still be on the device: the result of
    /// [`Backend::sample`]. Returns their logits, `[n, vocab]`.
    ///
    /// **Shapes** each id `[1]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_chosen(
        &self,
        pool: &mut CachePool<B>,
        inputs: &[ChosenInput<'_, B>],
        fusion: &Fusion,
    ) -> Result<B::Tensor> {
        // The embedding checks the ids. Everything else is checked with the placeholder token 0.
        let placeholder = |i: &ChosenInput<'_, B>| Input { slot: i.slot, tokens: &[0], logits: Logits::Last };
        let spans = self.spans(pool, &inputs.iter().map(placeholder).collect::<Vec<_>>())?;
        pool.check_room(&spans)?;
        let ids = self.backend.join_indices(&inputs.iter().map(|i| i.id).collect::<Vec<_>>())?;
        if self.lead.is_none() {
            return self.run(pool, (&ids, &spans), fusion, None);
        }
        let rows = inputs.iter().map(|i| i.row).collect();
        let spans_of_others = spans.iter().map(Into::into).collect();
        pool.tell(|| Change::Step { spans: spans_of_others, ids: StepIds::Chosen { rows } });
        let ids = self.backend.of_rank_0(ids, self.architecture.vocab_size).map_err(Error::from);
        let logits = ids.and_then(|ids| self.run(pool, (&ids, &spans), fusion, None));
        logits.inspect_err(|error| self.check_alike(error))
    }

    /// Appends a prompt to a sequence in chunks and returns the logits of its last token, `[1, vocab]`.
    ///
    /// As [`Model::forward`]. The whole prompt is checked before its first chunk is computed. If the backend fails in a
    /// later chunk, the earlier chunks stay: [`CachePool::n_tokens`] tells how many tokens were computed.
    pub fn prefill(
        &self,
        pool: &mut CachePool<B>,
        slot: Slot,
        tokens: &[u32],
        fusion: &Fusion,
        progress: Progress<'_>,
    ) -> Result<B::Tensor> {
        let whole = self.spans(pool, &[Input { slot, tokens, logits: Logits::Last }])?;
        pool.check_room(&whole)?;
        let n_tokens = tokens.len();
        let chunk = self.prompt_chunk();
        let n_in_chunks = n_tokens - self.n_last_alone();
        let mut n_done = 0;
        loop {
            let end = if n_done < n_in_chunks { (n_done + chunk).min(n_in_chunks) } else { n_tokens };
            let logits = if end == n_tokens { Logits::Last } else { Logits::None };
            let y = self.forward(pool, &[Input { slot, tokens: &tokens[n_done..end], logits }], fusion)?;
            n_done = end;
            if n_done == n_tokens {
                progress(n_done, n_tokens);
                return Ok(y);
            }
            self.backend.eval_caches(&pool.caches)?;
            progress(n_done, n_tokens);
        }
    }

    /// Tokens of a prompt that are computed at once.
    pub(crate) fn prompt_chunk(&self) -> usize {
        match self.backend.prefill_style() {
            PrefillStyle::Whole { chunk } | PrefillStyle::LastTokenAlone { chunk } => chunk.max(1),
        }
    }

    /// Number of tokens at the end of a prompt that are computed in a step of their own.
    pub(crate) fn n_last_alone(&self) -> usize {
        match self.backend.prefill_style() {
            PrefillStyle::Whole { .. } => 0,
            PrefillStyle::LastTokenAlone { .. } => 1,
        }
    }

    fn spans(&self, pool: &CachePool<B>, inputs: &[Input<'_>]) -> Result<Vec<Span>> {
        pool.check_model(self.id)?;
        let mut spans: Vec<Span> = Vec::with_capacity(inputs.len());
        for input in inputs {
            let span = self.span(pool, input, &spans);
            spans.push(span.map_err(|e| Error::Input { slot: input.slot, source: Box::new(e) })?);
        }
        if spans.is_empty() { Err(Error::EmptyPrompt) } else { Ok(spans) }
    }

    fn span(&self, pool: &CachePool<B>, input: &Input<'_>, others: &[Span]) -> Result<Span> {
        let (vocab, limit) = (self.architecture.vocab_size, self.architecture.max_position_embeddings);
        let slot = pool.index(input.slot)?;
        if others.iter().any(|s| s.slot == slot) {
            return Err(Error::Slot);
        }
        if input.tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(token) = input.tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::TokenOutOfRange { token: *token, vocab });
        }
        let (start, n_tokens) = (pool.n_tokens(input.slot), input.tokens.len());
        if start + n_tokens > limit {
            return Err(Error::ContextLength { n_tokens: start + n_tokens, limit });
        }
        Ok(Span { slot, start, n_tokens, logits: input.logits })
    }

    /// Runs a step whose spans have been checked. It succeeds completely or changes nothing.
    pub(crate) fn run(
        &self,
        pool: &mut CachePool<B>,
        (ids, spans): (&B::Indices, &[Span]),
        fusion: &Fusion,
        mut tap: Option<Tap<'_, B>>,
    ) -> Result<B::Tensor> {
        let step = self.backend.step(spans)?;
        let is_tapped = tap.is_some();
        let result = pool.reserve(spans).and_then(|()| {
            let key = StepKey { caches: pool.id, fusion: *fusion };
            let mut body = |ids: &B::Indices| {
                let n_logits = spans.iter().map(Span::n_logits).sum();
                let at = At { step: &step, n_logits };
                let tap: Option<Tap<'_, B>> = match &mut tap {
                    Some(tap) => Some(&mut **tap),
                    None => None,
                };
                self.layers(&mut pool.caches, ids, at, fusion, tap)
            };
            Ok(if is_tapped { body(ids)? } else { self.backend.run_step(&key, &step, ids, &mut body)? })
        });
        match &result {
            Ok(_) => pool.commit(&step, spans),
            Err(_) => pool.rollback(&step),
        }
        result
    }

    /// Computes the logits from token ids.
    fn layers(
        &self,
        caches: &mut [B::Cache],
        ids: &B::Indices,
        at: At<'_, B::Step>,
        fusion: &Fusion,
        mut tap: Option<Tap<'_, B>>,
    ) -> zmlx_kernels::Result<B::Tensor> {
        let b = &*self.backend;
        let At { step, n_logits } = at;
        let mut show =
            |name: std::fmt::Arguments<'_>, value: TapValue<'_, B>| tap.as_mut()?(&name.to_string(), value);
        let mut h = self.enter(ids, b.n_tokens(step))?;
        show(format_args!("embed"), TapValue::Tensor(&h));
        let (first, end) = match (self.layers.first(), &self.end) {
            (None, None) => return self.no_logits(),
            (None, Some(end)) => return self.logits(end, &b.take_logit_rows(&h, step)?),
            (Some(first), end) => (first, end.as_ref()),
        };
        let inputs = self.per_layer_inputs.as_ref().map(|of| of.of(b, ids, &h, self.eps)).transpose()?;
        let mut x = b.rms_norm(&h, &first.input_norm, self.eps)?;
        for (i, (layer, cache)) in self.layers.iter().zip(&self.cache_of).enumerate() {
            let cache = &mut caches[*cache];
            // In the last layer, what no later layer sees is computed only for the positions whose logits are wanted.
            let is_last_here = i + 1 == self.layers.len();
            let is_last = is_last_here && end.is_some();
            let rows = if is_last && n_logits < b.n_tokens(step) { Rows::Wanted } else { Rows::All };
            let y = layer.attention.forward(b, &x, (cache, step), rows, fusion)?;
            if is_last && n_logits == 0 {
                return self.no_logits();
            }
            let y = self.normed(b.all_sum(y)?, layer.extras.mixer_norm.as_ref())?;
            h = rows.of(b, h, step)?;
            (h, x) = self.add_norm(&h, &y, &layer.post_norm, fusion)?;
            show(format_args!("layers.{i}.attn"), TapValue::Tensor(&h));
            let y = match &layer.feed_forward {
                FeedForward::Dense(mlp) => mlp.forward(b, &x, fusion)?,
                FeedForward::Moe(moe) => {
                    let (y, routing) = moe.forward_routed(b, &x, fusion)?;
                    show_routing(i, &routing, &mut show);
                    y
                }
                FeedForward::Beside(beside) => {
                    let y = self.normed(beside.mlp.forward(b, &x, fusion)?, Some(&beside.mlp_norm))?;
                    let x = b.rms_norm(&h, &beside.moe_input_norm, self.eps)?;
                    let (of_experts, routing) = beside.moe.forward_beside(b, &h, &x, fusion)?;
                    show_routing(i, &routing, &mut show);
                    b.add(&y, &self.normed(of_experts, Some(&beside.moe_norm))?)?
                }
            };
            let y = self.normed(b.all_sum(y)?, layer.extras.feed_forward_norm.as_ref())?;
            let next_norm = match (self.layers.get(i + 1), end) {
                (Some(next), _) => &next.input_norm,
                (None, Some(end)) => &end.norm,
                // Another rank goes on from here.
                (None, None) => &layer.input_norm,
            };
            if layer.extras.ends_with_sum() {
                (h, x) = self.add_norm(&h, &y, next_norm, fusion)?;
            } else {
                h = self.end_of_layer(layer, b.add(&h, &y)?, |width| {
                    let Some(inputs) = &inputs else { return Ok(None) };
                    let input = b.slice_last(inputs, i * width..(i + 1) * width)?;
                    rows.of(b, input, step).map(Some)
                })?;
                x = b.rms_norm(&h, next_norm, self.eps)?;
            }
            if let Some(other) = show(format_args!("layers.{i}.out"), TapValue::Tensor(&h)) {
                x = b.rms_norm(&other, next_norm, self.eps)?;
                h = other;
            }
        }
        let Some(end) = end else { return self.pass_on(&h, n_logits) };
        show(format_args!("norm"), TapValue::Tensor(&x));
        let y = self.logits(end, &x)?;
        show(format_args!("logits"), TapValue::Tensor(&y));
        let stage = b.stage();
        if !stage.is_whole() {
            b.send(&y, &end.norm, 0)?;
        }
        Ok(y)
    }

    /// The residual stream before the first layer that this rank holds.
    pub(crate) fn enter(&self, ids: &B::Indices, n_tokens: usize) -> zmlx_kernels::Result<B::Tensor> {
        let b = &*self.backend;
        let stage = b.stage();
        if let Some(embed) = &self.embed {
            let h = b.embed(embed, ids)?;
            return match self.architecture.extras.embed_factor {
                Some(factor) => b.scale(&h, factor),
                None => Ok(h),
            };
        }
        match self.layers.first() {
            Some(first) => {
                let shape = [n_tokens, self.architecture.hidden_size];
                b.receive(&shape, &first.input_norm, stage.rank - 1)
            }
            // Each of several ranks has a layer.
            None => b.tensor(&[], &[0, self.architecture.hidden_size]),
        }
    }

    /// Sends the residual stream to the rank that holds the next layer. Rank 0 gets the logits from the last.
    pub(crate) fn pass_on(&self, h: &B::Tensor, n_logits: usize) -> zmlx_kernels::Result<B::Tensor> {
        let b = &*self.backend;
        let (stage, Some(last)) = (b.stage(), self.layers.last()) else { return self.no_logits() };
        b.send(h, &last.input_norm, stage.rank + 1)?;
        if stage.rank > 0 || n_logits == 0 {
            return self.no_logits();
        }
        b.receive(&[n_logits, self.architecture.vocab_size], &last.input_norm, stage.n_ranks - 1)
    }

    fn no_logits(&self) -> zmlx_kernels::Result<B::Tensor> {
        self.backend.tensor(&[], &[0, self.architecture.vocab_size])
    }

    /// **Shapes** x `[n_logits, hidden]` → `[n_logits, vocab]`.
    fn logits(&self, end: &End<B::Weight>, x: &B::Tensor) -> zmlx_kernels::Result<B::Tensor> {
        let b = &*self.backend;
        let mut y = b.linear(x, &end.head)?;
        if let Some(rows) = end.head_rows {
            y = b.gather_columns(y, rows, self.architecture.vocab_size)?;
        }
        match self.architecture.extras.logit_cap {
            Some(cap) => b.soft_cap(&y, cap),
            None => Ok(y),
        }
    }

    /// The norm of `y`, if there is one.
    pub(crate) fn normed(&self, y: B::Tensor, weight: Option<&B::Weight>) -> zmlx_kernels::Result<B::Tensor> {
        match weight {
            Some(weight) => self.backend.rms_norm(&y, weight, self.eps),
            None => Ok(y),
        }
    }

    /// Computes what follows a layer's last residual sum `h`: the layer's own embedding of the tokens, and a factor.
    pub(crate) fn end_of_layer(
        &self,
        layer: &Layer<B::Weight>,
        mut h: B::Tensor,
        input: impl FnOnce(usize) -> zmlx_kernels::Result<Option<B::Tensor>>,
    ) -> zmlx_kernels::Result<B::Tensor> {
        let b = &*self.backend;
        if let (Some(of_layer), Some(inputs)) = (&layer.extras.per_layer_input, &self.per_layer_inputs)
            && let Some(input) = input(inputs.width)?
        {
            h = b.add(&h, &of_layer.forward(b, &h, &input, self.eps)?)?;
        }
        match layer.extras.factor {
            Some(factor) => b.scale(&h, factor),
            None => Ok(h),
        }
    }

    fn add_norm(
        &self,
        h: &B::Tensor,
        y: &B::Tensor,
        weight: &B::Weight,
        fusion: &Fusion,
    ) -> zmlx_kernels::Result<(B::Tensor, B::Tensor)> {
        if fusion.add_rms_norm.is_on() {
            self.backend.add_rms_norm(h, y, weight, self.eps)
        } else {
            stock::add_rms_norm(&*self.backend, h, y, weight, self.eps)
        }
    }
}

/// Passes a layer's choice of experts to the tap.
fn show_routing<B: Backend>(
    layer_idx: usize,
    routing: &Routing<B>,
    show: &mut impl FnMut(std::fmt::Arguments<'_>, TapValue<'_, B>) -> Option<B::Tensor>,
) {
    show(format_args!("layers.{layer_idx}.router_logits"), TapValue::Tensor(&routing.logits));
    show(format_args!("layers.{layer_idx}.expert_indices"), TapValue::Indices(&routing.experts));
    show(format_args!("layers.{layer_idx}.expert_weights"), TapValue::Tensor(&routing.weights));
}

/// The step that is being computed.
struct At<'a, S> {
    step: &'a S,
    /// Number of tokens whose logits are wanted.
    n_logits: usize,
}

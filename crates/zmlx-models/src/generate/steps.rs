//! The steps of a generation, one ahead of the reader where the backend is lazy.

use zmlx_kernels::{Backend, Fusion, SampleSettings};

use crate::{CachePool, GenerateOptions, Input, Logits, Model, Result, SampleContext, Sampled, Sampler, Slot};

/// Where the next token comes from.
///
/// A lazy backend gives the arg-max of a step as a value that is not computed yet. The next step is built on it and
/// started before the token is read, so that the device goes on while the host reads, prints and builds. This needs a
/// choice without chance and without the history: temperature 0, no penalty.
pub(super) struct Steps<'a, B: Backend> {
    model: &'a Model<B>,
    slot: Slot,
    fusion: &'a Fusion,
    max_tokens: usize,
    next: Next<B>,
    /// Whether the caches hold the token that was returned last.
    is_ahead: bool,
    logits: Vec<f32>,
}

enum Next<B: Backend> {
    /// The logits of the next token; none once they are used.
    Logits(Option<B::Tensor>),
    /// The next token and its logits, both being computed.
    Started(Started<B>),
}

struct Started<B: Backend> {
    id: B::Indices,
    logits: B::Tensor,
}

impl<'a, B: Backend> Steps<'a, B> {
    /// Begins with the logits of the prompt's last token.
    pub(super) fn new(
        model: &'a Model<B>,
        slot: Slot,
        options: &'a GenerateOptions,
        y: B::Tensor,
    ) -> Result<Self> {
        let greedy = options.sampling.temperature == 0.0 && options.sampling.repetition_penalty.is_none();
        let id = if greedy && options.sampling.suits_devices() { best(model, &y)? } else { None };
        let next = match id {
            Some(id) => {
                let logits = model.backend().eval_async(y, &id)?;
                Next::Started(Started { id, logits })
            }
            None => Next::Logits(Some(y)),
        };
        Ok(Self {
            model,
            slot,
            fusion: &options.fusion,
            max_tokens: options.max_tokens,
            next,
            is_ahead: false,
            logits: Vec::new(),
        })
    }

    /// The next token after `n_generated` others; none if the context is full.
    pub(super) fn next(
        &mut self,
        pool: &mut CachePool<B>,
        sampler: &mut Sampler,
        history: &[u32],
        n_generated: usize,
    ) -> Result<Option<Sampled>> {
        let b = self.model.backend();
        let context = SampleContext { history, n_prompt: history.len() - n_generated, ..Default::default() };
        let is_full = pool.n_tokens(self.slot) == self.model.architecture().max_position_embeddings;
        match &mut self.next {
            Next::Logits(first) => {
                let y = match first.take() {
                    Some(first) => first,
                    None if is_full => return Ok(None),
                    None => {
                        let tokens = &history[history.len() - 1..];
                        let input = Input { slot: self.slot, tokens, logits: Logits::Last };
                        self.model.forward(pool, &[input], self.fusion)?
                    }
                };
                b.read(&y, &mut self.logits)?;
                sampler.sample(&mut self.logits, &context).map(Some)
            }
            Next::Started(now) => {
                if n_generated > 0 && !self.is_ahead {
                    return Ok(None); // there was no room for the last token
                }
                self.is_ahead = false;
                let following = if is_full || n_generated + 1 == self.max_tokens {
                    None
                } else {
                    let y = self.model.forward_id(pool, self.slot, &now.id, self.fusion)?;
                    self.is_ahead = true;
                    match best(self.model, &y)? {
                        Some(id) => Some(Started { logits: b.eval_async(y, &id)?, id }),
                        None => unreachable!("the backend gave one for the prompt"),
                    }
                };
                let mut id = Vec::with_capacity(1);
                b.read_indices(&now.id, &mut id)?;
                b.read(&now.logits, &mut self.logits)?;
                if let Some(following) = following {
                    *now = following;
                }
                sampler.assess(&mut self.logits, &context, id[0]).map(Some)
            }
        }
    }

    /// Takes back a step that was started for a token that nobody asked for.
    pub(super) fn finish(self, pool: &mut CachePool<B>) -> Result<()> {
        if self.is_ahead {
            pool.truncate(self.slot, pool.n_tokens(self.slot) - 1)?;
        }
        Ok(())
    }
}

fn best<B: Backend>(model: &Model<B>, logits: &B::Tensor) -> Result<Option<B::Indices>> {
    let greedy = SampleSettings {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        min_p: None,
        repetition: None,
        seed: 0,
    };
    Ok(model.backend().sample(logits, 0, &greedy)?)
}

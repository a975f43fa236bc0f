//! A sequence in progress.

use candle_core::{Device, Tensor};

use super::Model;
use super::layers::KvCache;
use super::trace::{Matrix, Recorder, Trace};
use crate::Result;
use crate::compare::argmax;
use crate::ops::soft_cap;

/// A model, with the keys and values of the tokens that it has seen.
#[derive(Debug)]
pub struct Session<'m> {
    model: &'m Model,
    caches: Vec<KvCache>,
    n_seen: usize,
}

impl<'m> Session<'m> {
    pub(super) fn new(model: &'m Model) -> Self {
        let caches = model.layers.iter().map(|_| KvCache::default()).collect();
        Self { model, caches, n_seen: 0 }
    }

    /// Number of tokens seen so far, which is the position of the next one.
    #[must_use]
    pub fn n_seen(&self) -> usize {
        self.n_seen
    }

    /// Adds tokens and returns the logits after each, `[n_tokens, vocab_size]`.
    ///
    /// # Errors
    /// No tokens, or a token outside the vocabulary. Then the session is unchanged.
    pub fn step(&mut self, tokens: &[u32]) -> Result<Matrix> {
        Ok(self.run(tokens, Recorder::default())?.logits)
    }

    /// As [`Self::step`], with all intermediate results of these tokens.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_traced(&mut self, tokens: &[u32]) -> Result<Trace> {
        self.run(tokens, Recorder::keeping())
    }

    /// Adds `prompt`, then decodes `n` tokens greedily (of equal logits the lowest token). No token ends the decoding.
    /// The last token is not added. If a step gives NaN logits, the decoding ends early.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn greedy(&mut self, prompt: &[u32], n: usize) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(n);
        let mut logits = self.step(prompt)?;
        while tokens.len() < n {
            let Some(best) = argmax(logits.last_row()) else { break };
            tokens.push(best as u32);
            if tokens.len() < n {
                logits = self.step(&[best as u32])?;
            }
        }
        Ok(tokens)
    }

    fn run(&mut self, tokens: &[u32], mut recorder: Recorder) -> Result<Trace> {
        let model = self.model;
        model.check_tokens(tokens)?;
        let positions: Vec<u32> = (self.n_seen as u32..).take(tokens.len()).collect();
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let mut h = model.embed_tokens.index_select(&ids, 0)?;
        if let Some(factor) = model.around.embed_factor {
            h = (h * factor)?;
        }
        let inputs = model.per_layer_inputs.as_ref().map(|of| of.of(&ids, &h)).transpose()?;
        recorder.record("embed", &h)?;
        for (layer_idx, layer) in model.layers.iter().enumerate() {
            let cache = &mut self.caches[layer.cache_idx];
            let x = layer.input_layernorm.forward(&h)?;
            let mut y = layer.self_attn.forward(&x, &positions, cache)?;
            if let Some((after_attention, ..)) = &layer.sandwich {
                y = after_attention.forward(&y)?;
            }
            h = (h + y)?;
            recorder.record(format!("layers.{layer_idx}.attn"), &h)?;
            recorder.record_state(layer_idx, cache);
            let x = layer.post_attention_layernorm.forward(&h)?;
            let y = layer.mlp.forward(&h, &x, layer_idx, &mut recorder)?;
            h = match &layer.sandwich {
                None => (h + y)?,
                Some((_, after_mlp, end)) => {
                    let input = inputs.as_ref().and_then(|inputs| inputs.get(layer_idx));
                    end.forward((h + after_mlp.forward(&y)?)?, input)?
                }
            };
            recorder.record(format!("layers.{layer_idx}.out"), &h)?;
        }
        let h = model.norm.forward(&h)?;
        recorder.record("norm", &h)?;
        let mut logits = Matrix::from_tensor(&model.lm_head.forward(&h)?)?;
        if let Some(cap) = model.around.logit_cap {
            logits.data = soft_cap(&logits.data, cap).into_iter().map(|x| x as f32).collect();
        }
        self.n_seen += tokens.len();
        Ok(recorder.finish(logits))
    }
}

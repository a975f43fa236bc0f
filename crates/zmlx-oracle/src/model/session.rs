//! A sequence in progress.

use candle_core::{Device, Tensor};

use super::Model;
use super::layers::KvCache;
use super::trace::{Matrix, Recorder, Trace};
use crate::Result;
use crate::compare::argmax;

/// A model and the keys and values of the tokens it has seen.
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

    /// Tokens seen so far: the position of the next one.
    #[must_use]
    pub fn n_seen(&self) -> usize {
        self.n_seen
    }

    /// Feeds tokens and gives the logits after each, `[n_tokens, vocab_size]`.
    ///
    /// # Errors
    /// No tokens, or a token outside the vocabulary; the session is then as before.
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

    /// Feeds `prompt`, then decodes `n` tokens greedily (of equal logits the lowest token), heeding no stop token.
    /// The last one is not fed. Logits of NaN end the decoding early.
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
        recorder.record("embed", &h)?;
        for (layer_idx, (layer, cache)) in model.layers.iter().zip(&mut self.caches).enumerate() {
            let x = layer.input_layernorm.forward(&h)?;
            h = (h + layer.self_attn.forward(&x, &positions, cache)?)?;
            recorder.record(format!("layers.{layer_idx}.attn"), &h)?;
            recorder.record_state(layer_idx, cache);
            let x = layer.post_attention_layernorm.forward(&h)?;
            h = (h + layer.mlp.forward(&x, layer_idx, &mut recorder)?)?;
            recorder.record(format!("layers.{layer_idx}.out"), &h)?;
        }
        let h = model.norm.forward(&h)?;
        recorder.record("norm", &h)?;
        let logits = Matrix::from_tensor(&model.lm_head.forward(&h)?)?;
        self.n_seen += tokens.len();
        Ok(recorder.finish(logits))
    }
}

//! Whole models in `f32`.
//!
//! A block is `h = x + attention(rms_norm(x)); out = h + mlp(rms_norm(h))`. The embedding comes before the first block,
//! and a norm and the output projection come after the last. Matrix products run on [`candle_core`] in `f32`.
//! Everything else is [`crate::ops`] in `f64`, rounded to `f32` before a matrix product or the residual stream.

mod attention;
mod delta;
mod gemma;
mod gqa;
mod layers;
mod mla;
mod mlp;
mod session;
mod short_conv;
mod trace;

use std::path::Path;

use candle_core::Tensor;

use crate::checkpoint::{Checkpoint, KvBSplit};
use crate::plan::{Around, AttentionPlan, LayerNorms, Plan};
use crate::{Error, Result};

use attention::AttentionLayer;
use gemma::{GemmaEnd, PerLayerInputs};
use layers::{Linear, Norm};
use mlp::Mlp;

pub use session::Session;
pub use trace::{Matrix, Trace};

/// A model with all its weights in `f32`.
#[derive(Debug)]
pub struct Model {
    vocab_size: usize,
    /// `[vocab_size, hidden]`
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: Norm,
    lm_head: Linear,
    around: Around,
    per_layer_inputs: Option<PerLayerInputs>,
}

#[derive(Debug)]
struct Layer {
    input_layernorm: Norm,
    self_attn: AttentionLayer,
    /// The norm before the MLP.
    post_attention_layernorm: Norm,
    mlp: Mlp,
    /// Of layers with norms after each part too: the norms after attention and after the MLP, and what follows them.
    sandwich: Option<(Norm, Norm, GemmaEnd)>,
    /// The index of the layer whose cache attention uses.
    cache_idx: usize,
}

impl Model {
    /// Loads a checkpoint folder. A `kv_b_proj` is split without requantisation.
    ///
    /// # Errors
    /// Any error in the files.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(dir)?, KvBSplit::Plain)
    }

    /// Loads from the text of `config.json` and the bytes of the shards.
    ///
    /// # Errors
    /// Any error in them.
    pub fn from_bytes(config_json: &str, shards: &[&[u8]]) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::from_bytes(config_json, shards)?, KvBSplit::Plain)
    }

    /// Loads the weights of a checkpoint. `split` determines how a quantised `kv_b_proj` is split.
    ///
    /// # Errors
    /// Missing tensors, tensors of the wrong shape, unknown kinds of rope scaling.
    pub fn from_checkpoint(checkpoint: &Checkpoint, split: KvBSplit) -> Result<Self> {
        let Plan { vocab_size, hidden_size: hidden, rms_norm_eps: eps, around, .. } = *checkpoint.plan();
        let embed_tokens = checkpoint.weight("model.embed_tokens", &[vocab_size, hidden])?;
        let lm_head = if checkpoint.plan().tie_word_embeddings {
            Linear::from_weight(embed_tokens.clone())
        } else {
            Linear::load(checkpoint, "lm_head", vocab_size, hidden)?
        };
        let layers = checkpoint.plan().layers.iter().enumerate();
        let layers = layers
            .map(|(layer_idx, plan)| {
                let layer = format!("model.layers.{layer_idx}");
                let path = |part: &str| format!("{layer}.{part}");
                let norm = |part: &str| Norm::load(checkpoint, &path(part), hidden, eps);
                let attention = (&plan.attention, hidden, eps);
                let is_sandwich = plan.norms == LayerNorms::Sandwich;
                let before_mlp =
                    if is_sandwich { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
                let sandwich = is_sandwich.then(|| {
                    let width = around.per_layer_input;
                    Ok::<_, Error>((
                        norm("post_attention_layernorm")?,
                        norm("post_feedforward_layernorm")?,
                        GemmaEnd::load(checkpoint, &layer, width, hidden, eps)?,
                    ))
                });
                let mlp_path = if plan.mlp_path.is_empty() { layer.clone() } else { path(plan.mlp_path) };
                Ok(Layer {
                    input_layernorm: norm("input_layernorm")?,
                    self_attn: AttentionLayer::load(checkpoint, &layer, attention, split)?,
                    post_attention_layernorm: norm(before_mlp)?,
                    mlp: Mlp::load(checkpoint, &mlp_path, &plan.mlp, (hidden, eps))?,
                    sandwich: sandwich.transpose()?,
                    cache_idx: match &plan.attention {
                        AttentionPlan::Gqa(gqa) => gqa.shares.unwrap_or(layer_idx),
                        _ => layer_idx,
                    },
                })
            })
            .collect::<Result<_>>()?;
        let norm = Norm::load(checkpoint, "model.norm", hidden, eps)?;
        let n_layers = checkpoint.plan().layers.len();
        let per_layer_inputs = around
            .per_layer_input
            .map(|width| PerLayerInputs::load(checkpoint, [vocab_size, n_layers, hidden, width], eps))
            .transpose()?;
        Ok(Self { vocab_size, embed_tokens, layers, norm, lm_head, around, per_layer_inputs })
    }

    /// Computes one pass over a sequence from position 0, with all intermediate results.
    ///
    /// # Errors
    /// No tokens, or a token outside the vocabulary.
    pub fn forward(&self, tokens: &[u32]) -> Result<Trace> {
        self.session().step_traced(tokens)
    }

    /// Computes one pass over a sequence from position 0. Returns the logits `[n_tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn logits(&self, tokens: &[u32]) -> Result<Matrix> {
        self.session().step(tokens)
    }

    /// An empty sequence, to which tokens are added step by step.
    #[must_use]
    pub fn session(&self) -> Session<'_> {
        Session::new(self)
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::Unsupported { what: "a pass over no tokens".into() });
        }
        let vocab_size = self.vocab_size;
        match tokens.iter().position(|&token| token as usize >= vocab_size) {
            Some(position) => Err(Error::Token { token: tokens[position], position, vocab_size }),
            None => Ok(()),
        }
    }
}

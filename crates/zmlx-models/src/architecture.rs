//! A model as plain data: what its `config.json` makes of it, before any weight is read and without any backend.
//!
//! A file of `families` turns a config into an [`Architecture`]; loading, random weights, `inspect`, the
//! self-check and the choice of fused ops all follow from it.

mod blocks;
mod weights;

pub use blocks::{
    Activation, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerSpec, LinearSpec, MatrixSpec, MixerSpec, MlaSpec,
    MlpSpec, MoeSpec, QuerySpec, RouterSpec, Storage, VectorSpec,
};
pub(crate) use weights::Module;
pub use weights::{Part, ReadPerToken, WeightUse, WeightUses};

use serde_json::{Map, Value};

/// A decoder: embedding, layers, final norm, head.
///
/// All paths are those of the text model: what a wrapper puts before them (`language_model.`) is the checkpoint's
/// affair.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// The value of `model_type`.
    pub model_type: &'static str,
    /// The hyperparameters under the names that `config.json` gives them, defaults filled in: for display.
    pub config: Map<String, Value>,
    /// Number of token ids, the width of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// The epsilon of the norms of the residual stream.
    pub rms_norm_eps: f64,
    /// The embedding table, `[vocab_size, hidden_size]`.
    pub embed: MatrixSpec,
    /// Before each layer's number in its weights' paths: `model.layers`.
    pub layers_path: &'static str,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// The weight of the final norm, `[hidden_size]`.
    pub norm: VectorSpec,
    /// The head.
    pub head: HeadSpec,
    /// A tensor with one of these in its dotted name may be left over. So may layers beyond the last (they predict
    /// several tokens at once).
    pub left_over: &'static [&'static str],
}

/// What turns the last hidden state into logits.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadSpec {
    /// The embedding table. Some files hold a matrix at this path all the same.
    Tied(&'static str),
    /// A matrix of its own, `[vocab_size, hidden_size]`.
    Own(MatrixSpec),
}

impl HeadSpec {
    /// The usual head, `lm_head`, or the embedding table.
    pub(crate) fn lm_head(is_tied: bool, vocab_size: usize, hidden_size: usize) -> Self {
        const PATH: &str = "lm_head";
        if is_tied { Self::Tied(PATH) } else { Self::Own(MatrixSpec::new(PATH, vocab_size, hidden_size)) }
    }
}

impl Architecture {
    /// The layers that have experts.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &MoeSpec)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.moe()?)))
    }

    /// Numbers that one token leaves in the caches of all layers.
    pub fn cached_values_per_token(&self) -> u64 {
        self.layers.iter().fold(0u64, |n, layer| n.saturating_add(layer.mixer.cached_values_per_token()))
    }
}

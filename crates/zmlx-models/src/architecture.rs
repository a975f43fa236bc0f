//! A model as plain data: what its `config.json` makes of it, before any weight is read and without any backend.
//!
//! A file of `families` turns a config into an [`Architecture`]; loading, random weights, `inspect`, the
//! self-check and the choice of fused ops all follow from it.

mod blocks;
mod recurrent;
mod split;
mod weights;

pub use blocks::{
    BesideSpec, ExpertsSpec, FeedForwardSpec, GqaSpec, LayerExtras, LayerSpec, LinearSpec, MatrixSpec,
    MixerSpec, MlaSpec, MlpSpec, MoeSpec, PerLayerInputSpec, QuerySpec, RouterSpec, ScaledNorm,
    SharedGqaSpec, SoftmaxOfChosen, Storage, VectorSpec,
};
pub use recurrent::{ConvSpec, DeltaProjections, DeltaSpec, ShortConvSpec};
pub use split::{ExpertSplit, Slice, Split};
pub(crate) use weights::Module;
pub use zmlx_kernels::Activation;

pub use weights::{Part, ReadPerToken, WeightUse, WeightUses};

use serde_json::{Map, Value};
use zmlx_kernels::CacheKind;

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
    /// What most families lack.
    pub extras: ModelExtras,
    /// A tensor with one of these in its dotted name may be left over. So may layers beyond the last (they predict
    /// several tokens at once).
    pub left_over: &'static [&'static str],
}

/// What only some families have around their layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelExtras {
    /// What multiplies the embeddings.
    pub embed_factor: Option<f32>,
    /// The logits are bent to stay below this: `cap · tanh(logits / cap)`.
    pub logit_cap: Option<f32>,
    /// Embeddings that each layer takes in for itself.
    pub per_layer_inputs: Option<PerLayerInputsSpec>,
    /// Of a model that several ranks share: paths of weights that another rank alone holds.
    pub held_elsewhere: Vec<String>,
}

/// For each token and layer a vector of `width` values, `[n, n_layers, width]`: from a second table, and from the embedding.
///
/// `(norm(projection(embedding) · hidden^-½) + table[id] · √width) · 2^-½`, the norm over each layer's values.
#[derive(Clone, Debug, PartialEq)]
pub struct PerLayerInputsSpec {
    /// Values for each layer.
    pub width: usize,
    /// `[vocab_size, n_layers · width]`.
    pub table: MatrixSpec,
    /// `[n_layers · width, hidden]`.
    pub projection: MatrixSpec,
    /// `[width]`.
    pub norm: VectorSpec,
}

/// What turns the last hidden state into logits.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
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
    /// For each layer which of the caches it uses: those of the layers that have one, in their order.
    pub(crate) fn caches(&self) -> Vec<usize> {
        let (mut of_layer, mut n) = (Vec::with_capacity(self.layers.len()), 0);
        for layer in &self.layers {
            let cache = match &layer.mixer {
                MixerSpec::Shared(shared) => of_layer.get(shared.of_layer).copied().unwrap_or(0),
                _ => {
                    n += 1;
                    n - 1
                }
            };
            of_layer.push(cache);
        }
        of_layer
    }

    /// The layers that have experts.
    pub fn moe_layers(&self) -> impl Iterator<Item = (usize, &MoeSpec)> {
        self.layers.iter().enumerate().filter_map(|(i, layer)| Some((i, layer.moe()?)))
    }

    /// Numbers that one token leaves in the caches of all layers.
    pub fn cached_values_per_token(&self) -> u64 {
        self.of_all_caches(CacheKind::values_per_token)
    }

    /// Numbers of the states that all layers keep of a sequence, whatever its length. Each token reads and writes them.
    pub fn state_values(&self) -> u64 {
        self.of_all_caches(CacheKind::state_values)
    }

    fn of_all_caches(&self, n: impl Fn(&CacheKind) -> u64) -> u64 {
        let kinds = self.layers.iter().filter_map(|layer| layer.mixer.cache_kind());
        kinds.fold(0u64, |sum, kind| sum.saturating_add(n(&kind)))
    }
}

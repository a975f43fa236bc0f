//! The parts around the mixers and MLPs of most families, with their usual names.

use serde::Serialize;

use crate::architecture::{
    Architecture, FeedForwardSpec, HeadSpec, LayerExtras, LayerSpec, MatrixSpec, MixerSpec, ModelExtras,
    VectorSpec,
};

/// `model.embed_tokens`, `model.layers`, `model.norm` and `lm_head`. A family that differs in one of these takes the
/// others with `..frame.around(…)`.
pub(in crate::families) struct Frame {
    pub(in crate::families) vocab_size: usize,
    pub(in crate::families) hidden_size: usize,
    pub(in crate::families) max_position_embeddings: usize,
    pub(in crate::families) rms_norm_eps: f64,
    pub(in crate::families) tie_word_embeddings: bool,
}

impl Frame {
    /// The layer with this number. Its norms are `input_layernorm` and `post_attention_layernorm`.
    pub(in crate::families) fn layer(
        &self,
        layer_idx: usize,
        mixer: MixerSpec,
        feed_forward: FeedForwardSpec,
    ) -> LayerSpec {
        let norm =
            |name: &str| VectorSpec::new(format!("model.layers.{layer_idx}.{name}.weight"), self.hidden_size);
        LayerSpec {
            input_norm: norm("input_layernorm"),
            mixer,
            post_norm: norm("post_attention_layernorm"),
            feed_forward,
            extras: LayerExtras::default(),
        }
    }

    /// The architecture around the layers. Of the tensors that it does not use, files may contain `rotary_emb`.
    pub(in crate::families) fn around(
        &self,
        model_type: &'static str,
        config: &impl Serialize,
        layers: Vec<LayerSpec>,
    ) -> Architecture {
        let (vocab, hidden) = (self.vocab_size, self.hidden_size);
        Architecture {
            model_type,
            config: crate::families::display(config),
            vocab_size: vocab,
            hidden_size: hidden,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            embed: MatrixSpec::new("model.embed_tokens", vocab, hidden),
            layers_path: "model.layers",
            layers,
            norm: VectorSpec::new("model.norm.weight", hidden),
            head: HeadSpec::lm_head(self.tie_word_embeddings, vocab, hidden),
            extras: ModelExtras::default(),
            left_over: &["rotary_emb"],
        }
    }
}

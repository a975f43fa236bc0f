//! `config.json`: typed, with every field named as Hugging Face writes it, and checked before anything is built.

mod fields;
mod glm4_moe_lite;
mod quant;
mod qwen3_moe;

pub use glm4_moe_lite::Glm4MoeLiteConfig;
pub use quant::{QuantConfig, QuantOverride};
pub use qwen3_moe::Qwen3MoeConfig;

use serde_json::Value;

use crate::{Error, Result, end_tokens};
use fields::Fields;
pub(crate) use fields::short;

/// The values of `model_type` that have a decoder.
pub const MODEL_TYPES: &[&str] = &["glm4_moe_lite", "qwen3_moe"];

/// The hyperparameters of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// GLM-4.7-Flash: latent attention, sigmoid router with a correction bias, shared experts.
    Glm4MoeLite(Glm4MoeLiteConfig),
    /// Qwen3-30B-A3B: grouped-query attention, softmax router.
    Qwen3Moe(Qwen3MoeConfig),
}

impl ModelConfig {
    /// The value of `model_type`.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Glm4MoeLite(_) => "glm4_moe_lite",
            Self::Qwen3Moe(_) => "qwen3_moe",
        }
    }

    /// Number of token ids, the width of the logits.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Glm4MoeLite(c) => c.vocab_size,
            Self::Qwen3Moe(c) => c.vocab_size,
        }
    }

    /// Width of the residual stream.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Glm4MoeLite(c) => c.hidden_size,
            Self::Qwen3Moe(c) => c.hidden_size,
        }
    }

    /// Number of decoder layers.
    pub fn num_hidden_layers(&self) -> usize {
        match self {
            Self::Glm4MoeLite(c) => c.num_hidden_layers,
            Self::Qwen3Moe(c) => c.num_hidden_layers,
        }
    }

    /// Longest sequence that the model was made for.
    pub fn max_position_embeddings(&self) -> usize {
        match self {
            Self::Glm4MoeLite(c) => c.max_position_embeddings,
            Self::Qwen3Moe(c) => c.max_position_embeddings,
        }
    }

    /// The epsilon of every norm.
    pub fn rms_norm_eps(&self) -> f64 {
        match self {
            Self::Glm4MoeLite(c) => c.rms_norm_eps,
            Self::Qwen3Moe(c) => c.rms_norm_eps,
        }
    }

    /// True if the head is the embedding table.
    pub fn tie_word_embeddings(&self) -> bool {
        match self {
            Self::Glm4MoeLite(c) => c.tie_word_embeddings,
            Self::Qwen3Moe(c) => c.tie_word_embeddings,
        }
    }

    /// True if the layer has experts, false if its MLP is dense.
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        match self {
            Self::Glm4MoeLite(c) => c.is_moe_layer(layer_idx),
            Self::Qwen3Moe(c) => c.is_moe_layer(layer_idx),
        }
    }
}

/// Everything that `config.json` and `generation_config.json` say.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// The hyperparameters.
    pub model: ModelConfig,
    /// How the weights are quantised.
    pub quantization: QuantConfig,
    /// The tokens that end a text, ascending.
    pub eos_token_ids: Vec<u32>,
    /// `dtype` or `torch_dtype` as written: what the model was trained in. The tensors' own types decide.
    pub dtype: Option<String>,
    /// The text of `config.json`: what identifies the config, unused keys included.
    pub text: String,
}

impl ConfigFile {
    /// Reads the text of `config.json`, called `file` in errors, and of `generation_config.json` if there is one.
    ///
    /// # Errors
    /// If a text is not JSON, a key is missing or senseless, or names something that is not implemented.
    pub fn parse(file: &str, config_json: &str, generation_config: Option<&str>) -> Result<Self> {
        let value = parse_json(file, config_json)?;
        let fields = Fields::new(file, &value)?;
        let model_type = fields.str("model_type")?;
        let model = match model_type {
            "glm4_moe_lite" => ModelConfig::Glm4MoeLite(Glm4MoeLiteConfig::parse(&fields)?),
            "qwen3_moe" => ModelConfig::Qwen3Moe(Qwen3MoeConfig::parse(&fields)?),
            got => {
                return Err(Error::UnknownModelType {
                    file: file.into(),
                    got: got.into(),
                    known: MODEL_TYPES,
                });
            }
        };
        let eos_token_ids = end_tokens::of_configs(file, &value, generation_config, model.vocab_size())?;
        let dtype = match (fields.get("dtype"), fields.get("torch_dtype")) {
            (Some(v), _) | (None, Some(v)) => v.as_str().map(str::to_owned),
            (None, None) => None,
        };
        let quantization = QuantConfig::parse(&fields)?;
        let text = config_json.to_owned();
        Ok(Self { model, quantization, eos_token_ids, dtype, text })
    }
}

/// The JSON value in the text of `file`.
pub(crate) fn parse_json(file: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|source| Error::Json { file: file.into(), source })
}

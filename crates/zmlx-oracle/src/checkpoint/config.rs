//! The two models' configurations, with the fields' names as in config.json.

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// A configuration, by `model_type`.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelConfig {
    /// `qwen3_moe`.
    Qwen3Moe(Qwen3MoeConfig),
    /// `glm4_moe_lite`.
    Glm4MoeLite(Glm4MoeLiteConfig),
}

/// `qwen3_moe`: grouped-query attention, softmax router.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of config.json")]
pub struct Qwen3MoeConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// `hidden_size / num_attention_heads` if absent; the method of this name fills it in.
    pub head_dim: Option<usize>,
    pub intermediate_size: usize,
    pub moe_intermediate_size: usize,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    #[serde(default = "one")]
    pub decoder_sparse_step: usize,
    #[serde(default)]
    pub mlp_only_layers: Option<Vec<usize>>,
    pub rms_norm_eps: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub rope: RopeConfig,
}

impl Qwen3MoeConfig {
    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0))
    }

    /// Whether a layer has experts.
    #[must_use]
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        let dense = self.mlp_only_layers.as_ref().is_some_and(|layers| layers.contains(&layer_idx));
        !dense && self.num_experts > 0 && (layer_idx + 1).is_multiple_of(self.decoder_sparse_step)
    }
}

/// `glm4_moe_lite`: multi-head latent attention, `noaux_tc` router, shared experts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of config.json")]
pub struct Glm4MoeLiteConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// None: one plain q_proj.
    pub q_lora_rank: Option<usize>,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub intermediate_size: usize,
    pub moe_intermediate_size: usize,
    /// None: every layer is dense.
    pub n_routed_experts: Option<usize>,
    pub n_shared_experts: Option<usize>,
    pub num_experts_per_tok: usize,
    #[serde(default = "one")]
    pub n_group: usize,
    #[serde(default = "one")]
    pub topk_group: usize,
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    #[serde(default = "unit")]
    pub routed_scaling_factor: f64,
    #[serde(default)]
    pub first_k_dense_replace: usize,
    #[serde(default = "one")]
    pub moe_layer_freq: usize,
    pub rms_norm_eps: f64,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(flatten)]
    pub rope: RopeConfig,
}

impl Glm4MoeLiteConfig {
    /// Whether a layer has experts.
    #[must_use]
    pub fn is_moe_layer(&self, layer_idx: usize) -> bool {
        self.n_routed_experts.is_some()
            && layer_idx >= self.first_k_dense_replace
            && layer_idx.is_multiple_of(self.moe_layer_freq)
    }

    /// `1/√(nope + rope)`, times `(0.1·mscale_all_dim·ln(factor) + 1)²` if the rope scaling has those fields and the
    /// factor is above 1.
    #[must_use]
    pub fn attention_scale(&self) -> f64 {
        let scale = 1.0 / ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f64).sqrt();
        let field = |name: &str| self.rope.scaling_field(name).and_then(Value::as_f64);
        match (field("mscale_all_dim"), field("factor")) {
            (Some(all_dim), Some(factor)) if factor > 1.0 => {
                scale * (0.1 * all_dim * factor.ln() + 1.0).powi(2)
            }
            _ => scale,
        }
    }
}

/// The fields about rope, which sit at the top level or in `rope_parameters`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RopeConfig {
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
}

impl RopeConfig {
    /// The base of the frequencies.
    ///
    /// # Errors
    /// [`Error::Config`] if neither place has it.
    pub fn theta(&self) -> Result<f64> {
        let inner = || self.rope_parameters.as_ref()?.get("rope_theta")?.as_f64();
        self.rope_theta.or_else(inner).filter(|theta| *theta > 0.0).ok_or_else(|| Error::Config {
            field: "rope_theta".into(),
            why: "missing or not positive".into(),
        })
    }

    /// The factor on positions: 1, or `1/factor` for linear scaling.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for any other kind of scaling.
    pub fn position_scale(&self) -> Result<f64> {
        let kind = self.scaling_field("rope_type").or(self.scaling_field("type"));
        match kind.and_then(Value::as_str) {
            None | Some("default") => Ok(1.0),
            Some("linear") => {
                let factor = self.scaling_field("factor").and_then(Value::as_f64).filter(|f| *f > 0.0);
                factor.map(f64::recip).ok_or_else(|| Error::Config {
                    field: "rope_scaling.factor".into(),
                    why: "missing or not positive".into(),
                })
            }
            Some(other) => Err(Error::Unsupported { what: format!("rope scaling {other:?}") }),
        }
    }

    /// A field of `rope_scaling`, or of `rope_parameters` if there is no such entry.
    fn scaling_field(&self, name: &str) -> Option<&Value> {
        let given = |entry: &&Value| entry.is_object();
        let entry = self.rope_scaling.as_ref().filter(given).or(self.rope_parameters.as_ref());
        entry?.get(name)
    }
}

impl ModelConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// An unknown `model_type`, missing fields, or values that make no sense.
    pub fn from_json(value: &Value) -> Result<Self> {
        let model_type = value.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let json = |source| Error::Json { what: "config.json".into(), source };
        let config = match model_type {
            "qwen3_moe" => Self::Qwen3Moe(Qwen3MoeConfig::deserialize(value).map_err(json)?),
            "glm4_moe_lite" => Self::Glm4MoeLite(Glm4MoeLiteConfig::deserialize(value).map_err(json)?),
            other => return Err(Error::UnknownModelType { got: other.to_owned() }),
        };
        config.check()?;
        Ok(config)
    }

    /// Decoder layers.
    #[must_use]
    pub fn n_layers(&self) -> usize {
        match self {
            Self::Qwen3Moe(c) => c.num_hidden_layers,
            Self::Glm4MoeLite(c) => c.num_hidden_layers,
        }
    }

    /// Elements of the residual stream.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Qwen3Moe(c) => c.hidden_size,
            Self::Glm4MoeLite(c) => c.hidden_size,
        }
    }

    /// Tokens in the vocabulary.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Qwen3Moe(c) => c.vocab_size,
            Self::Glm4MoeLite(c) => c.vocab_size,
        }
    }

    /// Added to the mean square in every norm.
    #[must_use]
    pub fn rms_norm_eps(&self) -> f64 {
        match self {
            Self::Qwen3Moe(c) => c.rms_norm_eps,
            Self::Glm4MoeLite(c) => c.rms_norm_eps,
        }
    }

    /// Whether the embedding is also the output projection.
    #[must_use]
    pub fn tie_word_embeddings(&self) -> bool {
        match self {
            Self::Qwen3Moe(c) => c.tie_word_embeddings,
            Self::Glm4MoeLite(c) => c.tie_word_embeddings,
        }
    }

    /// What later code divides by or indexes with must make sense.
    fn check(&self) -> Result<()> {
        let rules = match self {
            Self::Qwen3Moe(c) => [
                ("num_key_value_heads", c.num_attention_heads.is_multiple_of(c.num_key_value_heads.max(1))),
                ("num_key_value_heads", c.num_key_value_heads > 0),
                ("head_dim", c.head_dim() > 0 && c.head_dim().is_multiple_of(2)),
                ("decoder_sparse_step", c.decoder_sparse_step > 0),
                (
                    "num_experts_per_tok",
                    c.num_experts == 0 || (1..=c.num_experts).contains(&c.num_experts_per_tok),
                ),
                ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
            ],
            Self::Glm4MoeLite(c) => {
                let n_experts = c.n_routed_experts.unwrap_or(c.num_experts_per_tok);
                let group = n_experts.checked_div(c.n_group).unwrap_or(0);
                [
                    ("num_attention_heads", c.num_attention_heads > 0 && c.kv_lora_rank > 0),
                    ("qk_rope_head_dim", c.qk_rope_head_dim.is_multiple_of(2)),
                    ("moe_layer_freq", c.moe_layer_freq > 0),
                    ("num_experts_per_tok", (1..=n_experts).contains(&c.num_experts_per_tok)),
                    (
                        "n_group",
                        c.n_group == 1
                            || (group >= 2 && group * c.n_group == n_experts && c.topk_group <= c.n_group),
                    ),
                    ("hidden_size", c.hidden_size > 0 && c.vocab_size > 0),
                ]
            }
        };
        match rules.into_iter().find(|(_, holds)| !holds) {
            Some((field, _)) => Err(Error::Config { field: field.to_owned(), why: "makes no sense".into() }),
            None => Ok(()),
        }
    }
}

fn one() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

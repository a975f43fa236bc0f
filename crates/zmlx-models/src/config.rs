//! `config.json` and `generation_config.json`, which are read and checked before anything is built.

mod quant;

pub(crate) use quant::mlx_defaults;
pub use quant::{QuantConfig, QuantOverride};

use crate::architecture::Architecture;
use crate::fields::Fields;
use crate::{Result, end_tokens, families};

pub(crate) use crate::fields::{parse_json, short};

/// The contents of `config.json` and `generation_config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// The model.
    pub architecture: Architecture,
    /// How the weights are quantised.
    pub quantization: QuantConfig,
    /// The tokens that end a text, ascending.
    pub eos_token_ids: Vec<u32>,
    /// `dtype` or `torch_dtype` as written: the type in which the model was trained. The types of the tensors
    /// themselves decide.
    pub dtype: Option<String>,
    /// The text of `config.json`, including unused keys. It identifies the config.
    pub text: String,
}

impl ConfigFile {
    /// Reads the text of `config.json`, which errors call `file`, and that of `generation_config.json` if there is one.
    ///
    /// # Errors
    /// If a text is not JSON, if a key is missing or has a value that makes no sense, or if it names something that is
    /// not implemented.
    pub fn parse(file: &str, config_json: &str, generation_config: Option<&str>) -> Result<Self> {
        let value = parse_json(file, config_json)?;
        let whole = Fields::new(file, &value)?;
        let text_model = whole.text_model()?;
        let architecture = families::architecture(file, &whole, &text_model)?;
        ensure_addressable(&architecture, &text_model)?;
        let eos_token_ids = end_tokens::of_configs(file, &value, generation_config, architecture.vocab_size)?;
        let dtype = text_model.get(text_model.named(&["dtype", "torch_dtype"]));
        Ok(Self {
            architecture,
            quantization: QuantConfig::parse(&whole, &text_model)?,
            eos_token_ids,
            dtype: dtype.and_then(|v| v.as_str()).map(str::to_owned),
            text: config_json.to_owned(),
        })
    }
}

/// Refuses a weight that no machine could address, so that later products do not overflow.
fn ensure_addressable(architecture: &Architecture, f: &Fields<'_>) -> Result<()> {
    const MAX_ELEMENTS: usize = 1 << 48;
    let Some((path, dims)) = architecture.largest_weight() else { return Ok(()) };
    let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if product.is_some_and(|n| n <= MAX_ELEMENTS) {
        return Ok(());
    }
    Err(f.wrong(&path, "a weight of at most 2^48 values", format!("{dims:?}")))
}

//! `config.json` and `generation_config.json`: read and checked before anything is built.

mod quant;

pub(crate) use quant::mlx_defaults;
pub use quant::{QuantConfig, QuantOverride};

use std::collections::BTreeSet;

use crate::architecture::Architecture;
use crate::fields::Fields;
use crate::{Result, families};

pub(crate) use crate::fields::{parse_json, short};

/// Everything that `config.json` and `generation_config.json` say.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// The model.
    pub architecture: Architecture,
    /// How the weights are quantised.
    pub quantization: QuantConfig,
    /// The tokens that end a text: the union of both files, ascending.
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
        let whole = Fields::new(file, &value)?;
        let text_model = whole.text_model()?;
        let architecture = families::architecture(file, &whole, &text_model)?;
        ensure_addressable(&architecture, &text_model)?;

        let mut eos = BTreeSet::new();
        whole.token_ids("eos_token_id", &mut eos)?;
        text_model.token_ids("eos_token_id", &mut eos)?;
        if let Some(text) = generation_config {
            let name =
                format!("{}generation_config.json", file.strip_suffix("config.json").unwrap_or_default());
            Fields::new(&name, &parse_json(&name, text)?)?.token_ids("eos_token_id", &mut eos)?;
        }
        let vocab_size = architecture.vocab_size;
        if let Some(&id) = eos.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(whole.wrong("eos_token_id", format!("ids below {vocab_size}"), id));
        }
        let dtype = text_model.get(text_model.named(&["dtype", "torch_dtype"]));
        Ok(Self {
            architecture,
            quantization: QuantConfig::parse(&whole, &text_model)?,
            eos_token_ids: eos.into_iter().collect(),
            dtype: dtype.and_then(|v| v.as_str()).map(str::to_owned),
            text: config_json.to_owned(),
        })
    }
}

/// Refuses a weight that no machine could address, so that no later product overflows.
fn ensure_addressable(architecture: &Architecture, f: &Fields<'_>) -> Result<()> {
    const MAX_ELEMENTS: usize = 1 << 48;
    let Some((path, dims)) = architecture.largest_weight() else { return Ok(()) };
    let product = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if product.is_some_and(|n| n <= MAX_ELEMENTS) {
        return Ok(());
    }
    Err(f.wrong(&path, "a weight of at most 2^48 values", format!("{dims:?}")))
}

//! The model families: a file each, which turns `config.json` into an [`Architecture`], and one line in the list below.
//!
//! Families do not know each other. What several of them read in the same way is in [`keys`].

mod glm4_moe;
mod glm4_moe_lite;
mod keys;
mod lfm2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;

use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::fields::Fields;
use crate::{Error, Result};

/// The architecture of a config of one `model_type`.
type Reader = fn(&Fields<'_>) -> Result<Architecture>;

/// Every `model_type` that has a decoder.
const FAMILIES: &[(&str, Reader)] = &[
    (glm4_moe::MODEL_TYPE, glm4_moe::architecture),
    (glm4_moe_lite::MODEL_TYPE, glm4_moe_lite::architecture),
    (lfm2_moe::MODEL_TYPE, lfm2_moe::architecture),
    (qwen3::MODEL_TYPE, qwen3::architecture),
    (qwen3_5::MODEL_TYPE, qwen3_5::architecture),
    (qwen3_5_moe::MODEL_TYPE, qwen3_5_moe::architecture),
    (qwen3_moe::MODEL_TYPE, qwen3_moe::architecture),
    (qwen3_next::MODEL_TYPE, qwen3_next::architecture),
];

/// The values of `model_type` that have a decoder.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// The architecture of the config in `file`: its `model_type` is the whole's, or that of the text model inside.
pub(crate) fn architecture(file: &str, whole: &Fields<'_>, text_model: &Fields<'_>) -> Result<Architecture> {
    let got = whole.str("model_type")?;
    let inner = text_model.get("model_type").and_then(Value::as_str).unwrap_or(got);
    let known = |name: &str| FAMILIES.iter().find(|(known, _)| *known == name);
    match known(got).or_else(|| known(inner)) {
        Some((_, reader)) => reader(text_model),
        None => Err(Error::UnknownModelType {
            file: file.into(),
            got: got.into(),
            known: model_types().collect(),
        }),
    }
}

/// The fields of a family's config by their names, for display.
fn display(config: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        // Structs of numbers, switches and lists always become objects.
        _ => Map::new(),
    }
}

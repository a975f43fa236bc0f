//! The model families: a file each, which turns `config.json` into an [`Architecture`], and one line in the list below.
//!
//! Families do not know each other. What several of them read in the same way is in [`keys`].

mod deepseek_v3;
mod gemma4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod keys;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod qwen3;
mod qwen3_moe;

use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::fields::Fields;
use crate::{Error, Result};

/// The architecture of a config of one `model_type`.
type Reader = fn(&Fields<'_>) -> Result<Architecture>;

/// Every `model_type` that has a decoder.
const FAMILIES: &[(&str, Reader)] = &[
    (deepseek_v3::MODEL_TYPE, deepseek_v3::architecture),
    (gemma4::MODEL_TYPE, gemma4::architecture),
    ("gemma4_text", gemma4::architecture),
    ("gemma4_unified", gemma4::architecture),
    (glm4_moe::MODEL_TYPE, glm4_moe::architecture),
    (glm4_moe_lite::MODEL_TYPE, glm4_moe_lite::architecture),
    (gpt_oss::MODEL_TYPE, gpt_oss::architecture),
    ("joyai_llm_flash", deepseek_v3::architecture),
    ("kimi_k2", deepseek_v3::architecture),
    (minimax_m2::MODEL_TYPE, minimax_m2::architecture),
    (mixtral::MODEL_TYPE, mixtral::architecture),
    (olmoe::MODEL_TYPE, olmoe::architecture),
    (qwen3::MODEL_TYPE, qwen3::architecture),
    (qwen3_moe::MODEL_TYPE, qwen3_moe::architecture),
    ("qwen3_vl_moe", qwen3_moe::within_vision),
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
        // Several types may share a reader.
        Some((model_type, reader)) => Ok(Architecture { model_type, ..reader(text_model)? }),
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

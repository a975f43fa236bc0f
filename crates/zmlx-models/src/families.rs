//! The model families. Each has a file, which turns `config.json` into an [`Architecture`], and a line in the list
//! below.
//!
//! Families do not depend on each other. What several of them read in the same way is in [`keys`].

mod deepseek_v3;
mod gemma4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod keys;
mod lfm2_moe;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;

use serde_json::{Map, Value};

use crate::architecture::Architecture;
use crate::fields::Fields;
use crate::{Error, Result};

/// A `model_type` that has a decoder.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The value of `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The models of this type, by the names that their makers gave them.
    pub models: &'static str,
    /// Builds the architecture from a config.
    read: fn(&Fields<'_>) -> Result<Architecture>,
}

/// Every `model_type` that has a decoder, in alphabetical order.
const FAMILIES: &[Family] = &[
    family(deepseek_v3::MODEL_TYPE, "DeepSeek V3, V3.1, R1; Moonlight-16B-A3B", deepseek_v3::architecture),
    family(gemma4::MODEL_TYPE, "Gemma 4: 26B-A4B, 31B, 12B, E4B, E2B (text)", gemma4::architecture),
    family("gemma4_text", "the text model of Gemma 4 alone", gemma4::architecture),
    family("gemma4_unified", "Gemma 4 (text)", gemma4::architecture),
    family(glm4_moe::MODEL_TYPE, "GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7", glm4_moe::architecture),
    family(glm4_moe_lite::MODEL_TYPE, "GLM-4.7-Flash", glm4_moe_lite::architecture),
    family(gpt_oss::MODEL_TYPE, "gpt-oss-20b, gpt-oss-120b", gpt_oss::architecture),
    family("joyai_llm_flash", "JoyAI-LLM-Flash", deepseek_v3::architecture),
    family("kimi_k2", "Kimi K2", deepseek_v3::architecture),
    family(lfm2_moe::MODEL_TYPE, "LFM2-8B-A1B, LFM2-24B-A2B", lfm2_moe::architecture),
    family(minimax_m2::MODEL_TYPE, "MiniMax-M2, M2.1, M2.5", minimax_m2::architecture),
    family(mixtral::MODEL_TYPE, "Mixtral 8x7B, 8x22B", mixtral::architecture),
    family(olmoe::MODEL_TYPE, "OLMoE-1B-7B", olmoe::architecture),
    family(qwen2_moe::MODEL_TYPE, "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", qwen2_moe::architecture),
    family(qwen3::MODEL_TYPE, "Qwen3-0.6B to 32B", qwen3::architecture),
    family(qwen3_5::MODEL_TYPE, "dense Qwen3.5, Qwen3.6 and Qwen3.8", qwen3_5::architecture),
    family(
        qwen3_5_moe::MODEL_TYPE,
        "Qwen3.5 and Qwen3.6 with experts: 35B-A3B, 122B-A10B",
        qwen3_5_moe::architecture,
    ),
    family(qwen3_moe::MODEL_TYPE, "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder", qwen3_moe::architecture),
    family(qwen3_next::MODEL_TYPE, "Qwen3-Next-80B-A3B, Qwen3-Coder-Next", qwen3_next::architecture),
    family("qwen3_vl_moe", "Qwen3-VL-30B-A3B, Qwen3-VL-235B-A22B (text)", qwen3_moe::within_vision),
];

const fn family(
    model_type: &'static str,
    models: &'static str,
    read: fn(&Fields<'_>) -> Result<Architecture>,
) -> Family {
    Family { model_type, models, read }
}

/// The families that have a decoder, in alphabetical order.
pub fn families() -> &'static [Family] {
    FAMILIES
}

/// The values of `model_type` that have a decoder.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The architecture of the config in `file`. Its `model_type` is that of the whole config, or that of the text model
/// inside.
pub(crate) fn architecture(file: &str, whole: &Fields<'_>, text_model: &Fields<'_>) -> Result<Architecture> {
    let got = whole.str("model_type")?;
    let inner = text_model.get("model_type").and_then(Value::as_str).unwrap_or(got);
    let known = |name: &str| FAMILIES.iter().find(|family| family.model_type == name);
    match known(got).or_else(|| known(inner)) {
        // Several types may share one function.
        Some(family) => Ok(Architecture { model_type: family.model_type, ..(family.read)(text_model)? }),
        None => Err(Error::UnknownModelType {
            file: file.into(),
            got: got.into(),
            known: model_types().collect(),
        }),
    }
}

/// The fields of a family's config by name, for display.
fn display(config: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        // A struct of numbers, switches and lists always becomes an object.
        _ => Map::new(),
    }
}

//! The model families. Each has a file, which turns `config.json` into a [`Plan`], and a line in the list below.

mod deepseek_v3;
mod gemma4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod hybrid;
mod lfm2_moe;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod rope;
mod rules;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::plan::Plan;
use crate::{Error, Result};

/// Reads a config of one `model_type` as a plan.
type Reader = fn(&Value) -> Result<Plan>;

const FAMILIES: &[(&str, Reader)] = &[
    ("deepseek_v3", deepseek_v3::plan),
    ("gemma4", gemma4::plan),
    ("gemma4_text", gemma4::plan),
    ("gemma4_unified", gemma4::plan),
    ("glm4_moe", glm4_moe::plan),
    ("glm4_moe_lite", glm4_moe_lite::plan),
    ("gpt_oss", gpt_oss::plan),
    ("joyai_llm_flash", deepseek_v3::plan),
    ("kimi_k2", deepseek_v3::plan),
    ("lfm2_moe", lfm2_moe::plan),
    ("minimax_m2", minimax_m2::plan),
    ("mixtral", mixtral::plan),
    ("olmoe", olmoe::plan),
    ("qwen2_moe", qwen2_moe::plan),
    ("qwen3", qwen3::plan),
    ("qwen3_5", qwen3_5::plan),
    ("qwen3_5_moe", qwen3_5::plan),
    ("qwen3_moe", qwen3_moe::plan),
    ("qwen3_next", qwen3_next::plan),
    ("qwen3_vl_moe", qwen3_moe::plan),
];

/// Parts of tensors' names that a family uses in place of the usual ones, with the usual ones.
pub(crate) fn renamed(config: &Value) -> &'static [(&'static str, &'static str)] {
    match config.get("model_type").and_then(Value::as_str) {
        Some("lfm2_moe") => lfm2_moe::RENAMED,
        _ => &[],
    }
}

/// Keys that may be outside of `text_config`, if a config has one.
const OUTER_KEYS: [&str; 4] = ["tie_word_embeddings", "vocab_size", "quantization", "quantization_config"];

/// The plan of a model.
///
/// # Errors
/// An unknown `model_type`, missing fields, or values that make no sense.
pub(crate) fn plan(config: &Value) -> Result<Plan> {
    let type_of = |config: &Value| config.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let reader = |name: &str| FAMILIES.iter().find(|(known, _)| *known == name).map(|(_, reader)| reader);
    let text = text_model(config);
    let names = [type_of(config), type_of(&text)].map(Option::unwrap_or_default);
    let Some(reader) = names.iter().find_map(|name| reader(name)) else {
        let known = FAMILIES.iter().map(|(name, _)| *name).collect();
        return Err(Error::UnknownModelType { got: names[0].clone(), known });
    };
    check_sizes(&text)?;
    reader(&text)
}

/// The part of a config that describes the text model.
pub(crate) fn text_model(config: &Value) -> Value {
    let Some(inner) = config.get("text_config").filter(|inner| inner.is_object()) else {
        return without_nulls(config.clone());
    };
    let mut text = inner.clone();
    for key in OUTER_KEYS {
        let own = inner.get(key).filter(|value| !value.is_null());
        if let (None, Some(value)) = (own, config.get(key)) {
            text[key] = value.clone();
        }
    }
    without_nulls(text)
}

/// Refuses sizes that no model has. Products of the remaining sizes do not overflow.
fn check_sizes(config: &Value) -> Result<()> {
    const ENDINGS: [&str; 9] =
        ["_size", "_dim", "_rank", "_experts", "_heads", "_layers", "_tok", "_replace", "n_group"];
    for (field, value) in config.as_object().into_iter().flatten() {
        let most = if field == "num_hidden_layers" { 1 << 12 } else { 1 << 24 };
        let is_size = ENDINGS.iter().any(|ending| field.ends_with(ending));
        if is_size && value.as_u64().is_some_and(|n| n > most) {
            return Err(Error::Config { field: field.clone(), why: format!("expected at most {most}") });
        }
    }
    Ok(())
}

/// Keys for which null differs from a missing key.
const NULL_MEANS_NONE: [&str; 4] =
    ["n_shared_experts", "final_logit_softcapping", "hidden_size_per_layer_input", "num_kv_shared_layers"];

/// Removes keys with null, except those for which a missing key means something else.
fn without_nulls(mut config: Value) -> Value {
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|key, value| !value.is_null() || NULL_MEANS_NONE.contains(&key.as_str()));
    }
    config
}

fn read<T: DeserializeOwned>(config: &Value) -> Result<T> {
    T::deserialize(config).map_err(|source| Error::Json { what: "config.json".into(), source })
}

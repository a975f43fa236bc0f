//! The fields that determine how an answer is generated.

use rand::Rng;
use serde_json::{Value, json};
use zmlx_models::SamplingParams;

use crate::api::fields::{Fields, short, wrong};
use crate::call::{EndTokens, Settings};
use crate::constrain::Structure;
use crate::error::ApiError;
use crate::model::Loaded;
use crate::options::ServerOptions;

/// The largest number of stop strings.
const MAX_STOPS: usize = 16;

/// The name of the model for the answer.
///
/// # Errors
/// If the request asks for another model.
pub(crate) fn model_name(
    fields: &Fields<'_>,
    loaded: &Loaded,
    options: &ServerOptions,
) -> Result<String, ApiError> {
    let name = fields.text("model")?.unwrap_or_default();
    if !loaded.is_named(name, options) {
        let message =
            format!("there is no model {}: this server has {}", short(&Value::from(name)), loaded.model.id);
        return Err(ApiError {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..ApiError::new(axum::http::StatusCode::NOT_FOUND, message)
        });
    }
    let is_default = matches!(name, "" | "default" | "default_model");
    Ok(if is_default { loaded.model.id.clone() } else { name.to_owned() })
}

/// Whether a stream ends with its usage.
pub(crate) fn stream_options(fields: &Fields<'_>) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    Ok(options.bool("include_usage")?.unwrap_or(false))
}

/// The settings except for log-probabilities, whose fields differ between interfaces.
pub(crate) fn settings(fields: &Fields<'_>, loaded: &Loaded) -> Result<Settings, ApiError> {
    if let Some(n) = fields.integer("n", 1, i64::MAX)?
        && n != 1
    {
        return Err(fields.error("n", format!("expected 1, got {n}: an answer has one choice")));
    }
    let max_completion = fields.count("max_completion_tokens", 1)?;
    let max_tokens = fields.count("max_tokens", 1)?;
    let end_tokens =
        if fields.bool("ignore_eos")?.unwrap_or(false) { EndTokens::Ignored } else { EndTokens::End };
    Ok(Settings {
        max_tokens: max_completion.or(max_tokens),
        min_tokens: fields.count("min_tokens", 0)?.unwrap_or(0),
        sampling: sampling(fields, loaded)?,
        stop: stop(fields, "stop")?,
        stop_token_ids: token_ids(fields, "stop_token_ids", loaded.model.vocab_size)?,
        end_tokens,
        logprobs: None,
    })
}

fn sampling(fields: &Fields<'_>, loaded: &Loaded) -> Result<SamplingParams, ApiError> {
    let default = loaded.model.sampling.params();
    let penalty = |n: f64| (-2.0..=2.0).contains(&n);
    let temperature = fields.number("temperature", "a number from 0 to 5", |n| (0.0..=5.0).contains(&n))?;
    let top_p = fields.number("top_p", "a number above 0, at most 1", |n| n > 0.0 && n <= 1.0)?;
    let min_p = fields.number("min_p", "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))?;
    let repetition =
        fields.number("repetition_penalty", "a number above 0", |n| n > 0.0 && n <= f64::from(f32::MAX))?;
    let top_k = fields.integer("top_k", -1, i64::MAX)?;
    let presence = fields.number("presence_penalty", "a number from -2 to 2", penalty)?;
    let frequency = fields.number("frequency_penalty", "a number from -2 to 2", penalty)?;
    let seed = fields.integer("seed", i64::MIN, i64::MAX)?;
    let params = SamplingParams {
        temperature: temperature.unwrap_or(default.temperature),
        top_k: top_k.map_or(default.top_k, |k| usize::try_from(k).ok().filter(|k| *k > 0)),
        // A value so small that it is 0 as f32 still keeps one token.
        top_p: top_p.map(|p| p.max(f32::MIN_POSITIVE)).or(default.top_p),
        min_p: min_p.or(default.min_p),
        repetition_penalty: repetition.map(|p| p.max(f32::MIN_POSITIVE)).or(default.repetition_penalty),
        repetition_context_size: fields
            .count("repetition_context_size", 0)?
            .unwrap_or(default.repetition_context_size),
        presence_penalty: presence.unwrap_or(0.0),
        presence_context_size: fields.count("presence_context_size", 0)?,
        frequency_penalty: frequency.unwrap_or(0.0),
        frequency_context_size: fields.count("frequency_context_size", 0)?,
        logit_bias: logit_bias(fields, loaded.model.vocab_size)?,
        seed: seed.map_or_else(|| rand::rng().random(), |seed| seed as u64),
    };
    params.validate().map_err(|error| ApiError::of_engine(&error, "temperature"))?;
    Ok(params)
}

fn logit_bias(fields: &Fields<'_>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.map("logit_bias")? else { return Ok(Vec::new()) };
    let entry = |(key, value): (&String, &Value)| {
        let path = format!("{}.{key}", fields.path("logit_bias"));
        let token = key.parse::<u32>().ok().filter(|t| (*t as usize) < vocab_size);
        let token = token.ok_or_else(|| {
            ApiError::field(
                "logit_bias",
                format!("expected ids below {vocab_size}, got {}", short(&Value::from(key.as_str()))),
            )
        })?;
        let bias = value.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        Ok((token, bias.ok_or_else(|| wrong(&path, "a number from -100 to 100", value))? as f32))
    };
    map.iter().map(entry).collect()
}

/// A string or a list of strings, none of them empty.
pub(crate) fn stop(fields: &Fields<'_>, key: &str) -> Result<Vec<String>, ApiError> {
    let want = "a string or a list of strings, none of them empty";
    let text = |value: &Value| match value.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(fields.wrong(key, want, value)),
    };
    match fields.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() > MAX_STOPS => {
            Err(fields.error(key, format!("expected at most {MAX_STOPS} strings, got {}", list.len())))
        }
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}

fn token_ids(fields: &Fields<'_>, key: &str, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        let id = value.as_u64().filter(|id| *id < vocab_size as u64);
        id.map(|id| id as u32)
            .ok_or_else(|| fields.wrong(key, &format!("token ids below {vocab_size}"), value))
    };
    fields.array(key)?.into_iter().flatten().map(id).collect()
}

/// The structure of the answer, given by `response_format` or vLLM's `structured_outputs`.
pub(crate) fn structure(fields: &Fields<'_>) -> Result<Option<Structure>, ApiError> {
    if let Some(structured) = fields.object("structured_outputs")? {
        return structured_outputs(&structured);
    }
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    match format.text("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Structure::json_object())),
        Some("json_schema") => {
            let Some(schema) = format.object("json_schema")? else {
                return Err(format.error("json_schema", "expected an object, got nothing"));
            };
            schema_of(&schema, "schema").map(Some)
        }
        _ => {
            let got = format.get("type").unwrap_or(&Value::Null);
            Err(format.wrong("type", "text, json_object or json_schema", got))
        }
    }
}

/// The schema under a key.
pub(crate) fn schema_of(fields: &Fields<'_>, key: &str) -> Result<Structure, ApiError> {
    match fields.get(key) {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(Structure::Schema(schema.clone())),
        other => Err(fields.wrong(key, "a JSON schema", other.unwrap_or(&Value::Null))),
    }
}

fn structured_outputs(fields: &Fields<'_>) -> Result<Option<Structure>, ApiError> {
    if let Some(json) = fields.get("json") {
        let schema = match json {
            Value::String(text) => serde_json::from_str(text)
                .map_err(|error| fields.error("json", format!("the text is not JSON: {error}")))?,
            other => other.clone(),
        };
        let whole = json!({"json": schema});
        return schema_of(&Fields::of(&whole, "structured_outputs")?, "json").map(Some);
    }
    if let Some(regex) = fields.text("regex")? {
        return Ok(Some(Structure::Regex(regex.to_owned())));
    }
    if let Some(choices) = fields.array("choice")? {
        let text = |value: &Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| fields.wrong("choice", "strings", value))
        };
        let choices = choices.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if choices.is_empty() {
            return Err(fields.error("choice", "expected at least one string, got none"));
        }
        return Ok(Some(Structure::Choice(choices)));
    }
    if let Some(grammar) = fields.text("grammar")? {
        return Ok(Some(Structure::Grammar(grammar.to_owned())));
    }
    if fields.bool("json_object")? == Some(true) {
        return Ok(Some(Structure::json_object()));
    }
    Ok(None)
}

//! Messages of a conversation.

use serde_json::{Map, Value};
use zmlx_models::ChatMessage;

use crate::api::fields::{Fields, wrong};
use crate::error::ApiError;

/// The messages in the form for templates.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let Some(list) = fields.array("messages")? else {
        return Err(fields.error("messages", "expected a list, got nothing"));
    };
    if list.is_empty() {
        return Err(fields.error("messages", "expected at least one message, got none"));
    }
    list.iter()
        .enumerate()
        .map(|(i, value)| message(&Fields::of(value, &format!("messages[{i}]"))?))
        .collect()
}

fn message(fields: &Fields<'_>) -> Result<ChatMessage, ApiError> {
    let role = match fields.text("role")? {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
        _ => {
            let got = fields.get("role").unwrap_or(&Value::Null);
            return Err(fields.wrong("role", "system, developer, user, assistant or tool", got));
        }
    };
    let content = match fields.get("content") {
        None => String::new(),
        Some(content) => content_text(content, &fields.path("content"), &["text"])?,
    };
    let mut map = Map::new();
    map.insert("role".into(), role.into());
    map.insert("content".into(), content.into());
    for key in ["name", "tool_call_id"] {
        if let Some(text) = fields.text(key)? {
            map.insert(key.into(), text.into());
        }
    }
    let reasoning = fields.text("reasoning_content")?;
    if let Some(reasoning) = reasoning.or(fields.text("reasoning")?) {
        map.insert("reasoning_content".into(), reasoning.into());
    }
    if let Some(calls) = fields.array("tool_calls")?
        && !calls.is_empty()
    {
        for (i, call) in calls.iter().enumerate() {
            check_call(&Fields::of(call, &format!("{}[{i}]", fields.path("tool_calls")))?)?;
        }
        map.insert("tool_calls".into(), Value::Array(calls.clone()));
    }
    ChatMessage::from_json(Value::Object(map)).map_err(|error| ApiError::of_engine(&error, "messages"))
}

fn check_call(call: &Fields<'_>) -> Result<(), ApiError> {
    call.text("id")?;
    let Some(function) = call.object("function")? else {
        return Err(call.error("function", "expected an object, got nothing"));
    };
    if function.text("name")?.is_none() {
        return Err(function.error("name", "expected a string, got nothing"));
    }
    match function.get("arguments") {
        None | Some(Value::String(_) | Value::Object(_)) => Ok(()),
        Some(other) => Err(function.wrong("arguments", "the text of a JSON object", other)),
    }
}

/// The text of a content, which is a string, or a list of parts of these types, whose texts are joined.
pub(crate) fn content_text(content: &Value, path: &str, types: &[&str]) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(wrong(path, "a string or a list of parts", other)),
    };
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        let part = Fields::of(part, &format!("{path}[{i}]"))?;
        match part.text("type")? {
            Some(kind) if types.contains(&kind) => {}
            _ => {
                let got = part.get("type").unwrap_or(&Value::Null);
                return Err(part.wrong("type", &types.join(" or "), got));
            }
        }
        let Some(text) = part.text("text")? else {
            return Err(part.error("text", "expected a string, got nothing"));
        };
        joined += text;
    }
    Ok(joined)
}

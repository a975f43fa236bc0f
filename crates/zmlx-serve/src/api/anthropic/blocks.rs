//! Messages and their blocks, as templates see them.

use serde_json::{Map, Value, json};
use zmlx_models::ChatMessage;

use crate::api::fields::{Fields, wrong};
use crate::api::openai::content_text;
use crate::error::ApiError;

/// The beginning of a block that changes with every request and contains nothing for the model.
const BILLING: &str = "x-anthropic-billing-header:";

/// The system message, if there is one.
pub(super) fn system(fields: &Fields<'_>) -> Result<Option<ChatMessage>, ApiError> {
    let Some(system) = fields.get("system") else { return Ok(None) };
    let text = system_text(system, "system")?;
    Ok((!text.is_empty()).then(|| ChatMessage::new("system", text)))
}

fn system_text(system: &Value, path: &str) -> Result<String, ApiError> {
    let Value::Array(blocks) = system else { return content_text(system, path, &["text"]) };
    let mut texts = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        let text = content_text(&json!([block]), &format!("{path}[{i}]"), &["text"])?;
        if !text.starts_with(BILLING) {
            texts.push(text);
        }
    }
    Ok(texts.join("\n"))
}

/// The messages. A user message with tool results becomes several messages.
pub(super) fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let Some(list) = fields.array("messages")? else {
        return Err(fields.error("messages", "expected a list, got nothing"));
    };
    if list.is_empty() {
        return Err(fields.error("messages", "expected at least one message, got none"));
    }
    let mut messages = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let path = format!("messages[{i}]");
        let message = Fields::of(value, &path)?;
        let Some(content) = message.get("content") else {
            return Err(message.error("content", "expected a string or a list of blocks, got nothing"));
        };
        let path = message.path("content");
        match message.text("role")? {
            Some("system") => messages.push(ChatMessage::new("system", system_text(content, &path)?)),
            Some("user") => user(content, &path, &mut messages)?,
            Some("assistant") => messages.push(assistant(content, &path)?),
            _ => {
                let got = message.get("role").unwrap_or(&Value::Null);
                return Err(message.wrong("role", "user, assistant or system", got));
            }
        }
    }
    Ok(messages)
}

fn blocks<'a>(content: &'a Value, path: &str) -> Result<Vec<Fields<'a>>, ApiError> {
    let Value::Array(blocks) = content else {
        return Err(wrong(path, "a string or a list of blocks", content));
    };
    blocks.iter().enumerate().map(|(i, block)| Fields::of(block, &format!("{path}[{i}]"))).collect()
}

fn need<'a>(block: &Fields<'a>, key: &str) -> Result<&'a str, ApiError> {
    block.text(key)?.ok_or_else(|| block.error(key, "expected a string, got nothing"))
}

fn user(content: &Value, path: &str, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    if let Value::String(text) = content {
        messages.push(ChatMessage::new("user", text.as_str()));
        return Ok(());
    }
    let mut texts: Option<String> = None;
    let mut n_results = 0;
    for block in blocks(content, path)? {
        match block.text("type")? {
            Some("text") => {
                let text = need(&block, "text")?;
                match &mut texts {
                    Some(texts) => {
                        texts.push('\n');
                        texts.push_str(text);
                    }
                    None => texts = Some(text.to_owned()),
                }
            }
            Some("tool_result") => {
                n_results += 1;
                let text = match block.get("content") {
                    None => String::new(),
                    Some(content) => content_text(content, &block.path("content"), &["text"])?,
                };
                let mut map = Map::new();
                map.insert("role".into(), "tool".into());
                map.insert("content".into(), text.into());
                map.insert("tool_call_id".into(), need(&block, "tool_use_id")?.into());
                messages.push(message(map)?);
            }
            _ => {
                let got = block.get("type").unwrap_or(&Value::Null);
                return Err(block.wrong("type", "text or tool_result", got));
            }
        }
    }
    if texts.is_some() || n_results == 0 {
        messages.push(ChatMessage::new("user", texts.unwrap_or_default()));
    }
    Ok(())
}

fn assistant(content: &Value, path: &str) -> Result<ChatMessage, ApiError> {
    if let Value::String(text) = content {
        return Ok(ChatMessage::new("assistant", text.as_str()));
    }
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    for block in blocks(content, path)? {
        match block.text("type")? {
            Some("text") => text += need(&block, "text")?,
            Some("thinking") => thinking += block.text("thinking")?.unwrap_or_default(),
            Some("redacted_thinking") => {}
            Some("tool_use") => {
                let input = block.map("input")?.cloned().unwrap_or_default();
                calls.push(json!({
                    "id": need(&block, "id")?,
                    "type": "function",
                    "function": {"name": need(&block, "name")?, "arguments": input}
                }));
            }
            _ => {
                let got = block.get("type").unwrap_or(&Value::Null);
                return Err(block.wrong("type", "text, thinking, redacted_thinking or tool_use", got));
            }
        }
    }
    let mut map = Map::new();
    map.insert("role".into(), "assistant".into());
    map.insert("content".into(), text.into());
    if !thinking.is_empty() {
        map.insert("reasoning_content".into(), thinking.into());
    }
    if !calls.is_empty() {
        map.insert("tool_calls".into(), calls.into());
    }
    message(map)
}

fn message(map: Map<String, Value>) -> Result<ChatMessage, ApiError> {
    ChatMessage::from_json(Value::Object(map)).map_err(|error| ApiError::of_engine(&error, "messages"))
}

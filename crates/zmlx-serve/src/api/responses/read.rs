//! Reading a request.

use serde_json::{Map, Value, json};
use zmlx_models::ChatMessage;

use super::tools::{Routes, tools};
use crate::api::fields::Fields;
use crate::api::openai::{choice, content_text, effort, schema_of, settings};
use crate::call::{ChatCall, Continues, ToolChoice, most_calls};
use crate::constrain::Structure;
use crate::error::ApiError;
use crate::model::Loaded;

/// Reads a request.
pub(super) fn read(fields: &Fields<'_>, loaded: &Loaded) -> Result<(ChatCall, Routes), ApiError> {
    for key in ["previous_response_id", "conversation"] {
        if fields.get(key).is_some() {
            return Err(fields
                .error(key, "this server does not store responses: send the whole conversation as input"));
        }
    }
    if fields.bool("background")? == Some(true) {
        return Err(fields.error("background", "expected false: this server does not store responses"));
    }
    let mut settings = settings(fields, loaded)?;
    settings.max_tokens = fields.count("max_output_tokens", 1)?.or(settings.max_tokens);
    let mut messages = Vec::new();
    if let Some(instructions) = fields.text("instructions")?
        && !instructions.is_empty()
    {
        messages.push(ChatMessage::new("system", instructions));
    }
    input(fields, &mut messages)?;
    let (tools, tools_json, routes) = tools(fields)?;
    // The choice of a tool that runs on another server has no effect here.
    let is_foreign = fields
        .get("tool_choice")
        .and_then(|c| c.get("type"))
        .is_some_and(|kind| !matches!(kind.as_str(), Some("function" | "custom")));
    let choice = match fields.get("tool_choice") {
        Some(wanted) if !is_foreign => {
            let mut wanted = wanted.clone();
            if let Value::Object(map) = &mut wanted {
                map.insert("type".into(), "function".into());
            }
            let wanted = json!({"tool_choice": wanted});
            choice(&Fields::of_body(&wanted)?, &tools)?
        }
        _ => ToolChoice::Auto,
    };
    let most_calls = most_calls(&choice, fields.bool("parallel_tool_calls")?);
    let mut kwargs = Map::new();
    if let Some(reasoning) = fields.object("reasoning")? {
        effort(reasoning.text("effort")?, &mut kwargs);
    }
    if let Some(own) = fields.map("chat_template_kwargs")? {
        kwargs.extend(own.clone());
    }
    let call = ChatCall {
        messages,
        tools,
        tools_json,
        choice,
        most_calls,
        kwargs,
        structure: structure(fields)?,
        continues: Continues::NewMessage,
        settings,
        param: "input",
    };
    Ok((call, routes))
}

fn structure(fields: &Fields<'_>) -> Result<Option<Structure>, ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(None) };
    text.text("verbosity")?;
    let Some(format) = text.object("format")? else { return Ok(None) };
    match format.text("type")? {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Structure::json_object())),
        Some("json_schema") => schema_of(&format, "schema").map(Some),
        _ => {
            let got = format.get("type").unwrap_or(&Value::Null);
            Err(format.wrong("type", "text, json_object or json_schema", got))
        }
    }
}

/// The conversation: a string, or items.
fn input(fields: &Fields<'_>, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let items = match fields.get("input") {
        Some(Value::String(text)) => {
            messages.push(ChatMessage::new("user", text.as_str()));
            return Ok(());
        }
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(Value::Array(_)) => return Err(fields.error("input", "expected at least one item, got none")),
        other => {
            return Err(fields.wrong("input", "a string or a list of items", other.unwrap_or(&Value::Null)));
        }
    };
    let mut turn = Turn::default();
    for (i, value) in items.iter().enumerate() {
        let item = Fields::of(value, &format!("input[{i}]"))?;
        match item.text("type")? {
            None | Some("message") => message(&item, &mut turn, messages)?,
            Some("function_call") => {
                let name = match item.text("namespace")? {
                    Some(space) => Routes::name_in(space, need(&item, "name")?),
                    None => need(&item, "name")?.to_owned(),
                };
                turn.call(need(&item, "call_id")?, &name, item.text("arguments")?.unwrap_or_default().into());
            }
            Some("custom_tool_call") => {
                let arguments = json!({"input": item.text("input")?.unwrap_or_default()});
                turn.call(need(&item, "call_id")?, need(&item, "name")?, arguments);
            }
            Some("function_call_output" | "custom_tool_call_output") => {
                turn.end(messages)?;
                let text = match item.get("output") {
                    None => String::new(),
                    Some(output) => {
                        content_text(output, &item.path("output"), &["input_text", "output_text", "text"])?
                    }
                };
                let mut map = Map::new();
                map.insert("role".into(), "tool".into());
                map.insert("content".into(), text.into());
                map.insert("tool_call_id".into(), need(&item, "call_id")?.into());
                messages.push(from_map(map)?);
            }
            Some("reasoning") => turn.think(&item, messages)?,
            _ => {
                let got = item.get("type").unwrap_or(&Value::Null);
                let want = "message, function_call, function_call_output, custom_tool_call, custom_tool_call_output or reasoning";
                return Err(item.wrong("type", want, got));
            }
        }
    }
    turn.end(messages)
}

fn message(item: &Fields<'_>, turn: &mut Turn, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
    let text = match item.get("content") {
        None => String::new(),
        Some(content) => {
            content_text(content, &item.path("content"), &["input_text", "output_text", "text"])?
        }
    };
    match item.text("role")? {
        Some("assistant") => turn.say(&text, messages),
        Some(role @ ("user" | "system" | "developer")) => {
            turn.end(messages)?;
            let role = if role == "developer" { "system" } else { role };
            messages.push(ChatMessage::new(role, text));
            Ok(())
        }
        _ => Err(item.wrong(
            "role",
            "user, assistant, system or developer",
            item.get("role").unwrap_or(&Value::Null),
        )),
    }
}

fn need<'a>(item: &Fields<'a>, key: &str) -> Result<&'a str, ApiError> {
    item.text(key)?.ok_or_else(|| item.error(key, "expected a string, got nothing"))
}

fn from_map(map: Map<String, Value>) -> Result<ChatMessage, ApiError> {
    ChatMessage::from_json(Value::Object(map)).map_err(|error| ApiError::of_engine(&error, "input"))
}

/// Successive items of the assistant. Thinking, text and calls are separate items, but one message for templates.
#[derive(Debug, Default)]
struct Turn {
    reasoning: String,
    text: Option<String>,
    calls: Vec<Value>,
}

impl Turn {
    fn think(&mut self, item: &Fields<'_>, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        if self.text.is_some() || !self.calls.is_empty() {
            self.end(messages)?;
        }
        let parts = item.array("content")?.filter(|parts| !parts.is_empty());
        let parts = match parts {
            Some(parts) => Some((parts, "content")),
            None => item.array("summary")?.map(|parts| (parts, "summary")),
        };
        for (i, part) in
            parts.into_iter().flat_map(|(list, key)| list.iter().map(move |p| (p, key))).enumerate()
        {
            let (part, key) = part;
            let part = Fields::of(part, &format!("{}[{i}]", item.path(key)))?;
            self.reasoning += part.text("text")?.unwrap_or_default();
        }
        Ok(())
    }

    fn say(&mut self, text: &str, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        if self.text.is_some() || !self.calls.is_empty() {
            self.end(messages)?;
        }
        self.text = Some(text.to_owned());
        Ok(())
    }

    fn call(&mut self, id: &str, name: &str, arguments: Value) {
        self.calls.push(json!({
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments}
        }));
    }

    fn end(&mut self, messages: &mut Vec<ChatMessage>) -> Result<(), ApiError> {
        let Self { reasoning, text, calls } = std::mem::take(self);
        if text.is_none() && calls.is_empty() {
            return Ok(());
        }
        let mut map = Map::new();
        map.insert("role".into(), "assistant".into());
        map.insert("content".into(), text.unwrap_or_default().into());
        if !reasoning.is_empty() {
            map.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() {
            map.insert("tool_calls".into(), calls.into());
        }
        messages.push(from_map(map)?);
        Ok(())
    }
}

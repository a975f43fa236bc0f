//! Reading a request.

use serde_json::{Map, Value, json};
use zmlx_models::ChatMessage;

use super::blocks;
use crate::api::fields::Fields;
use crate::api::openai::{check_choice, effort, schema_of, settings, stop, tool_of_function};
use crate::call::{ChatCall, Continues, ToolChoice, most_calls};
use crate::constrain::Structure;
use crate::error::ApiError;
use crate::model::Loaded;
use crate::tools::Tool;

/// Whether a request has to give the maximal length of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Needed,
    Any,
}

/// Reads a request.
pub(super) fn read(fields: &Fields<'_>, loaded: &Loaded, length: Length) -> Result<ChatCall, ApiError> {
    if length == Length::Needed && fields.get("max_tokens").is_none() {
        return Err(fields.error("max_tokens", "expected a whole number, at least 1, got nothing"));
    }
    let mut settings = settings(fields, loaded)?;
    settings.stop = stop(fields, "stop_sequences")?;
    let mut messages: Vec<ChatMessage> = blocks::system(fields)?.into_iter().collect();
    messages.extend(blocks::messages(fields)?);
    let is_continued = messages.last().is_some_and(|m| {
        m.role() == "assistant" && !m.text().trim().is_empty() && m.get("tool_calls").is_none()
    });
    let tools = tools(fields)?;
    let tools_json = tools.iter().map(for_template).collect();
    let (choice, most_calls) = choice(fields, &tools)?;
    let mut kwargs = Map::new();
    if let Some(thinking) = fields.object("thinking")? {
        let is_on = match thinking.text("type")? {
            Some("enabled" | "adaptive") => true,
            Some("disabled") => false,
            _ => {
                let got = thinking.get("type").unwrap_or(&Value::Null);
                return Err(thinking.wrong("type", "enabled, adaptive or disabled", got));
            }
        };
        kwargs.insert("enable_thinking".into(), is_on.into());
    }
    let mut structure = format(fields, "output_format")?;
    if let Some(output) = fields.object("output_config")? {
        effort(output.text("effort")?, &mut kwargs);
        structure = format(&output, "format")?.or(structure);
    }
    if let Some(own) = fields.map("chat_template_kwargs")? {
        kwargs.extend(own.clone());
    }
    Ok(ChatCall {
        messages,
        tools,
        tools_json,
        choice,
        most_calls,
        kwargs,
        structure,
        continues: if is_continued { Continues::LastMessage } else { Continues::NewMessage },
        settings,
        param: "messages",
    })
}

/// The client's own tools. Tools that run on Anthropic's servers are left out, because they do not exist here.
fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let mut tools = Vec::new();
    for (i, value) in fields.array("tools")?.into_iter().flatten().enumerate() {
        let tool = Fields::of(value, &format!("tools[{i}]"))?;
        if matches!(tool.text("type")?, None | Some("custom")) {
            tools.push(tool_of_function(&tool, "input_schema")?);
        }
    }
    Ok(tools)
}

fn for_template(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description.as_deref().unwrap_or_default(),
            "parameters": tool.parameters
        }
    })
}

/// Which tools may be called, and how many times.
fn choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<(ToolChoice, Option<usize>), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else { return Ok((ToolChoice::Auto, None)) };
    let which = match choice.text("type")? {
        Some("auto") => ToolChoice::Auto,
        Some("none") => ToolChoice::None,
        Some("any") => ToolChoice::Required,
        Some("tool") => match choice.text("name")? {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => return Err(choice.error("name", "expected a string, got nothing")),
        },
        _ => {
            let got = choice.get("type").unwrap_or(&Value::Null);
            return Err(choice.wrong("type", "auto, any, tool or none", got));
        }
    };
    check_choice(&which, tools, "tool_choice")?;
    let is_parallel = choice.bool("disable_parallel_tool_use")?.map(|is_disabled| !is_disabled);
    let most_calls = most_calls(&which, is_parallel);
    Ok((which, most_calls))
}

fn format(fields: &Fields<'_>, key: &str) -> Result<Option<Structure>, ApiError> {
    let Some(format) = fields.object(key)? else { return Ok(None) };
    match format.text("type")? {
        Some("json_schema") => schema_of(&format, "schema").map(Some),
        _ => Err(format.wrong("type", "json_schema", format.get("type").unwrap_or(&Value::Null))),
    }
}

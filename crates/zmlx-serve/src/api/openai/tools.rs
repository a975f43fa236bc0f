//! The tools of a request, and which of them may be called.

use serde_json::{Map, Value};

use crate::api::fields::Fields;
use crate::call::ToolChoice;
use crate::error::ApiError;
use crate::tools::Tool;

/// The tools, and the same tools in the form for templates.
pub(super) fn tools(fields: &Fields<'_>) -> Result<(Vec<Tool>, Vec<Value>), ApiError> {
    let list = fields.array("tools")?.map(Vec::as_slice).unwrap_or_default();
    let tool = |(i, value): (usize, &Value)| {
        let fields = Fields::of(value, &format!("tools[{i}]"))?;
        match fields.text("type")? {
            None | Some("function") => {}
            Some(_) => {
                return Err(fields.wrong("type", "function", fields.get("type").unwrap_or(&Value::Null)));
            }
        }
        let Some(function) = fields.object("function")? else {
            return Err(fields.error("function", "expected an object, got nothing"));
        };
        tool_of_function(&function, "parameters")
    };
    let tools = list.iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    Ok((tools, list.to_vec()))
}

/// A tool in an object with `name`, `description` and a schema.
pub(crate) fn tool_of_function(function: &Fields<'_>, schema: &str) -> Result<Tool, ApiError> {
    let name = match function.text("name")? {
        Some(name) if is_name(name) => name.to_owned(),
        _ => {
            let got = function.get("name").unwrap_or(&Value::Null);
            return Err(function.wrong("name", "a name without spaces, quotes and brackets", got));
        }
    };
    let parameters = function.map(schema)?.cloned().unwrap_or_default();
    Ok(Tool {
        name,
        description: function.text("description")?.map(str::to_owned),
        parameters: Value::Object(parameters),
        strict: function.bool("strict")?.unwrap_or(false),
    })
}

/// True if every syntax can write the name.
fn is_name(name: &str) -> bool {
    let is_bad = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '<' | '>' | '"' | '\'' | '{' | '}' | '\\')
    };
    !name.is_empty() && name.len() <= 256 && !name.contains(is_bad)
}

/// Which of the tools may be called.
pub(crate) fn choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    const KEY: &str = "tool_choice";
    let choice = match fields.get(KEY) {
        None => ToolChoice::Auto,
        Some(Value::String(name)) => match name.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" | "any" => ToolChoice::Required,
            _ => {
                let got = fields.get(KEY).unwrap_or(&Value::Null);
                return Err(fields.wrong(KEY, "none, auto, required or a function", got));
            }
        },
        Some(value) => {
            let choice = Fields::of(value, KEY)?;
            match choice.text("type")? {
                None | Some("function") => {}
                Some(_) => {
                    return Err(choice.wrong("type", "function", choice.get("type").unwrap_or(&Value::Null)));
                }
            }
            // Responses gives the name next to the type.
            let name = match choice.object("function")? {
                Some(function) => function.text("name")?,
                None => choice.text("name")?,
            };
            let Some(name) = name else {
                return Err(choice.error("function.name", "expected a string, got nothing"));
            };
            ToolChoice::Named(name.to_owned())
        }
    };
    check_choice(&choice, tools, KEY)?;
    Ok(choice)
}

/// Checks that the tool that must be called exists.
pub(crate) fn check_choice(choice: &ToolChoice, tools: &[Tool], key: &str) -> Result<(), ApiError> {
    match choice {
        ToolChoice::Required if tools.is_empty() => Err(ApiError::field(key, "there are no tools to call")),
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            Err(ApiError::field(key, "there is no tool with that name"))
        }
        _ => Ok(()),
    }
}

/// Sets the template variables that a reasoning effort stands for.
pub(crate) fn effort(effort: Option<&str>, kwargs: &mut Map<String, Value>) {
    match effort {
        None => {}
        Some("none") => {
            kwargs.insert("enable_thinking".into(), false.into());
        }
        Some(effort) => {
            kwargs.insert("reasoning_effort".into(), effort.into());
        }
    }
}

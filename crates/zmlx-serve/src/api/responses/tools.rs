//! Tools, and how their calls are translated back for the client: functions, functions of namespaces, and tools that
//! take plain text.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::items::Progress;
use crate::api::fields::Fields;
use crate::api::openai::tool_of_function;
use crate::error::ApiError;
use crate::state::{new_call_id, new_id};
use crate::tools::Tool;

/// What a tool is for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Function,
    /// A function of a namespace.
    InNamespace {
        namespace: String,
        name: String,
    },
    /// A tool whose only argument is its whole input.
    Custom,
}

/// The kinds of the tools, by the names that the model sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    by_name: HashMap<String, Route>,
}

/// The ids of the item of a call.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    pub(super) item: String,
    pub(super) call: String,
}

/// The tools for the model. Tools that run on other servers are left out.
pub(super) fn tools(fields: &Fields<'_>) -> Result<(Vec<Tool>, Vec<Value>, Routes), ApiError> {
    let (mut tools, mut routes) = (Vec::new(), Routes::default());
    for (i, value) in fields.array("tools")?.into_iter().flatten().enumerate() {
        let tool = Fields::of(value, &format!("tools[{i}]"))?;
        match tool.text("type")? {
            Some("function") => {
                routes.add(tool_of_function(&tool, "parameters")?, Route::Function, &mut tools)
            }
            Some("custom") => {
                let parameters = json!({
                    "type": "object",
                    "properties": {"input": {"type": "string"}},
                    "required": ["input"]
                });
                let named = Tool { parameters, strict: false, ..tool_of_function(&tool, "parameters")? };
                routes.add(named, Route::Custom, &mut tools);
            }
            Some("namespace") => routes.add_namespace(&tool, &mut tools)?,
            Some(_) => {}
            None => return Err(tool.error("type", "expected a string, got nothing")),
        }
    }
    let tools_json = tools.iter().map(for_template).collect();
    Ok((tools, tools_json, routes))
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

impl Routes {
    fn add(&mut self, tool: Tool, route: Route, tools: &mut Vec<Tool>) {
        self.by_name.insert(tool.name.clone(), route);
        tools.push(tool);
    }

    fn add_namespace(&mut self, space: &Fields<'_>, tools: &mut Vec<Tool>) -> Result<(), ApiError> {
        let Some(namespace) = space.text("name")? else {
            return Err(space.error("name", "expected a string, got nothing"));
        };
        for (i, value) in space.array("tools")?.into_iter().flatten().enumerate() {
            let function = Fields::of(value, &format!("{}[{i}]", space.path("tools")))?;
            if !matches!(function.text("type")?, None | Some("function")) {
                continue;
            }
            let tool = tool_of_function(&function, "parameters")?;
            let route = Route::InNamespace { namespace: namespace.to_owned(), name: tool.name.clone() };
            let name = Self::name_in(namespace, &tool.name);
            self.add(Tool { name, ..tool }, route, tools);
        }
        Ok(())
    }

    /// The model's name for a function in a namespace.
    pub(super) fn name_in(namespace: &str, name: &str) -> String {
        if namespace.ends_with("__") { format!("{namespace}{name}") } else { format!("{namespace}__{name}") }
    }

    /// Creates ids for a call of a tool.
    pub(super) fn ids(&self, name: &str) -> Ids {
        let prefix = if self.is_custom(name) { "ctc_" } else { "fc_" };
        Ids { item: new_id(prefix), call: new_call_id("call_") }
    }

    pub(super) fn is_custom(&self, name: &str) -> bool {
        self.by_name.get(name) == Some(&Route::Custom)
    }

    /// The item of a call. `arguments` is its JSON so far.
    pub(super) fn item(&self, ids: &Ids, name: &str, arguments: &str, progress: Progress) -> Value {
        let Ids { item, call } = ids;
        let status = progress.status();
        match self.by_name.get(name) {
            Some(Route::Custom) => {
                json!({
                    "id": item, "type": "custom_tool_call", "status": status, "call_id": call, "name": name,
                    "input": Self::input(arguments)
                })
            }
            Some(Route::InNamespace { namespace, name }) => json!({
                "id": item, "type": "function_call", "status": status, "call_id": call, "name": name,
                "namespace": namespace, "arguments": arguments
            }),
            Some(Route::Function) | None => json!({
                "id": item, "type": "function_call", "status": status, "call_id": call, "name": name,
                "arguments": arguments
            }),
        }
    }

    /// The input of a tool that takes plain text, from its arguments.
    pub(super) fn input(arguments: &str) -> String {
        let value: Value = serde_json::from_str(arguments).unwrap_or_default();
        match value.get("input") {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

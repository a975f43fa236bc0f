//! Grammars for tool calls in the model's own syntax.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{inline_json, quoted};
use crate::tools::{Tool, ToolSyntax};

/// The tool calls of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls<'a> {
    /// The syntax in which the model writes them.
    pub(crate) syntax: ToolSyntax,
    /// The tools that may be called; at least one.
    pub(crate) tools: &'a [Tool],
    /// Whether there must be calls.
    pub(crate) wanted: CallsWanted,
    /// The largest number of calls; `None` means any number.
    pub(crate) most: Option<usize>,
}

/// Whether there must be calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallsWanted {
    /// At least one, and nothing else.
    Required,
    /// Text, and calls if the model makes any.
    Allowed,
}

impl Calls<'_> {
    /// The rule `name` and the rules that it needs.
    pub(super) fn rules(&self, name: &str) -> String {
        let mut rules = String::new();
        let more = if self.most == Some(1) { "" } else { " (BETWEEN? call)*" };
        match self.wanted {
            CallsWanted::Required => rules += &format!("{name}: call{more}\n"),
            CallsWanted::Allowed => {
                // A text without the tag, or a text up to the tag and then calls.
                rules += &format!("{name}: PLAIN | until_tag after_tag{more} BETWEEN?\n");
                rules += "PLAIN: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/\n";
                rules += "until_tag[suffix=\"<tool_call>\"]: /(?s:.*)/\n";
            }
        }
        rules += "BETWEEN: /\\n{1,2}/\n";
        rules += "call: \"<tool_call>\" after_tag\n";
        let names: Vec<String> = (0..self.tools.len()).map(|i| format!("tool_{i}")).collect();
        let names = names.join(" | ");
        rules += &match self.syntax {
            ToolSyntax::Glm => format!("after_tag: ({names}) \"</tool_call>\"\n"),
            ToolSyntax::Qwen | ToolSyntax::Coder => {
                format!("after_tag: \"\\n\" ({names}) \"\\n</tool_call>\"\n")
            }
        };
        for (i, tool) in self.tools.iter().enumerate() {
            self.tool(i, tool, &mut rules);
        }
        rules
    }

    fn tool(&self, i: usize, tool: &Tool, rules: &mut String) {
        let schema = object_schema(&tool.parameters);
        if self.syntax == ToolSyntax::Qwen {
            let begin = quoted(&format!("{{\"name\": {}, \"arguments\": ", Value::from(tool.name.as_str())));
            let _ = writeln!(rules, "tool_{i}: {begin} arguments_{i} \"}}\"");
            let _ = writeln!(rules, "arguments_{i}: {}", inline_json(&schema));
            return;
        }
        let nothing = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&nothing);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let (first, others): (Vec<_>, Vec<_>) =
            properties.iter().enumerate().partition(|(_, (key, _))| required.contains(&key.as_str()));
        let (begin, end) = match self.syntax {
            ToolSyntax::Coder => (format!("<function={}>\n", tool.name), "</function>"),
            _ => (tool.name.clone(), ""),
        };
        let mut rule = quoted(&begin);
        for (list, mark) in [(&first, ""), (&others, "?")] {
            for (at, _) in list {
                let _ = write!(rule, " argument_{i}_{at}{mark}");
            }
        }
        if !end.is_empty() {
            let _ = write!(rule, " {}", quoted(end));
        }
        let _ = writeln!(rules, "tool_{i}: {rule}");
        for (at, (key, property)) in properties.iter().enumerate() {
            let (before, after) = match self.syntax {
                ToolSyntax::Coder => (format!("<parameter={key}>\n"), "\n</parameter>\n"),
                _ => (format!("<arg_key>{key}</arg_key><arg_value>"), "</arg_value>"),
            };
            let value = format!("value_{i}_{at}");
            let before = quoted(&before);
            let _ = writeln!(rules, "argument_{i}_{at}: {before} {value}");
            let _ = match values(property, schema.get("$defs")) {
                Values::Text => writeln!(rules, "{value}[suffix={}]: /(?s:.*)/", quoted(after)),
                Values::Choice(choices) => {
                    let choices: Vec<String> = choices.iter().map(|c| quoted(c)).collect();
                    writeln!(rules, "{value}: ({}) {}", choices.join(" | "), quoted(after))
                }
                Values::Json(schema) => {
                    writeln!(
                        rules,
                        "{value}: json_{i}_{at} {}\njson_{i}_{at}: {}",
                        quoted(after),
                        inline_json(&schema)
                    )
                }
            };
        }
    }
}

/// How a value is written.
enum Values {
    /// As plain text.
    Text,
    /// As one of these texts.
    Choice(Vec<String>),
    /// As JSON.
    Json(Value),
}

fn values(property: &Value, definitions: Option<&Value>) -> Values {
    if let Some(list) = property.get("enum").and_then(Value::as_array)
        && !list.is_empty()
        && list.iter().all(Value::is_string)
    {
        return Values::Choice(list.iter().filter_map(Value::as_str).map(str::to_owned).collect());
    }
    let is_text = match property.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        _ => property.as_object().is_some_and(|p| !p.contains_key("anyOf") && !p.contains_key("$ref")),
    };
    if is_text {
        return Values::Text;
    }
    let mut schema = property.clone();
    if let (Value::Object(map), Some(definitions)) = (&mut schema, definitions) {
        map.insert("$defs".into(), definitions.clone());
    }
    Values::Json(schema)
}

/// The schema of the arguments, which are always an object.
fn object_schema(parameters: &Value) -> Value {
    match parameters {
        Value::Object(map) if !map.is_empty() => {
            let mut map = map.clone();
            map.entry("type").or_insert_with(|| json!("object"));
            Value::Object(map)
        }
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    }
}

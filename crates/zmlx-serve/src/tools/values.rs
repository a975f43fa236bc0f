//! Values of arguments that come as text, and the JSON object that they form.

use serde_json::Value;

use super::translate::Translator;
use super::{Piece, Tool};

/// The arguments of a call, which are added one after the other.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    n: usize,
}

impl Arguments {
    /// Adds an argument of the tool `name`.
    pub(super) fn push(
        &mut self,
        tools: &[Tool],
        name: &str,
        (key, text): (&str, &str),
        pieces: &mut Vec<Piece>,
    ) {
        let tool = tools.iter().find(|tool| tool.name == name);
        let schema = tool.and_then(|tool| tool.parameters.get("properties")?.get(key));
        let begin = if self.n == 0 { '{' } else { ',' };
        pieces.push(Piece::CallArguments(format!("{begin}{}:{}", quoted(key), json_of(text, schema))));
        self.n += 1;
    }

    /// Ends the object and the call.
    pub(super) fn end(&mut self, pieces: &mut Vec<Piece>) {
        pieces.push(Piece::CallArguments(if self.n == 0 { "{}".into() } else { "}".into() }));
        pieces.push(Piece::CallEnd);
    }
}

/// The JSON of a value, in the type that its schema requires.
fn json_of(text: &str, schema: Option<&Value>) -> String {
    let mut types = Types::default();
    if let Some(schema) = schema {
        types.add(schema, 0);
    }
    let parsed = as_json(text);
    if types.is_unknown() {
        // Texts are strings, but a value that looks like another type is of that type.
        return match parsed {
            Some((json, Value::Object(_) | Value::Array(_) | Value::Number(_) | Value::Bool(_))) => json,
            _ => quoted(text),
        };
    }
    match parsed {
        Some((json, _)) if !types.text => json,
        Some((json, value)) if types.others.contains(&type_of(&value)) => json,
        _ => quoted(text),
    }
}

/// The text as JSON, if it is JSON or a Python literal.
pub(super) fn as_json(text: &str) -> Option<(String, Value)> {
    let text = text.trim();
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        return Some((text.to_owned(), value));
    }
    let mut translator = Translator::default();
    let mut json = String::new();
    for c in text.chars() {
        translator.push(c, &mut json);
    }
    translator.finish(&mut json);
    let value = serde_json::from_str(&json).ok()?;
    Some((json, value))
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The types that a schema allows.
#[derive(Debug, Default)]
struct Types {
    text: bool,
    others: Vec<&'static str>,
}

impl Types {
    fn is_unknown(&self) -> bool {
        !self.text && self.others.is_empty()
    }

    fn add(&mut self, schema: &Value, depth: usize) {
        // Deeper schemas say nothing about the value itself.
        if depth > 8 {
            return;
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.add_name(name),
            Some(Value::Array(names)) => {
                names.iter().filter_map(Value::as_str).for_each(|n| self.add_name(n))
            }
            _ => {}
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for one in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.add(one, depth + 1);
            }
        }
        if schema.get("type").is_none() {
            let values = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
            for value in values.chain(schema.get("const")) {
                self.add_name(type_of(value));
            }
        }
    }

    fn add_name(&mut self, name: &str) {
        match name {
            "string" => self.text = true,
            "integer" | "number" => self.others.push("number"),
            "boolean" => self.others.push("boolean"),
            "null" => self.others.push("null"),
            "array" => self.others.push("array"),
            "object" => self.others.push("object"),
            _ => {}
        }
    }
}

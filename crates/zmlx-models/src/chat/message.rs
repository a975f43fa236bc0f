//! Messages in the form that templates expect.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::config::short;
use crate::{Error, Result};

/// Keys under which a message's thinking may come. Templates read the first one; a few read the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message of a conversation: its role, its content, and whatever else its template knows (`tool_calls`,
/// `tool_call_id`, `name`, `reasoning_content`).
///
/// A template never sees `null`, which many templates would print as `None`: content that is null or missing becomes
/// the empty text, and other keys with null are left out. The `arguments` of tool calls become objects if their text is
/// a JSON object. Thinking is stored under `reasoning_content`, whichever of its keys it came under.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct ChatMessage {
    map: Map<String, Value>,
}

impl ChatMessage {
    /// A message with a role (`system`, `user`, `assistant`, `tool`, or another one that the template knows) and a
    /// text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut map = Map::new();
        map.insert("role".to_owned(), Value::String(role.into()));
        map.insert("content".to_owned(), Value::String(content.into()));
        Self { map }
    }

    /// A message as it comes in a request or a file.
    ///
    /// # Errors
    /// [`Error::Parameter`] if it is not an object with a text under `role`, or if its `content` is not a text, a list
    /// or null.
    pub fn from_json(value: Value) -> Result<Self> {
        let wrong = |field, want, got: &Value| Error::Parameter { field, want, got: short(got) };
        let Value::Object(mut map) = value else {
            return Err(wrong("message", "an object", &value));
        };
        match map.get("role") {
            Some(Value::String(_)) => {}
            other => return Err(wrong("message.role", "a string", other.unwrap_or(&Value::Null))),
        }
        match map.get_mut("content") {
            Some(Value::String(_) | Value::Array(_)) => {}
            Some(null @ Value::Null) => *null = Value::String(String::new()),
            Some(other) => return Err(wrong("message.content", "a string, a list of parts or null", other)),
            None => {
                map.insert("content".to_owned(), Value::String(String::new()));
            }
        }
        map.retain(|_, value| !value.is_null());
        for call in map.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
            read_arguments(call);
            if let Some(function) = call.get_mut("function") {
                read_arguments(function);
            }
        }
        let reasoning = REASONING.iter().find_map(|name| map.get(*name)).cloned();
        if let Some(reasoning) = reasoning {
            map.entry("thinking").or_insert_with(|| reasoning.clone());
            map.insert("reasoning_content".to_owned(), reasoning);
        }
        Ok(Self { map })
    }

    /// The same message with another key, for example `tool_call_id`.
    ///
    /// # Errors
    /// As [`ChatMessage::from_json`].
    pub fn with(mut self, key: &str, value: Value) -> Result<Self> {
        self.map.insert(key.to_owned(), value);
        Self::from_json(Value::Object(self.map))
    }

    /// The role of the speaker.
    pub fn role(&self) -> &str {
        self.map.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text. If the content is a list of parts, their texts one after the other.
    pub fn text(&self) -> String {
        match self.map.get("content") {
            Some(Value::Array(parts)) => {
                let text = |part: &Value| part.get("text").and_then(Value::as_str).map(str::to_owned);
                parts
                    .iter()
                    .filter_map(|part| part.as_str().map(str::to_owned).or_else(|| text(part)))
                    .collect()
            }
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        }
    }

    /// The same message with the texts of its parts joined into one text, for templates that do not know parts.
    ///
    /// # Errors
    /// [`Error::Parameter`] if a part is not a text.
    pub fn with_joined_text(mut self) -> Result<Self> {
        if let Some(Value::Array(parts)) = self.map.get("content") {
            let is_text = |part: &Value| part.is_string() || part.get("text").is_some_and(Value::is_string);
            if let Some(other) = parts.iter().find(|part| !is_text(part)) {
                let want = "parts of type text";
                return Err(Error::Parameter { field: "message.content", want, got: short(other) });
            }
            let text = self.text();
            self.map.insert("content".to_owned(), Value::String(text));
        }
        Ok(self)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key)
    }

    pub(super) fn as_map(&self) -> &Map<String, Value> {
        &self.map
    }
}

/// Replaces arguments that are the text of a JSON object by that object. An empty text becomes an empty object.
fn read_arguments(function: &mut Value) {
    let Some(arguments) = function.get_mut("arguments") else { return };
    match arguments {
        Value::Null => *arguments = Value::Object(Map::new()),
        Value::String(text) if text.trim().is_empty() => *arguments = Value::Object(Map::new()),
        Value::String(text) => {
            if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                *arguments = object;
            }
        }
        _ => {}
    }
}

impl<'de> Deserialize<'de> for ChatMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(value).map_err(serde::de::Error::custom)
    }
}

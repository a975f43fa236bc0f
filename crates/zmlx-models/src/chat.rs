//! Chat templates: the Jinja program of a checkpoint that turns a conversation into a prompt.
//!
//! Templates are written for Python's Jinja2 as Hugging Face sets it up: blocks are trimmed, strings and mappings
//! have Python's methods, and `raise_exception`, `strftime_now` and a `tojson` without HTML escapes exist.

mod environment;

use std::path::Path;

use minijinja::value::{Value as JinjaValue, merge_maps};
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::read_optional;
use crate::config::parse_json;
use crate::{Error, Result};

const NAME: &str = "chat_template";

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What a template renders.
#[derive(Clone, Copy, Debug)]
pub struct ChatRequest<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [ChatMessage],
    /// True to end with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables of the template, as `enable_thinking`.
    pub kwargs: &'a Map<String, Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// The template of the checkpoint in `dir`: `chat_template.jinja`, or else the one in `tokenizer_config.json`.
    ///
    /// # Errors
    /// If there is none, a file is unsound, or the template does not parse.
    pub fn open(dir: &Path) -> Result<Self> {
        let jinja = read_optional(&dir.join("chat_template.jinja"))?;
        let tokenizer_config = read_optional(&dir.join("tokenizer_config.json"))?;
        Self::from_parts(&dir.display().to_string(), tokenizer_config.as_deref(), jinja)
    }

    /// The template in the texts of `tokenizer_config.json` and `chat_template.jinja`, which wins.
    ///
    /// # Errors
    /// As [`ChatTemplate::open`].
    pub fn from_parts(name: &str, tokenizer_config: Option<&str>, jinja: Option<String>) -> Result<Self> {
        let file = format!("{name}/tokenizer_config.json");
        let config = tokenizer_config.map_or(Ok(Value::Null), |text| parse_json(&file, text))?;
        let source = match jinja {
            Some(source) => source,
            None => {
                template_in(&file, &config)?.ok_or_else(|| Error::NoChatTemplate { name: name.into() })?
            }
        };
        let mut environment = environment::hugging_face();
        environment.add_template_owned(NAME, source).map_err(template_error)?;
        let (bos_token, eos_token) =
            (special(&file, &config, "bos_token")?, special(&file, &config, "eos_token")?);
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] with the template's own words if it raises an exception, [`Error::ChatTemplate`] if it
    /// fails, [`Error::Parameter`] if `kwargs` names a variable that the request has a field for.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<String> {
        if let Some(key) =
            ["messages", "add_generation_prompt"].into_iter().find(|k| request.kwargs.contains_key(*k))
        {
            let want = "template variables that are not fields of the request";
            return Err(Error::Parameter { field: "chat template arguments", want, got: key.into() });
        }
        let undefined_or = |t: &Option<String>| t.as_deref().map_or(JinjaValue::UNDEFINED, JinjaValue::from);
        let defaults = context! {
            tools => (),
            documents => (),
            bos_token => undefined_or(&self.bos_token),
            eos_token => undefined_or(&self.eos_token),
        };
        let variables = context! {
            messages => request.messages,
            add_generation_prompt => request.add_generation_prompt,
            ..merge_maps([defaults, JinjaValue::from_serialize(request.kwargs)])
        };
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        template.render(variables).map_err(template_error)
    }
}

/// The template in a `tokenizer_config.json`: a text, or a list of named ones of which `default` is for chats.
fn template_in(file: &str, config: &Value) -> Result<Option<String>> {
    let wrong = |got: &Value| Error::Field {
        file: file.into(),
        key: "chat_template".into(),
        want: "a text, or a list of {name, template} with the name \"default\"".into(),
        got: crate::config::short(got),
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(list) => {
            let named = list.as_array().ok_or_else(|| wrong(list))?;
            let default = named.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let source = default.and_then(|t| t.get("template")).and_then(Value::as_str);
            source.map(|s| Some(s.to_owned())).ok_or_else(|| wrong(list))
        }
    }
}

/// A special token: a text, or an object with its text under `content`.
fn special(file: &str, config: &Value, key: &str) -> Result<Option<String>> {
    let value = match config.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
    text.map(|t| Some(t.to_owned())).ok_or_else(|| Error::Field {
        file: file.into(),
        key: key.into(),
        want: "a text, or an object with content".into(),
        got: crate::config::short(value),
    })
}

fn template_error(error: minijinja::Error) -> Error {
    match environment::refusal(&error) {
        Some(message) => Error::ChatRefused { message },
        None => Error::ChatTemplate { source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests;

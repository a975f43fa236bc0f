//! Chat templates: the Jinja program of a checkpoint, which turns a conversation into a prompt.
//!
//! A checkpoint has one template, or several with names. Of several, `tool_use` is for requests with tools, and
//! `default` is for all others. They are in `chat_template.jinja` and `additional_chat_templates/`, or in
//! `tokenizer_config.json`.

mod channels;
mod files;
mod message;
mod request;
mod thinking;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::jinja::{Template, TemplateError};
use crate::{Error, Result};
use files::TemplateFiles;
pub use message::ChatMessage;
pub use request::{ChatRequest, Ending};
pub use thinking::{AnswerPart, ThinkingMode, ThinkingSplitter, undecided};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A mark that is added to the last message, to find out where that message ends in the prompt.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// The compiled chat templates of a checkpoint, with the special tokens that they may name.
#[derive(Debug)]
pub struct ChatTemplate {
    /// A named template that does not parse causes an error only when it is used.
    templates: BTreeMap<String, std::result::Result<Template, TemplateError>>,
    sources: BTreeMap<String, String>,
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// The templates of the checkpoint in `dir`: `chat_template.jinja` and `additional_chat_templates/*.jinja`, or else
    /// those in `tokenizer_config.json` or `chat_template.json`.
    ///
    /// # Errors
    /// If there is no template, a file cannot be read as what it should be, or the default template does not parse.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::build(&dir.display().to_string(), TemplateFiles::read(dir)?)
    }

    /// The template in the texts of `tokenizer_config.json` and `chat_template.jinja`. The latter takes precedence.
    ///
    /// # Errors
    /// As [`ChatTemplate::open`].
    pub fn from_parts(name: &str, tokenizer_config: Option<&str>, jinja: Option<String>) -> Result<Self> {
        Self::build(name, TemplateFiles::of_parts(name, tokenizer_config, jinja)?)
    }

    fn build(name: &str, files: TemplateFiles) -> Result<Self> {
        let sources = files.templates;
        let mut templates: BTreeMap<_, _> =
            sources.iter().map(|(name, source)| (name.clone(), Template::parse(source))).collect();
        match templates.remove(DEFAULT) {
            None => return Err(Error::NoChatTemplate { name: name.into() }),
            Some(Err(source)) => return Err(Error::ChatTemplate { source }),
            Some(parsed) => templates.insert(DEFAULT.to_owned(), parsed),
        };
        Ok(Self { templates, sources, special_tokens: files.special_tokens })
    }

    /// The same special tokens with another default template and no other templates.
    ///
    /// # Errors
    /// If the template does not parse.
    pub fn with_source(self, source: String) -> Result<Self> {
        let templates = BTreeMap::from([(DEFAULT.to_owned(), source)]);
        Self::build("", TemplateFiles { templates, special_tokens: self.special_tokens })
    }

    /// The text of the template for requests with or without tools. It shows how the model writes calls.
    pub fn source(&self, has_tools: bool) -> &str {
        self.sources.get(self.name(has_tools)).map_or("", String::as_str)
    }

    fn name(&self, has_tools: bool) -> &'static str {
        if has_tools && self.templates.contains_key(TOOL_USE) { TOOL_USE } else { DEFAULT }
    }

    /// Renders the prompt for a conversation.
    ///
    /// [`Error::ChatRefused`] with the template's own message if it raises an exception; [`Error::ChatTemplate`] if it
    /// fails or takes too much time or memory; [`Error::Parameter`] if `kwargs` names a variable for which the request
    /// has a field, or if there is no last message to continue.
    pub fn render(&self, request: &ChatRequest<'_>) -> Result<String> {
        let mut variables = self.variables(request)?;
        let continued = match request.ending {
            Ending::ContinueLast => Some(mark_last(&mut variables)?),
            Ending::Closed | Ending::GenerationPrompt => None,
        };
        let has_tools = variables.get("tools").is_some_and(|tools| !tools.is_null());
        let template = match self.templates.get(self.name(has_tools)) {
            Some(Ok(template)) => template,
            Some(Err(source)) => return Err(Error::ChatTemplate { source: source.clone() }),
            None => return Err(Error::NoChatTemplate { name: DEFAULT.to_owned() }),
        };
        let text = template.render(&variables).map_err(|error| match error {
            TemplateError::Raised { message } => Error::ChatRefused { message },
            source => Error::ChatTemplate { source },
        })?;
        match continued {
            Some(last) => cut_at_mark(text, &last),
            None => Ok(text),
        }
    }

    /// The variables of the template. Variables of the request take precedence over special tokens.
    fn variables(&self, request: &ChatRequest<'_>) -> Result<Map<String, Value>> {
        let mut variables = self.special_tokens.clone();
        variables.insert("tools".to_owned(), request.tools.map_or(Value::Null, |list| list.to_vec().into()));
        variables.insert(
            "documents".to_owned(),
            request.documents.map_or(Value::Null, |list| list.to_vec().into()),
        );
        for (key, value) in request.kwargs.into_iter().flatten() {
            let is_taken = match key.as_str() {
                "messages" | "add_generation_prompt" => true,
                "tools" => request.tools.is_some(),
                "documents" => request.documents.is_some(),
                _ => false,
            };
            if is_taken {
                let want = "template variables that are not fields of the request";
                return Err(Error::Parameter { field: "chat template arguments", want, got: key.clone() });
            }
            variables.insert(key.clone(), value.clone());
        }
        let messages = request.messages.iter().map(|message| Value::Object(message.as_map().clone()));
        variables.insert("messages".to_owned(), messages.collect());
        let opens = matches!(request.ending, Ending::GenerationPrompt);
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(opens));
        Ok(variables)
    }
}

/// Appends the mark to the text of the last message, and returns the text.
fn mark_last(variables: &mut Map<String, Value>) -> Result<String> {
    let nothing = || Error::Parameter {
        field: "continue_final_message",
        want: "a last message with text",
        got: "none".to_owned(),
    };
    let messages = variables.get_mut("messages").and_then(Value::as_array_mut);
    let content = messages.and_then(|list| list.last_mut()).and_then(|last| last.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        other => other,
    };
    match text {
        Some(Value::String(text)) if !text.is_empty() => {
            let last = text.clone();
            text.push_str(MARK);
            Ok(last)
        }
        _ => Err(nothing()),
    }
}

/// Cuts the prompt at the end of the last message.
fn cut_at_mark(mut prompt: String, last: &str) -> Result<String> {
    let at = prompt.rfind(MARK.trim_end()).filter(|_| prompt.contains(last.trim()));
    let Some(at) = at else {
        return Err(Error::Parameter {
            field: "continue_final_message",
            want: "a template that writes the last message as it is",
            got: "one that does not".to_owned(),
        });
    };
    // A template that trims the message removes the blank at the end of the mark, and would also remove blanks at the
    // end of the message.
    let is_trimmed = !prompt[at..].starts_with(MARK);
    prompt.truncate(at);
    if is_trimmed {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests;

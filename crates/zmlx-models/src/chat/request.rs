//! The input of a chat template.

use serde_json::{Map, Value};

use super::ChatMessage;

/// How a prompt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// After the last message.
    Closed,
    /// With the beginning of the assistant's answer.
    GenerationPrompt,
    /// Within the last message, which the model continues.
    ContinueLast,
}

/// A conversation, and the other inputs of a template.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ChatRequest<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [ChatMessage],
    /// The tools that the model may call, as JSON schemas; `None` if there are none.
    pub tools: Option<&'a [Value]>,
    /// Documents that the answer may be based on.
    pub documents: Option<&'a [Value]>,
    /// How the prompt ends.
    pub ending: Ending,
    /// Further variables of the template, for example `enable_thinking`.
    pub kwargs: Option<&'a Map<String, Value>>,
}

impl<'a> ChatRequest<'a> {
    /// A conversation that the assistant is to answer.
    pub fn new(messages: &'a [ChatMessage]) -> Self {
        Self { messages, tools: None, documents: None, ending: Ending::GenerationPrompt, kwargs: None }
    }

    /// The same with tools.
    #[must_use]
    pub fn with_tools(self, tools: &'a [Value]) -> Self {
        Self { tools: Some(tools), ..self }
    }

    /// The same with documents.
    #[must_use]
    pub fn with_documents(self, documents: &'a [Value]) -> Self {
        Self { documents: Some(documents), ..self }
    }

    /// The same with further variables of the template.
    #[must_use]
    pub fn with_kwargs(self, kwargs: &'a Map<String, Value>) -> Self {
        Self { kwargs: Some(kwargs), ..self }
    }

    /// The same with another ending.
    #[must_use]
    pub fn with_ending(self, ending: Ending) -> Self {
        Self { ending, ..self }
    }
}

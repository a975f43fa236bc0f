//! A request in the server's own types, which all interfaces share.

use serde_json::{Map, Value};
use zmlx_models::{ChatMessage, SamplingParams};

use crate::constrain::Structure;
use crate::tools::Tool;

/// How an answer is generated.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The largest number of tokens; `None` means the server's default.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: usize,
    pub(crate) sampling: SamplingParams,
    /// Texts that end the answer.
    pub(crate) stop: Vec<String>,
    /// Tokens that end it, in addition to the model's.
    pub(crate) stop_token_ids: Vec<u32>,
    /// Whether the model's own end tokens end it.
    pub(crate) end_tokens: EndTokens,
    /// The number of other tokens whose probabilities are reported with that of the chosen token. `None` reports no
    /// probabilities.
    pub(crate) logprobs: Option<usize>,
}

/// The effect of the model's end tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndTokens {
    /// They end the answer.
    End,
    /// They have no effect.
    Ignored,
}

/// Whether tools must be called, or may be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

/// A conversation to answer.
#[derive(Clone, Debug)]
pub(crate) struct ChatCall {
    pub(crate) messages: Vec<ChatMessage>,
    /// The tools, and below the tools in the form for the template.
    pub(crate) tools: Vec<Tool>,
    pub(crate) tools_json: Vec<Value>,
    pub(crate) choice: ToolChoice,
    /// The largest number of tool calls; `None` means any number.
    pub(crate) most_calls: Option<usize>,
    /// Variables of the template.
    pub(crate) kwargs: Map<String, Value>,
    pub(crate) structure: Option<Structure>,
    /// Whether the last message is continued instead of answered.
    pub(crate) continues: Continues,
    pub(crate) settings: Settings,
    /// The field that holds the conversation.
    pub(crate) param: &'static str,
}

/// Where the answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continues {
    /// In a message of its own.
    NewMessage,
    /// Within the last message.
    LastMessage,
}

/// A text to continue.
#[derive(Clone, Debug)]
pub(crate) struct TextCall {
    pub(crate) prompt: TextPrompt,
    pub(crate) structure: Option<Structure>,
    pub(crate) settings: Settings,
}

/// A text, or its tokens.
#[derive(Clone, Debug)]
pub(crate) enum TextPrompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// The largest number of calls in an answer. If a call is forced, there is one, unless the request allows several.
pub(crate) fn most_calls(choice: &ToolChoice, is_parallel: Option<bool>) -> Option<usize> {
    let is_one = match (choice, is_parallel) {
        (ToolChoice::Named(_), _) | (_, Some(false)) | (ToolChoice::Required, None) => true,
        (_, Some(true)) | (ToolChoice::Auto | ToolChoice::None, None) => false,
    };
    is_one.then_some(1)
}

impl ChatCall {
    /// The tools that the model sees.
    pub(crate) fn shown_tools(&self) -> Option<&[Value]> {
        let is_shown = self.choice != ToolChoice::None && !self.tools_json.is_empty();
        is_shown.then_some(self.tools_json.as_slice())
    }
}

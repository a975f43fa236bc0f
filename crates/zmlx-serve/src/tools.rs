//! Parses a model's text into thinking, content and tool calls, while the text comes in pieces.
//!
//! The parsers work on text, because a tag may consist of several tokens. The result does not depend on how the text
//! was split: only text that may still be a tag is held back.

mod calls;
mod coder;
mod glm;
mod json;
mod translate;
mod values;

use serde_json::Value;

use calls::CallReader;
use zmlx_models::chat::{AnswerPart, ThinkingMode, ThinkingSplitter};

/// The syntax of a model's tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolSyntax {
    /// GLM-4: `<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`.
    Glm,
    /// Qwen3: JSON with `name` and `arguments` inside `<tool_call>`.
    Qwen,
    /// Qwen3-Coder: `<function=name><parameter=k>v</parameter></function>` inside `<tool_call>`.
    Coder,
}

impl ToolSyntax {
    /// The syntax that a chat template shows to its model; `None` if it shows none of these.
    pub fn of_template(template: &str) -> Option<Self> {
        if template.contains("<arg_key>") {
            Some(Self::Glm)
        } else if template.contains("<function=") {
            Some(Self::Coder)
        } else if template.contains("<tool_call>") {
            Some(Self::Qwen)
        } else {
            None
        }
    }
}

/// A tool that a request offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// The JSON schema of its arguments.
    pub parameters: Value,
    /// Whether calls must match the schema.
    pub strict: bool,
}

/// A part of a model's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Thinking.
    Reasoning(String),
    /// Text for the reader.
    Content(String),
    /// A call begins. Its arguments follow, and nothing else before its end.
    CallStart {
        /// The tool's name.
        name: String,
    },
    /// More of the JSON text of the arguments.
    CallArguments(String),
    /// The call is complete.
    CallEnd,
    /// The call that began is not a call: this is its whole text.
    CallBroken(String),
    /// The text ended inside the call that began.
    CallCut,
}

/// How a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextEnd {
    /// The model ended it.
    Whole,
    /// It was cut off.
    Cut,
}

/// How an answer is parsed.
#[derive(Debug)]
pub struct ParserOptions<'a> {
    /// Whether thinking is separated, and if so, whether the answer begins inside it.
    pub thinking: ThinkingMode,
    /// The syntax of calls; `None` if there are no calls.
    pub syntax: Option<ToolSyntax>,
    /// The tools that may be called.
    pub tools: &'a [Tool],
}

/// Parses one answer.
#[derive(Debug)]
pub struct OutputParser {
    thinking: ThinkingSplitter,
    calls: Option<CallReader>,
}

impl OutputParser {
    /// A parser at the start of an answer.
    pub fn new(options: &ParserOptions<'_>) -> Self {
        let calls = options.syntax.map(|syntax| CallReader::new(syntax, options.tools.to_vec()));
        Self { thinking: ThinkingSplitter::new(options.thinking), calls }
    }

    /// True while the text is thinking.
    pub fn is_thinking(&self) -> bool {
        self.thinking.is_thinking()
    }

    /// Adds a piece of text, and appends the parts that are now certain.
    pub fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let Self { thinking, calls } = self;
        thinking.push(text, &mut |part, text| pass(part, text, calls.as_mut(), pieces, TextEnd::Whole));
    }

    /// Ends the text, and appends the parts that were held back.
    pub fn finish(&mut self, end: TextEnd, pieces: &mut Vec<Piece>) {
        let Self { thinking, calls } = self;
        thinking.finish(&mut |part, text| pass(part, text, calls.as_mut(), pieces, end));
        if let Some(calls) = calls {
            calls.finish(end, pieces);
        }
    }
}

fn pass(part: AnswerPart, text: &str, calls: Option<&mut CallReader>, pieces: &mut Vec<Piece>, end: TextEnd) {
    match (part, calls) {
        (AnswerPart::Thinking, _) => match pieces.last_mut() {
            Some(Piece::Reasoning(last)) => last.push_str(text),
            _ => pieces.push(Piece::Reasoning(text.to_owned())),
        },
        (AnswerPart::Answer, Some(calls)) => calls.push(text, pieces),
        (AnswerPart::Answer, None) => push_content(text, pieces),
        (AnswerPart::CallStart, _) => pieces.push(Piece::CallStart { name: text.to_owned() }),
        (AnswerPart::CallArguments, _) => pieces.push(Piece::CallArguments(text.to_owned())),
        (AnswerPart::CallEnd, _) => pieces.push(match end {
            TextEnd::Whole => Piece::CallEnd,
            TextEnd::Cut => Piece::CallCut,
        }),
        // A part of an unknown kind is treated as content.
        (_, _) => push_content(text, pieces),
    }
}

/// Appends content if the text is not empty.
fn push_content(text: &str, pieces: &mut Vec<Piece>) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Content(last)) => last.push_str(text),
        _ => pieces.push(Piece::Content(text.to_owned())),
    }
}

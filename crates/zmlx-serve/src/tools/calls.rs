//! Finds calls in a text, in any syntax, with the content between them, and text that turns out not to be a call.

use zmlx_models::chat::undecided;

use super::coder::Coder;
use super::glm::Glm;
use super::json::Json;
use super::{Piece, TextEnd, Tool, ToolSyntax, push_content};

/// The result of a syntax for the text of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// The call continues.
    More,
    /// The call ends after this many bytes.
    Done(usize),
    /// This many bytes are not a call.
    Broken(usize),
}

/// Parses the text of one call, from its opening tag on.
#[derive(Debug)]
pub(super) enum Syntax {
    Glm(Glm),
    Json(Json),
    Coder(Coder),
}

impl Syntax {
    fn new(syntax: ToolSyntax) -> Self {
        match syntax {
            ToolSyntax::Glm => Self::Glm(Glm::default()),
            ToolSyntax::Qwen => Self::Json(Json::default()),
            ToolSyntax::Coder => Self::Coder(Coder::default()),
        }
    }

    /// True once the name of the call has been passed on.
    fn has_begun(&self) -> bool {
        match self {
            Self::Glm(glm) => glm.has_begun(),
            Self::Json(json) => json.has_begun(),
            Self::Coder(coder) => coder.has_begun(),
        }
    }

    /// Continues to parse `raw`, which has grown since the last call. `is_end` says that it will not grow any more.
    fn read(&mut self, raw: &str, is_end: bool, tools: &[Tool], pieces: &mut Vec<Piece>) -> Status {
        match self {
            Self::Glm(glm) => glm.read(raw, tools, pieces),
            Self::Json(json) => json.read(raw, is_end, pieces),
            Self::Coder(coder) => coder.read(raw, is_end, tools, pieces),
        }
    }
}

/// Finds calls in a text.
#[derive(Debug)]
pub(super) struct CallReader {
    syntax: ToolSyntax,
    tools: Vec<Tool>,
    /// Text that is not decided yet. The text of a call begins with its opening tag.
    held: String,
    current: Option<Syntax>,
    /// True once there was content other than white space.
    has_content: bool,
    /// True once there was a call. White space between calls is dropped.
    has_call: bool,
}

impl CallReader {
    pub(super) fn new(syntax: ToolSyntax, tools: Vec<Tool>) -> Self {
        Self { syntax, tools, held: String::new(), current: None, has_content: false, has_call: false }
    }

    pub(super) fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.held.push_str(text);
        self.advance(false, pieces);
    }

    pub(super) fn finish(&mut self, end: TextEnd, pieces: &mut Vec<Piece>) {
        self.advance(true, pieces);
        let rest = std::mem::take(&mut self.held);
        if let Some(current) = self.current.take() {
            match end {
                TextEnd::Cut => pieces.push(Piece::CallCut),
                TextEnd::Whole if current.has_begun() => pieces.push(Piece::CallBroken(rest)),
                TextEnd::Whole => push_content(&rest, pieces),
            }
        } else if !rest.trim().is_empty() {
            self.give(&rest, pieces);
        } else if !self.has_call {
            // White space at the end of a text is a part of it.
            push_content(&rest, pieces);
        }
    }

    fn advance(&mut self, is_end: bool, pieces: &mut Vec<Piece>) {
        loop {
            let Some(syntax) = &mut self.current else {
                if !self.find_call(is_end, pieces) {
                    return;
                }
                continue;
            };
            let status = syntax.read(&self.held, is_end, &self.tools, pieces);
            let has_begun = syntax.has_begun();
            match status {
                Status::More => return,
                Status::Done(len) => {
                    self.held.drain(..len);
                    self.current = None;
                    self.has_call = true;
                }
                Status::Broken(len) => {
                    let text: String = self.held.drain(..len).collect();
                    self.has_content = true;
                    if has_begun {
                        pieces.push(Piece::CallBroken(text));
                    } else {
                        push_content(&text, pieces);
                    }
                    self.current = None;
                }
            }
        }
    }

    /// Passes on content up to the next call. Returns true if there is one.
    fn find_call(&mut self, is_end: bool, pieces: &mut Vec<Piece>) -> bool {
        let tags: &[&str] = match self.syntax {
            ToolSyntax::Coder => &["<tool_call>", "<function="],
            ToolSyntax::Glm | ToolSyntax::Qwen => &["<tool_call>"],
        };
        if let Some(at) = tags.iter().filter_map(|tag| self.held.find(tag)).min() {
            let before = self.held[..at].trim_end().to_owned();
            self.give(&before, pieces);
            self.held.drain(..at);
            self.current = Some(Syntax::new(self.syntax));
            return true;
        }
        if is_end {
            return false;
        }
        let certain = self.held.len() - undecided(&self.held, tags);
        let certain = self.held[..certain].trim_end().len();
        let text: String = self.held.drain(..certain).collect();
        self.give(&text, pieces);
        false
    }

    /// Passes on content. White space at the beginning belongs to it, but not after a call.
    fn give(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        let text = if self.has_call && !self.has_content { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.has_content = true;
        push_content(text, pieces);
    }
}

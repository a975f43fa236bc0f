//! How an answer is shown. On a terminal, thinking is dimmed and its tags are removed; elsewhere the text is written
//! unchanged.

use std::io::IsTerminal;

use anstyle::Style;
use anyhow::Result;
use zmlx_models::AnswerPart;

use crate::output::{escaped, print};
use crate::table::is_coloured;

const DIM: Style = Style::new().dimmed();

/// Writes an answer to stdout.
pub(super) struct Screen {
    is_terminal: bool,
    is_coloured: bool,
    hides_thinking: bool,
    /// The kind of the part that was shown last.
    last: Option<AnswerPart>,
    failed: Option<anyhow::Error>,
}

impl Screen {
    pub(super) fn new(hides_thinking: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self { is_terminal, is_coloured: is_coloured(), hides_thinking, last: None, failed: None }
    }

    /// True if the text is shown unchanged, including its tags, because a program reads it.
    pub(super) fn is_raw(&self) -> bool {
        !self.is_terminal && !self.hides_thinking
    }

    /// Writes a piece of text unchanged.
    pub(super) fn raw(&mut self, text: &str) {
        self.write(text);
    }

    /// Shows a piece of one part of the answer.
    pub(super) fn show(&mut self, part: AnswerPart, text: &str) {
        let changes = self.last != Some(part);
        if changes && self.last == Some(AnswerPart::Thinking) && !self.hides_thinking {
            self.write("\n\n");
        }
        self.last = Some(part);
        match part {
            AnswerPart::Thinking if self.hides_thinking => {
                if changes && self.is_terminal {
                    self.dim("[thinking]\n");
                }
            }
            AnswerPart::Thinking => self.dim(text),
            _ => self.write(text),
        }
    }

    /// Shows a remark beside the answer, if a person reads it.
    pub(super) fn remark(&mut self, text: &str) {
        if self.is_terminal {
            self.dim(text);
        }
    }

    /// False once a write to stdout has failed.
    pub(super) fn is_well(&self) -> bool {
        self.failed.is_none()
    }

    pub(super) fn end(self) -> Result<()> {
        self.failed.map_or(Ok(()), Err)
    }

    fn dim(&mut self, text: &str) {
        if self.is_coloured {
            let text = escaped(text).into_owned();
            self.put(&format!("{DIM}{text}{DIM:#}"));
        } else {
            self.write(text);
        }
    }

    /// Escapes control characters: a model's text may contain sequences that a terminal would execute.
    fn write(&mut self, text: &str) {
        if self.is_terminal {
            let text = escaped(text).into_owned();
            self.put(&text);
        } else {
            self.put(text);
        }
    }

    fn put(&mut self, text: &str) {
        if self.failed.is_none() {
            self.failed = print(text).err();
        }
    }
}

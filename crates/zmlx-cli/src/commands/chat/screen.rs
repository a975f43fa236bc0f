//! What of an answer is shown, and how: thinking dimmed and without its tags where a person reads, all as it is elsewhere.

use std::io::IsTerminal;

use anstyle::Style;
use anyhow::Result;
use zmlx_models::AnswerPart;

use crate::output::{escaped, print};
use crate::table::is_coloured;

const DIM: Style = Style::new().dimmed();

/// An answer on its way to stdout.
pub(super) struct Screen {
    is_terminal: bool,
    is_coloured: bool,
    hides_thinking: bool,
    /// What was shown last.
    last: Option<AnswerPart>,
    failed: Option<anyhow::Error>,
}

impl Screen {
    pub(super) fn new(hides_thinking: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self { is_terminal, is_coloured: is_coloured(), hides_thinking, last: None, failed: None }
    }

    /// True if the text is shown as it comes, tags included: a program reads it.
    pub(super) fn is_raw(&self) -> bool {
        !self.is_terminal && !self.hides_thinking
    }

    /// Shows a piece of the text as it comes.
    pub(super) fn raw(&mut self, text: &str) {
        self.write(text);
    }

    /// Shows a piece of a part.
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

    /// A remark beside the answer, for a person.
    pub(super) fn remark(&mut self, text: &str) {
        if self.is_terminal {
            self.dim(text);
        }
    }

    /// False once stdout does not take any more.
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

    /// What a model says may hold what a terminal obeys.
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

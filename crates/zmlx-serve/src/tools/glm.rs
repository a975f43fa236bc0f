//! Calls of GLM-4: the name, then keys and values in tags.

use super::calls::Status;
use super::values::Arguments;
use super::{Piece, Tool};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const KEY: &str = "<arg_key>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";

/// The parser of one call.
#[derive(Debug, Default)]
pub(super) struct Glm {
    /// The position up to which the text has been parsed.
    at: usize,
    call: Option<(String, Arguments)>,
    key: Option<String>,
}

impl Glm {
    pub(super) fn has_begun(&self) -> bool {
        self.call.is_some()
    }

    pub(super) fn read(&mut self, raw: &str, tools: &[Tool], pieces: &mut Vec<Piece>) -> Status {
        let Some((name, arguments)) = &mut self.call else {
            return self.read_name(raw, tools, pieces);
        };
        loop {
            let rest = raw[self.at..].trim_start();
            let start = raw.len() - rest.len();
            if let Some(key) = self.key.take() {
                if let Some(value) = rest.strip_prefix(VALUE) {
                    let Some(len) = value.find(VALUE_END) else {
                        self.key = Some(key);
                        return Status::More;
                    };
                    arguments.push(tools, name, (&key, &value[..len]), pieces);
                    self.at = start + VALUE.len() + len + VALUE_END.len();
                    continue;
                }
                if !VALUE.starts_with(rest) {
                    return Status::Broken(start);
                }
                self.key = Some(key);
                return Status::More;
            }
            if let Some(key) = rest.strip_prefix(KEY) {
                let Some(len) = key.find(KEY_END) else { return Status::More };
                self.key = Some(key[..len].trim().to_owned());
                self.at = start + KEY.len() + len + KEY_END.len();
            } else if rest.starts_with(CLOSE) {
                arguments.end(pieces);
                return Status::Done(start + CLOSE.len());
            } else if KEY.starts_with(rest) || CLOSE.starts_with(rest) {
                return Status::More;
            } else {
                return Status::Broken(start);
            }
        }
    }

    fn read_name(&mut self, raw: &str, tools: &[Tool], pieces: &mut Vec<Piece>) -> Status {
        let text = &raw[OPEN.len()..];
        let Some(end) = text.find('<') else {
            // No name is that long or begins with a brace.
            return if text.len() > 1024 || text.trim_start().starts_with('{') {
                Status::Broken(OPEN.len())
            } else {
                Status::More
            };
        };
        let (name, tag) = (text[..end].trim(), &text[end..]);
        let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '{' || c == '"');
        if !is_name {
            return Status::Broken(OPEN.len());
        }
        if !tag.starts_with(KEY) && !tag.starts_with(CLOSE) {
            let is_open = KEY.starts_with(tag) || CLOSE.starts_with(tag);
            return if is_open { Status::More } else { Status::Broken(OPEN.len()) };
        }
        pieces.push(Piece::CallStart { name: name.to_owned() });
        self.call = Some((name.to_owned(), Arguments::default()));
        self.at = OPEN.len() + end;
        self.read(raw, tools, pieces)
    }
}

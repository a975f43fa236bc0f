//! Calls of Qwen3-Coder: a function with parameters in tags.

use super::calls::Status;
use super::values::Arguments;
use super::{Piece, Tool};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// The parser of one call.
#[derive(Debug, Default)]
pub(super) struct Coder {
    /// The position up to which the text has been parsed.
    at: usize,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Before the function's name.
    #[default]
    Start,
    /// Between parameters.
    Between(String, Arguments),
    /// Inside the value of a parameter.
    Value(String, Arguments, String),
    /// After the function. A closing tag may follow.
    Ended,
}

impl Coder {
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.state, State::Start)
    }

    pub(super) fn read(
        &mut self,
        raw: &str,
        is_end: bool,
        tools: &[Tool],
        pieces: &mut Vec<Piece>,
    ) -> Status {
        loop {
            let status = match std::mem::take(&mut self.state) {
                State::Start => self.read_name(raw, tools, pieces),
                State::Between(name, arguments) => self.read_tag(raw, (name, arguments), pieces),
                State::Value(name, arguments, key) => {
                    self.read_value(raw, (name, arguments, key), tools, pieces)
                }
                State::Ended => {
                    self.state = State::Ended;
                    Some(self.read_close(raw, is_end))
                }
            };
            if let Some(status) = status {
                return status;
            }
        }
    }

    /// Parses up to the `>` after the name. Returns a status if there is nothing more to parse.
    fn read_name(&mut self, raw: &str, tools: &[Tool], pieces: &mut Vec<Piece>) -> Option<Status> {
        let (tag_len, body) = match raw.strip_prefix(OPEN) {
            Some(rest) => (OPEN.len(), rest.trim_start()),
            None => (0, raw),
        };
        let broken = Status::Broken(if tag_len > 0 { tag_len } else { FUNCTION.len() });
        let Some(named) = body.strip_prefix(FUNCTION) else {
            return Some(if FUNCTION.starts_with(body) { Status::More } else { broken });
        };
        let Some(end) = named.find(['>', '<', '\n']) else {
            return Some(if named.len() > 1024 { broken } else { Status::More });
        };
        let name = named[..end].trim().trim_matches(['"', '\'']);
        let is_known = tools.iter().any(|tool| tool.name == name);
        let is_name = named[end..].starts_with('>') && !name.is_empty() && (tag_len > 0 || is_known);
        if !is_name {
            return Some(broken);
        }
        pieces.push(Piece::CallStart { name: name.to_owned() });
        self.at = raw.len() - named.len() + end + 1;
        self.state = State::Between(name.to_owned(), Arguments::default());
        None
    }

    fn read_tag(
        &mut self,
        raw: &str,
        (name, mut arguments): (String, Arguments),
        pieces: &mut Vec<Piece>,
    ) -> Option<Status> {
        let rest = raw[self.at..].trim_start();
        let start = raw.len() - rest.len();
        if rest.starts_with(FUNCTION_END) {
            arguments.end(pieces);
            self.at = start + FUNCTION_END.len();
            self.state = State::Ended;
            return None;
        }
        let status = match rest.strip_prefix(PARAMETER) {
            Some(named) => match named.find(['>', '<', '\n']) {
                Some(end) if named[end..].starts_with('>') => {
                    let key = named[..end].trim().trim_matches(['"', '\'']).to_owned();
                    self.at = raw.len() - named.len() + end + 1;
                    self.state = State::Value(name, arguments, key);
                    return None;
                }
                Some(_) => Status::Broken(start),
                None => Status::More,
            },
            None if PARAMETER.starts_with(rest) || FUNCTION_END.starts_with(rest) => Status::More,
            None => Status::Broken(start),
        };
        self.state = State::Between(name, arguments);
        Some(status)
    }

    /// Parses a value up to its closing tag or, if that is missing, up to the next parameter or the function's end.
    fn read_value(
        &mut self,
        raw: &str,
        (name, mut arguments, key): (String, Arguments, String),
        tools: &[Tool],
        pieces: &mut Vec<Piece>,
    ) -> Option<Status> {
        let value = &raw[self.at..];
        let ends = [PARAMETER_END, PARAMETER, FUNCTION_END];
        let found = ends.iter().filter_map(|tag| Some((value.find(tag)?, *tag))).min();
        let Some((len, tag)) = found else {
            self.state = State::Value(name, arguments, key);
            return Some(Status::More);
        };
        let text = &value[..len];
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        arguments.push(tools, &name, (&key, text), pieces);
        self.at += len + if tag == PARAMETER_END { tag.len() } else { 0 };
        self.state = State::Between(name, arguments);
        None
    }

    fn read_close(&self, raw: &str, is_end: bool) -> Status {
        let rest = raw[self.at..].trim_start();
        if rest.starts_with(CLOSE) {
            Status::Done(raw.len() - rest.len() + CLOSE.len())
        } else if CLOSE.starts_with(rest) && !is_end {
            Status::More
        } else {
            Status::Done(self.at)
        }
    }
}

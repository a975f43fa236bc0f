//! Calls of Qwen3: a JSON object with `name` and `arguments`.

use serde_json::Value;

use super::Piece;
use super::calls::Status;
use super::translate::Translator;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The parser of one call.
#[derive(Debug, Default)]
pub(super) struct Json {
    /// The position up to which the text has been translated; 0 before its start.
    at: usize,
    translator: Translator,
    /// The object so far, as JSON.
    json: String,
    /// The position in `json` from which arguments are still to be passed on, once the name has been.
    given: Option<usize>,
    /// The position in `json` at which the arguments end.
    arguments_end: Option<usize>,
    is_whole: bool,
}

impl Json {
    pub(super) fn has_begun(&self) -> bool {
        self.given.is_some()
    }

    pub(super) fn read(&mut self, raw: &str, is_end: bool, pieces: &mut Vec<Piece>) -> Status {
        if self.at == 0 {
            let body = raw[OPEN.len()..].trim_start();
            match body.chars().next() {
                None => return Status::More,
                Some('{') => self.at = raw.len() - body.len(),
                Some(_) => return Status::Broken(OPEN.len()),
            }
        }
        while !self.is_whole {
            let Some(c) = raw[self.at..].chars().next() else { break };
            self.at += c.len_utf8();
            self.translator.push(c, &mut self.json);
            let is_outside = self.translator.is_outside();
            if self.given.is_none() && is_outside && self.translator.depth() == 2 {
                self.begin(pieces);
            }
            if self.given.is_some() && is_outside && self.translator.depth() == 1 {
                self.arguments_end.get_or_insert(self.json.len());
            }
            self.is_whole = is_outside && self.translator.depth() == 0;
        }
        if self.is_whole {
            return self.end(raw, is_end, pieces);
        }
        self.give(pieces);
        Status::More
    }

    /// Passes on the name if the object begins in the usual way: the name, then the arguments, which have just begun.
    fn begin(&mut self, pieces: &mut Vec<Piece>) {
        let Some(name) = usual_name(&self.json) else { return };
        pieces.push(Piece::CallStart { name });
        self.given = Some(self.json.len() - 1);
    }

    fn give(&mut self, pieces: &mut Vec<Piece>) {
        let Some(from) = self.given else { return };
        let to = self.arguments_end.unwrap_or(self.json.len());
        if from < to {
            pieces.push(Piece::CallArguments(self.json[from..to].to_owned()));
            self.given = Some(to);
        }
    }

    fn end(&mut self, raw: &str, is_end: bool, pieces: &mut Vec<Piece>) -> Status {
        let rest = raw[self.at..].trim_start();
        let len = if rest.starts_with(CLOSE) {
            raw.len() - rest.len() + CLOSE.len()
        } else if CLOSE.starts_with(rest) && !is_end {
            self.give(pieces);
            return Status::More;
        } else {
            self.at
        };
        let Ok(call) = serde_json::from_str::<Value>(&self.json) else { return Status::Broken(self.at) };
        if self.has_begun() {
            self.give(pieces);
            pieces.push(Piece::CallEnd);
            return Status::Done(len);
        }
        match name_and_arguments(&call) {
            Some((name, arguments)) => {
                pieces.push(Piece::CallStart { name });
                pieces.push(Piece::CallArguments(arguments));
                pieces.push(Piece::CallEnd);
                Status::Done(len)
            }
            None => Status::Broken(self.at),
        }
    }
}

/// The name in `{"name": "…", "arguments": {`.
fn usual_name(json: &str) -> Option<String> {
    let rest = json.strip_prefix('{')?.trim_start().strip_prefix("\"name\"")?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let mut texts = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let Some(Ok(Value::String(name))) = texts.next() else { return None };
    let rest = rest[texts.byte_offset()..].trim_start().strip_prefix(',')?.trim_start();
    let rest = ["\"arguments\"", "\"parameters\""].iter().find_map(|key| rest.strip_prefix(key))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    (rest == "{" && !name.is_empty()).then_some(name)
}

/// The name and the arguments of an object that is an unusual but valid call.
fn name_and_arguments(call: &Value) -> Option<(String, String)> {
    let call = call.get("function").filter(|f| f.is_object()).unwrap_or(call);
    let name = call.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    let arguments = match call.get("arguments").or_else(|| call.get("parameters")) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::String(text)) if text.trim().is_empty() => "{}".to_owned(),
        Some(Value::String(text)) => {
            serde_json::from_str::<Value>(text).ok().filter(Value::is_object).map(|_| text.clone())?
        }
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((name, arguments))
}

//! The events of a response.

use serde_json::{Value, json};

use super::items::{Progress, message, reasoning, text_part};
use super::tools::{Ids, Routes};
use super::{Head, Outcome};
use crate::error::{ApiError, TOO_LONG};
use crate::generation::{Generation, Summary, TokenInfo, Usage};
use crate::http::sse::{Events, Writer};
use crate::state::new_id;
use crate::tools::Piece;

/// The item that is open.
#[derive(Debug)]
enum Open {
    Reasoning { id: String, text: String },
    Message { id: String, text: String },
    Call { ids: Ids, name: String, arguments: String },
}

/// Writes the events of a response.
pub(super) struct ResponseWriter {
    head: Head,
    routes: Routes,
    sequence: u64,
    open: Option<Open>,
    /// The complete items.
    output: Vec<Value>,
    /// White space that is held back until a message follows it.
    blank: String,
}

impl ResponseWriter {
    pub(super) fn new(head: Head, routes: Routes) -> Self {
        Self { head, routes, sequence: 0, open: None, output: Vec::new(), blank: String::new() }
    }

    fn event(&mut self, name: &str, mut rest: Value, out: &mut Events) {
        let mut event = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(event), Value::Object(rest)) = (&mut event, &mut rest) {
            event.append(rest);
        }
        out.event(name, &event);
    }

    fn response(&mut self, name: &str, outcome: &Outcome, usage: Option<Usage>, out: &mut Events) {
        let response = self.head.response(outcome, self.output.clone(), usage);
        self.event(name, json!({"response": response}), out);
    }

    /// The index of the open item, or of the next one.
    fn index(&self) -> usize {
        self.output.len()
    }

    fn start(&mut self, open: Open, out: &mut Events) {
        self.close(out);
        let index = self.index();
        let item = match &open {
            Open::Reasoning { id, .. } => reasoning(id, ""),
            Open::Message { id, .. } => message(id, "", Progress::InProgress),
            Open::Call { ids, name, .. } => self.routes.item(ids, name, "", Progress::InProgress),
        };
        self.event("response.output_item.added", json!({"output_index": index, "item": item}), out);
        if let Open::Message { id, .. } = &open {
            let part =
                json!({"item_id": id, "output_index": index, "content_index": 0, "part": text_part("")});
            self.event("response.content_part.added", part, out);
        }
        self.open = Some(open);
    }

    /// Ends the open item.
    fn close(&mut self, out: &mut Events) {
        let index = self.index();
        let item = match self.open.take() {
            None => return,
            Some(Open::Reasoning { id, text }) => {
                let done = json!({"item_id": id, "output_index": index, "content_index": 0, "text": text});
                self.event("response.reasoning_text.done", done, out);
                reasoning(&id, &text)
            }
            Some(Open::Message { id, text }) => {
                let done = json!({
                    "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": []
                });
                self.event("response.output_text.done", done, out);
                let part = json!({
                    "item_id": id, "output_index": index, "content_index": 0, "part": text_part(&text)
                });
                self.event("response.content_part.done", part, out);
                message(&id, &text, Progress::Completed)
            }
            Some(Open::Call { ids, name, arguments }) => {
                let item = self.routes.item(&ids, &name, &arguments, Progress::Completed);
                if self.routes.is_custom(&name) {
                    let input = Routes::input(&arguments);
                    let delta = json!({"item_id": ids.item, "output_index": index, "delta": input});
                    self.event("response.custom_tool_call_input.delta", delta, out);
                    let done = json!({"item_id": ids.item, "output_index": index, "input": input});
                    self.event("response.custom_tool_call_input.done", done, out);
                } else {
                    let done = json!({
                        "item_id": ids.item, "output_index": index, "name": item["name"], "arguments": arguments
                    });
                    self.event("response.function_call_arguments.done", done, out);
                }
                item
            }
        };
        self.event("response.output_item.done", json!({"output_index": index, "item": item}), out);
        self.output.push(item);
    }

    fn think(&mut self, piece: &str, out: &mut Events) {
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            self.start(Open::Reasoning { id: new_id("rs_"), text: String::new() }, out);
        }
        let index = self.index();
        if let Some(Open::Reasoning { id, text }) = &mut self.open {
            text.push_str(piece);
            let delta = json!({"item_id": id, "output_index": index, "content_index": 0, "delta": piece});
            self.event("response.reasoning_text.delta", delta, out);
        }
    }

    fn say(&mut self, piece: &str, out: &mut Events) {
        let mut piece = piece.to_owned();
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.blank.push_str(&piece);
            if self.blank.trim().is_empty() {
                return;
            }
            piece = std::mem::take(&mut self.blank);
            self.start(Open::Message { id: new_id("msg_"), text: String::new() }, out);
        }
        let index = self.index();
        if let Some(Open::Message { id, text }) = &mut self.open {
            text.push_str(&piece);
            let delta = json!({
                "item_id": id, "output_index": index, "content_index": 0, "delta": piece, "logprobs": []
            });
            self.event("response.output_text.delta", delta, out);
        }
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Events) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.think(&text, out),
                Piece::Content(text) => self.say(&text, out),
                Piece::CallStart { name } => {
                    self.blank.clear();
                    let ids = self.routes.ids(&name);
                    self.start(Open::Call { ids, name, arguments: String::new() }, out);
                }
                Piece::CallArguments(more) => {
                    let index = self.index();
                    let Some(Open::Call { ids, name, arguments }) = &mut self.open else { continue };
                    arguments.push_str(&more);
                    if !self.routes.is_custom(name) {
                        let delta = json!({"item_id": ids.item, "output_index": index, "delta": more});
                        self.event("response.function_call_arguments.delta", delta, out);
                    }
                }
                Piece::CallEnd => self.close(out),
                // An item that is never completed is left out.
                Piece::CallCut => self.open = None,
                Piece::CallBroken(text) => {
                    self.open = None;
                    self.say(&text, out);
                }
            }
        }
    }
}

impl Writer for ResponseWriter {
    fn begin(&mut self, _: &Generation, out: &mut Events) {
        self.response("response.created", &Outcome::InProgress, None, out);
        self.response("response.in_progress", &Outcome::InProgress, None, out);
    }

    fn step(&mut self, pieces: Vec<Piece>, _: Option<TokenInfo>, out: &mut Events) {
        self.pieces(pieces, out);
    }

    fn end(&mut self, pieces: Vec<Piece>, summary: &Summary, out: &mut Events) {
        self.pieces(pieces, out);
        if self.output.is_empty() && self.open.is_none() {
            self.start(Open::Message { id: new_id("msg_"), text: String::new() }, out);
        }
        self.close(out);
        let outcome = Outcome::of(summary);
        let name = format!("response.{}", outcome.status());
        self.response(&name, &outcome, Some(summary.usage), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.open = None;
        if self.sequence == 0 {
            self.response("response.created", &Outcome::InProgress, None, out);
        }
        let code = error.code.filter(|code| *code == TOO_LONG).unwrap_or("server_error");
        let outcome = Outcome::Failed(json!({"code": code, "message": error.message}));
        self.response("response.failed", &outcome, None, out);
    }

    fn ping(&mut self, out: &mut Events) {
        out.raw(": ping\n\n");
    }
}

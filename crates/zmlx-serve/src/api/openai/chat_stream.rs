//! The events of a chat's answer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Head, finish_reason, logprobs};
use crate::error::ApiError;
use crate::generation::{Generation, Summary, TokenInfo};
use crate::http::sse::{Events, Writer};
use crate::model::Loaded;
use crate::state::new_call_id;
use crate::tools::Piece;

/// The object type of chunks.
const OBJECT: &str = "chat.completion.chunk";

/// Writes chunks.
pub(super) struct ChatWriter {
    head: Head,
    loaded: Arc<Loaded>,
    /// Log-probabilities of tokens that are not in a chunk yet.
    logprobs: Vec<Value>,
    /// Number of calls that have begun.
    n_calls: usize,
}

impl ChatWriter {
    pub(super) fn new(head: Head, loaded: Arc<Loaded>) -> Self {
        Self { head, loaded, logprobs: Vec::new(), n_calls: 0 }
    }

    fn delta(&mut self, delta: Value, finish: Option<&str>) -> Value {
        let logprobs = std::mem::take(&mut self.logprobs);
        let logprobs =
            if logprobs.is_empty() { Value::Null } else { json!({"content": logprobs, "refusal": null}) };
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.head.object(OBJECT, json!([choice]))
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Events) {
        for piece in pieces {
            let delta = match piece {
                Piece::Reasoning(text) => json!({"reasoning_content": text, "reasoning": text}),
                Piece::Content(text) | Piece::CallBroken(text) => json!({"content": text}),
                Piece::CallStart { name } => {
                    self.n_calls += 1;
                    json!({"tool_calls": [{
                        "index": self.n_calls - 1,
                        "id": new_call_id("call_"),
                        "type": "function",
                        "function": {"name": name, "arguments": ""}
                    }]})
                }
                Piece::CallArguments(text) => {
                    let index = self.n_calls.saturating_sub(1);
                    json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
                }
                Piece::CallEnd | Piece::CallCut => continue,
            };
            let chunk = self.delta(delta, None);
            out.data(&chunk);
        }
    }
}

impl Writer for ChatWriter {
    fn begin(&mut self, _: &Generation, out: &mut Events) {
        let chunk = self.delta(json!({"role": "assistant", "content": ""}), None);
        out.data(&chunk);
    }

    fn step(&mut self, pieces: Vec<Piece>, logprob: Option<TokenInfo>, out: &mut Events) {
        let tokenizer = &self.loaded.model.tokenizer;
        self.logprobs.extend(logprob.map(|info| logprobs::chat_entry(tokenizer, &info)));
        self.pieces(pieces, out);
    }

    fn end(&mut self, pieces: Vec<Piece>, summary: &Summary, out: &mut Events) {
        self.pieces(pieces, out);
        let last = self.delta(json!({}), Some(finish_reason(&summary.finish)));
        self.head.end(OBJECT, last, summary, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.openai());
    }

    fn ping(&mut self, out: &mut Events) {
        out.raw(": ping\n\n");
    }
}

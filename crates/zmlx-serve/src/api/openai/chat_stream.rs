//! The events of a chat's answer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::chat::Head;
use super::{FINGERPRINT, finish_reason, logprobs, usage};
use crate::error::ApiError;
use crate::generation::{Generation, Summary, TokenInfo};
use crate::http::sse::{Events, Writer};
use crate::model::Loaded;
use crate::state::new_call_id;
use crate::tools::Piece;

/// Writes chunks.
pub(super) struct ChatWriter {
    head: Head,
    loaded: Arc<Loaded>,
    includes_usage: bool,
    /// Those of tokens that have no chunk yet.
    logprobs: Vec<Value>,
    /// Calls that have begun.
    n_calls: usize,
}

impl ChatWriter {
    pub(super) fn new(head: Head, loaded: Arc<Loaded>, includes_usage: bool) -> Self {
        Self { head, loaded, includes_usage, logprobs: Vec::new(), n_calls: 0 }
    }

    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices
        })
    }

    fn delta(&mut self, delta: Value, finish: Option<&str>) -> Value {
        let logprobs = std::mem::take(&mut self.logprobs);
        let logprobs =
            if logprobs.is_empty() { Value::Null } else { json!({"content": logprobs, "refusal": null}) };
        self.chunk(json!([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]))
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
        let mut last = self.delta(json!({}), Some(finish_reason(&summary.finish)));
        last["timings"] = summary.timings.clone();
        out.data(&last);
        if self.includes_usage {
            let mut chunk = self.chunk(json!([]));
            chunk["usage"] = usage(summary.usage);
            chunk["timings"] = summary.timings.clone();
            out.data(&chunk);
        }
        out.raw("data: [DONE]\n\n");
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.openai());
    }

    fn ping(&mut self, out: &mut Events) {
        out.raw(": ping\n\n");
    }
}

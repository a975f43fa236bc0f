//! The events of an answer.

use serde_json::{Value, json};

use super::{SIGNATURE, stop, usage};
use crate::error::ApiError;
use crate::generation::{Generation, Summary, TokenInfo};
use crate::http::sse::{Events, Writer};
use crate::state::new_call_id;
use crate::tools::Piece;

/// The block that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    ToolUse,
}

/// Writes the events of an answer.
pub(super) struct MessageWriter {
    id: String,
    model: String,
    open: Option<Block>,
    n_blocks: usize,
    /// White space that is held back until text follows it.
    blank: String,
}

impl MessageWriter {
    pub(super) fn new(id: String, model: String) -> Self {
        Self { id, model, open: None, n_blocks: 0, blank: String::new() }
    }

    fn index(&self) -> usize {
        self.n_blocks.saturating_sub(1)
    }

    fn start(&mut self, block: Block, content: &Value, out: &mut Events) {
        self.stop_block(out);
        self.open = Some(block);
        self.n_blocks += 1;
        let event = json!({"type": "content_block_start", "index": self.index(), "content_block": content});
        out.event("content_block_start", &event);
    }

    fn delta(&self, delta: &Value, out: &mut Events) {
        let event = json!({"type": "content_block_delta", "index": self.index(), "delta": delta});
        out.event("content_block_delta", &event);
    }

    fn stop_block(&mut self, out: &mut Events) {
        let Some(block) = self.open.take() else { return };
        if block == Block::Thinking {
            self.delta(&json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        out.event("content_block_stop", &json!({"type": "content_block_stop", "index": self.index()}));
    }

    fn text(&mut self, text: &str, out: &mut Events) {
        if self.open != Some(Block::Text) {
            self.blank.push_str(text);
            if self.blank.trim().is_empty() {
                return;
            }
            self.start(Block::Text, &json!({"type": "text", "text": ""}), out);
            let text = std::mem::take(&mut self.blank);
            self.delta(&json!({"type": "text_delta", "text": text}), out);
            return;
        }
        self.delta(&json!({"type": "text_delta", "text": text}), out);
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Events) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => {
                    if self.open != Some(Block::Thinking) {
                        let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                        self.start(Block::Thinking, &block, out);
                    }
                    self.delta(&json!({"type": "thinking_delta", "thinking": text}), out);
                }
                Piece::Content(text) => self.text(&text, out),
                Piece::CallStart { name } => {
                    self.blank.clear();
                    let id = new_call_id("toolu_");
                    let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                    self.start(Block::ToolUse, &block, out);
                }
                Piece::CallArguments(text) => {
                    self.delta(&json!({"type": "input_json_delta", "partial_json": text}), out);
                }
                Piece::CallEnd | Piece::CallCut => self.stop_block(out),
                Piece::CallBroken(text) => {
                    self.stop_block(out);
                    self.text(&text, out);
                }
            }
        }
    }
}

impl Writer for MessageWriter {
    fn begin(&mut self, generation: &Generation, out: &mut Events) {
        let event = json!({
            "type": "message_start",
            "message": {
                "id": self.id,
                "type": "message",
                "role": "assistant",
                "model": self.model,
                "content": [],
                "stop_reason": null,
                "stop_sequence": null,
                "usage": usage(generation.usage())
            }
        });
        out.event("message_start", &event);
    }

    fn step(&mut self, pieces: Vec<Piece>, _: Option<TokenInfo>, out: &mut Events) {
        self.pieces(pieces, out);
    }

    fn end(&mut self, pieces: Vec<Piece>, summary: &Summary, out: &mut Events) {
        self.pieces(pieces, out);
        if self.n_blocks == 0 {
            self.start(Block::Text, &json!({"type": "text", "text": ""}), out);
            let blank = std::mem::take(&mut self.blank);
            if !blank.is_empty() {
                self.delta(&json!({"type": "text_delta", "text": blank}), out);
            }
        }
        self.stop_block(out);
        let (stop_reason, stop_sequence) = stop(&summary.finish);
        let event = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": usage(summary.usage)
        });
        out.event("message_delta", &event);
        out.event("message_stop", &json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        let mut event = error.anthropic("");
        if let Value::Object(event) = &mut event {
            event.remove("request_id");
        }
        out.event("error", &event);
    }

    fn ping(&mut self, out: &mut Events) {
        out.event("ping", &json!({"type": "ping"}));
    }
}

//! The items of an answer.

use serde_json::{Value, json};

/// Whether an item is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    InProgress,
    Completed,
}

impl Progress {
    pub(super) fn status(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
        }
    }
}

/// A part of a message.
pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// A message. It has no content while it is in progress.
pub(super) fn message(id: &str, text: &str, progress: Progress) -> Value {
    let content = match progress {
        Progress::InProgress => json!([]),
        Progress::Completed => json!([text_part(text)]),
    };
    json!({"id": id, "type": "message", "status": progress.status(), "role": "assistant", "content": content})
}

/// An item of thinking.
pub(super) fn reasoning(id: &str, text: &str) -> Value {
    let content = if text.is_empty() { json!([]) } else { json!([{"type": "reasoning_text", "text": text}]) };
    json!({"id": id, "type": "reasoning", "summary": [], "content": content, "encrypted_content": null})
}

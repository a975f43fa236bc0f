//! OpenAI's chat and text completions.

pub(crate) mod chat;
mod chat_stream;
pub(crate) mod completions;
mod logprobs;
mod messages;
pub(crate) mod models;
mod settings;
mod tools;

use serde_json::{Value, json};

pub(crate) use messages::content_text;
use settings::stream_options;
pub(crate) use settings::{model_name, schema_of, settings, stop};
pub(crate) use tools::{check_choice, choice, effort, tool_of_function};

use crate::api::fields::Fields;
use crate::error::ApiError;
use crate::generation::{Finish, Summary, Usage};
use crate::http::sse::Events;
use crate::model::now;
use crate::state::new_id;

/// Identifies the version of the server.
pub(crate) const FINGERPRINT: &str = concat!("zmlx-", env!("CARGO_PKG_VERSION"));

/// The common fields of all objects of one answer.
#[derive(Clone, Debug)]
struct Head {
    id: String,
    created: u64,
    model: String,
    /// Whether a stream ends with the usage.
    includes_usage: bool,
}

impl Head {
    fn new(prefix: &str, model: String, fields: &Fields<'_>) -> Result<Self, ApiError> {
        Ok(Self { id: new_id(prefix), created: now(), model, includes_usage: stream_options(fields)? })
    }

    /// The object of an answer or a chunk.
    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices
        })
    }

    /// A complete answer.
    fn whole(&self, object: &str, choice: Value, summary: &Summary) -> Value {
        let mut answer = self.object(object, json!([choice]));
        answer["usage"] = usage(summary.usage);
        answer["timings"] = summary.timings.clone();
        answer
    }

    /// Ends a stream: the last chunk, then the usage if the request asks for it.
    fn end(&self, object: &str, mut last: Value, summary: &Summary, out: &mut Events) {
        last["timings"] = summary.timings.clone();
        out.data(&last);
        if self.includes_usage {
            let mut chunk = self.object(object, json!([]));
            chunk["usage"] = usage(summary.usage);
            chunk["timings"] = summary.timings.clone();
            out.data(&chunk);
        }
        out.raw("data: [DONE]\n\n");
    }
}

fn usage(usage: Usage) -> Value {
    let Usage { n_prompt, n_cached, n_generated, n_reasoning } = usage;
    json!({
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": n_cached},
        "completion_tokens_details": {"reasoning_tokens": n_reasoning}
    })
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) => "stop",
        Finish::ToolCalls => "tool_calls",
        Finish::Length | Finish::Context => "length",
    }
}

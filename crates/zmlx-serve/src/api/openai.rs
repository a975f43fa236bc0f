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
pub(crate) use settings::{model_name, schema_of, settings, stop, stream_options};
pub(crate) use tools::{check_choice, choice, effort, tool_of_function};

use crate::generation::{Finish, Usage};

/// Tells builds apart.
pub(crate) const FINGERPRINT: &str = concat!("zmlx-", env!("CARGO_PKG_VERSION"));

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

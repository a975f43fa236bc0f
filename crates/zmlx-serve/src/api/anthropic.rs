//! Anthropic's messages.

mod blocks;
mod read;
mod stream;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};

use super::openai::model_name;
use crate::api::fields::Fields;
use crate::error::ApiError;
use crate::generation::{Answer, Finish, Usage};
use crate::http::{body, json, sse};
use crate::model::Loaded;
use crate::options::ServerOptions;
use crate::prepare;
use crate::state::{State as Shared, new_call_id, new_id};
use read::Length;
use stream::MessageWriter;

/// The placeholder for the signature of thinking, which is never checked.
const SIGNATURE: &str = "em1seA==";

/// `POST /v1/messages`.
pub(crate) async fn handle(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    if fields.get("model").is_none() {
        return Err(fields.error("model", "expected a string, got nothing"));
    }
    let model = model_name(&fields, &loaded, &state.options)?;
    let is_stream = fields.bool("stream")?.unwrap_or(false);
    let call = read::read(&fields, &loaded, Length::Needed)?;
    drop(body);
    let id = new_id("msg_");
    let log = (id.clone(), "/v1/messages");
    let begun = state
        .begin(log, move |loaded: &Loaded, options: &ServerOptions| prepare::chat(loaded, options, call));
    let mut generation = begun.await?;
    if is_stream {
        return Ok(sse::response(generation, MessageWriter::new(id, model)));
    }
    let (answer, summary) = Answer::collect(&mut generation).await?;
    let (stop_reason, stop_sequence) = stop(&summary.finish);
    Ok(json(&json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content(&answer),
        "stop_reason": stop_reason,
        "stop_sequence": stop_sequence,
        "usage": usage(summary.usage)
    })))
}

/// `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    model_name(&fields, &loaded, &state.options)?;
    let call = read::read(&fields, &loaded, Length::Any)?;
    let n_tokens = state.blocking(move |loaded, options| prepare::count(loaded, options, &call)).await?;
    Ok(json(&json!({"input_tokens": n_tokens})))
}

fn content(answer: &Answer) -> Vec<Value> {
    let mut blocks = Vec::new();
    if !answer.reasoning.is_empty() {
        blocks.push(json!({"type": "thinking", "thinking": answer.reasoning, "signature": SIGNATURE}));
    }
    let is_text =
        if answer.calls.is_empty() && blocks.is_empty() { true } else { !answer.content.trim().is_empty() };
    if is_text {
        blocks.push(json!({"type": "text", "text": answer.content}));
    }
    for call in &answer.calls {
        let input: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
        blocks.push(
            json!({"type": "tool_use", "id": new_call_id("toolu_"), "name": call.name, "input": input}),
        );
    }
    blocks
}

/// The three counts add up to the length of the prompt.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.n_prompt - usage.n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.n_cached,
        "output_tokens": usage.n_generated
    })
}

fn stop(finish: &Finish) -> (&'static str, Option<&str>) {
    match finish {
        Finish::Stop => ("end_turn", None),
        Finish::StopString(text) => ("stop_sequence", Some(text)),
        Finish::ToolCalls => ("tool_use", None),
        Finish::Length => ("max_tokens", None),
        Finish::Context => ("model_context_window_exceeded", None),
    }
}

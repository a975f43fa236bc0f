//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Map, Value, json};

use super::chat_stream::ChatWriter;
use super::{Head, effort, finish_reason, logprobs, messages, model_name, settings, tools};
use crate::api::fields::Fields;
use crate::call::{ChatCall, Continues, most_calls};
use crate::error::ApiError;
use crate::generation::{Answer, AnswerCall, Summary};
use crate::http::{body, json, sse};
use crate::model::Loaded;
use crate::options::ServerOptions;
use crate::prepare;
use crate::state::{State as Shared, new_call_id};

/// Answers a conversation.
pub(crate) async fn handle(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    let model = model_name(&fields, &loaded, &state.options)?;
    let is_stream = fields.bool("stream")?.unwrap_or(false);
    let head = Head::new("chatcmpl-", model, &fields)?;
    let call = read(&fields, &loaded)?;
    drop(body);
    let log = (head.id.clone(), "/v1/chat/completions");
    let begun = state
        .begin(log, move |loaded: &Loaded, options: &ServerOptions| prepare::chat(loaded, options, call));
    let mut generation = begun.await?;
    if is_stream {
        return Ok(sse::response(generation, ChatWriter::new(head, loaded)));
    }
    let (answer, summary) = Answer::collect(&mut generation).await?;
    Ok(json(&whole(&head, &loaded, &answer, &summary)))
}

/// Reads a request.
pub(crate) fn read(fields: &Fields<'_>, loaded: &Loaded) -> Result<ChatCall, ApiError> {
    for (key, instead) in [
        ("chat_template", "the server has a template of its own: see --chat-template"),
        ("functions", "expected null: use tools"),
        ("function_call", "expected null: use tool_choice"),
    ] {
        if fields.get(key).is_some() {
            return Err(fields.error(key, instead));
        }
    }
    let mut settings = settings(fields, loaded)?;
    let wants_logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, 20)?.unwrap_or(0);
    if top > 0 && !wants_logprobs {
        return Err(fields.error("top_logprobs", "needs logprobs: true"));
    }
    settings.logprobs = wants_logprobs.then_some(top as usize);
    let messages = messages::messages(fields)?;
    let (list, tools_json) = tools::tools(fields)?;
    let choice = tools::choice(fields, &list)?;
    let most_calls = most_calls(&choice, fields.bool("parallel_tool_calls")?);
    let mut kwargs = Map::new();
    effort(fields.text("reasoning_effort")?, &mut kwargs);
    if let Some(own) = fields.map("chat_template_kwargs")? {
        kwargs.extend(own.clone());
    }
    let continues = match fields.bool("continue_final_message")? {
        Some(true) if messages.last().is_some_and(|last| last.role() == "assistant") => {
            Continues::LastMessage
        }
        Some(true) => {
            return Err(fields.error("continue_final_message", "the last message is not the assistant's"));
        }
        _ => Continues::NewMessage,
    };
    Ok(ChatCall {
        messages,
        tools: list,
        tools_json,
        choice,
        most_calls,
        kwargs,
        structure: super::settings::structure(fields)?,
        continues,
        settings,
        param: "messages",
    })
}

fn whole(head: &Head, loaded: &Loaded, answer: &Answer, summary: &Summary) -> Value {
    let has_only_calls = answer.content.is_empty() && !answer.calls.is_empty();
    let content = if has_only_calls { Value::Null } else { answer.content.as_str().into() };
    let mut message = json!({"role": "assistant", "content": content});
    if !answer.reasoning.is_empty() {
        message["reasoning_content"] = answer.reasoning.as_str().into();
        message["reasoning"] = answer.reasoning.as_str().into();
    }
    if !answer.calls.is_empty() {
        let call = |call: &AnswerCall| {
            json!({
                "id": new_call_id("call_"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}
            })
        };
        message["tool_calls"] = answer.calls.iter().map(call).collect();
    }
    let tokenizer = &loaded.model.tokenizer;
    let entries: Vec<Value> =
        answer.logprobs.iter().map(|info| logprobs::chat_entry(tokenizer, info)).collect();
    let logprobs =
        if entries.is_empty() { Value::Null } else { json!({"content": entries, "refusal": null}) };
    let choice = json!({
        "index": 0,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(&summary.finish)
    });
    head.whole("chat.completion", choice, summary)
}

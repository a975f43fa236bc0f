//! OpenAI's Responses, without stored state.

mod items;
mod read;
mod stream;
mod tools;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};

use super::openai::model_name;
use crate::api::fields::Fields;
use crate::error::{ApiError, TOO_LONG};
use crate::generation::{Answer, Finish, Summary, Usage};
use crate::http::{body, json, sse};
use crate::model::{Loaded, now};
use crate::options::ServerOptions;
use crate::prepare;
use crate::state::{State as Shared, new_id};
use stream::ResponseWriter;
use tools::Routes;

/// `POST /v1/responses`.
pub(crate) async fn handle(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    let model = model_name(&fields, &loaded, &state.options)?;
    let is_stream = fields.bool("stream")?.unwrap_or(false);
    let (call, routes) = read::read(&fields, &loaded)?;
    let head = Head::new(model, &body);
    drop(body);
    let log = (head.id.clone(), "/v1/responses");
    let begun = state
        .begin(log, move |loaded: &Loaded, options: &ServerOptions| prepare::chat(loaded, options, call));
    let mut generation = match begun.await {
        // Clients of the stream expect this error in the stream.
        Err(error) if is_stream && error.code == Some(TOO_LONG) => {
            return Ok(sse::failure(ResponseWriter::new(head, routes), &error));
        }
        begun => begun?,
    };
    if is_stream {
        return Ok(sse::response(generation, ResponseWriter::new(head, routes)));
    }
    let (answer, summary) = Answer::collect(&mut generation).await?;
    let output = output(&answer, &routes);
    Ok(json(&head.response(&Outcome::of(&summary), output, Some(summary.usage))))
}

/// The common fields of a response.
#[derive(Clone, Debug)]
struct Head {
    id: String,
    created: u64,
    model: String,
    /// The fields of the request that the response repeats.
    repeated: Value,
}

/// How a response ended, or that it has not ended.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    InProgress,
    Completed,
    Incomplete,
    Failed(Value),
}

impl Outcome {
    fn of(summary: &Summary) -> Self {
        match summary.finish {
            Finish::Stop | Finish::StopString(_) | Finish::ToolCalls => Self::Completed,
            Finish::Length => Self::Incomplete,
            Finish::Context => {
                let message = "the answer reached the end of the context";
                Self::Failed(json!({"code": TOO_LONG, "message": message}))
            }
        }
    }

    fn status(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed(_) => "failed",
        }
    }
}

impl Head {
    fn new(model: String, body: &Value) -> Self {
        let mut repeated = json!({
            "instructions": null,
            "max_output_tokens": null,
            "metadata": {},
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": null,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": null,
            "truncation": "disabled"
        });
        if let Value::Object(map) = &mut repeated {
            for (key, value) in map.iter_mut() {
                if let Some(said) = body.get(key).filter(|said| !said.is_null() && key != "store") {
                    *value = said.clone();
                }
            }
        }
        Self { id: new_id("resp_"), created: now(), model, repeated }
    }

    fn response(&self, outcome: &Outcome, output: Vec<Value>, usage: Option<Usage>) -> Value {
        let error = match outcome {
            Outcome::Failed(error) => error.clone(),
            _ => Value::Null,
        };
        let details = match outcome {
            Outcome::Incomplete => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": outcome.status(),
            "background": false,
            "error": error,
            "incomplete_details": details,
            "model": self.model,
            "output": output,
            "usage": usage.map(usage_of)
        });
        if let (Value::Object(map), Value::Object(repeated)) = (&mut response, &self.repeated) {
            map.extend(repeated.clone());
        }
        response
    }
}

fn usage_of(usage: Usage) -> Value {
    let Usage { n_prompt, n_cached, n_generated, n_reasoning } = usage;
    json!({
        "input_tokens": n_prompt,
        "input_tokens_details": {"cached_tokens": n_cached},
        "output_tokens": n_generated,
        "output_tokens_details": {"reasoning_tokens": n_reasoning},
        "total_tokens": n_prompt + n_generated
    })
}

/// The items of a complete answer.
fn output(answer: &Answer, routes: &Routes) -> Vec<Value> {
    let mut items = Vec::new();
    if !answer.reasoning.is_empty() {
        items.push(items::reasoning(&new_id("rs_"), &answer.reasoning));
    }
    if !answer.content.trim().is_empty() || (answer.calls.is_empty() && items.is_empty()) {
        items.push(items::message(&new_id("msg_"), &answer.content, items::Progress::Completed));
    }
    for call in &answer.calls {
        items.push(routes.item(
            &routes.ids(&call.name),
            &call.name,
            &call.arguments,
            items::Progress::Completed,
        ));
    }
    items
}

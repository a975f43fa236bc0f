//! The small paths: health, metrics, and llama-server's helpers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{body, json};
use crate::api::fields::Fields;
use crate::api::openai::chat;
use crate::error::ApiError;
use crate::options::ServerOptions;
use crate::prepare;
use crate::state::State as Shared;

/// `GET /health`.
pub(crate) async fn health(State(state): State<Arc<Shared>>) -> Response<Body> {
    let (status, text) = if state.engine.lost().is_some() {
        (StatusCode::SERVICE_UNAVAILABLE, "failed")
    } else if state.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if state.try_loaded().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading")
    } else {
        (StatusCode::OK, "ok")
    };
    let mut response = json(&json!({"status": text}));
    *response.status_mut() = status;
    response
}

/// `GET /api/hello`, with which a client checks that the server is running.
pub(crate) async fn hello() -> Response<Body> {
    json(&json!({"message": "zmlx"}))
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<Arc<Shared>>) -> Response<Body> {
    let mut response = Response::new(Body::from(state.metrics.text()));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `POST /tokenize`.
pub(crate) async fn tokenize(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    let Some(content) = fields.text("content")? else {
        return Err(fields.error("content", "expected a string, got nothing"));
    };
    fields.bool("add_special")?;
    let with_pieces = fields.bool("with_pieces")?.unwrap_or(false);
    let content = content.to_owned();
    let tokens = state.blocking(move |loaded, _| {
        let tokenizer = &loaded.model.tokenizer;
        let tokens = tokenizer.encode(&content).map_err(|error| ApiError::of_engine(&error, "content"))?;
        let piece = |token: &u32| {
            let bytes = tokenizer.token_bytes(*token).map(|(bytes, _)| bytes).unwrap_or_default();
            // A part of a character is not a string.
            let piece = match String::from_utf8(bytes) {
                Ok(text) => Value::String(text),
                Err(error) => error.into_bytes().into(),
            };
            json!({"id": token, "piece": piece})
        };
        Ok(if with_pieces { tokens.iter().map(piece).collect::<Vec<_>>().into() } else { json!(tokens) })
    });
    Ok(json(&json!({"tokens": tokens.await?})))
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    let Some(list) = fields.array("tokens")? else {
        return Err(fields.error("tokens", "expected a list of token ids, got nothing"));
    };
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| fields.wrong("tokens", "token ids", value))
    };
    let tokens = list.iter().map(id).collect::<Result<Vec<u32>, _>>()?;
    let content = state.blocking(move |loaded, _| {
        loaded.model.tokenizer.decode(&tokens).map_err(|error| ApiError::of_engine(&error, "tokens"))
    });
    Ok(json(&json!({"content": content.await?})))
}

/// `POST /apply-template`: renders the prompt of a conversation.
pub(crate) async fn apply_template(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let call = chat::read(&Fields::of_body(&body)?, &loaded)?;
    let prompt = state
        .blocking(move |loaded, options: &ServerOptions| Ok(prepare::render(loaded, options, &call)?.text))
        .await?;
    Ok(json(&json!({"prompt": prompt})))
}

/// `GET /props`.
pub(crate) async fn props(State(state): State<Arc<Shared>>) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let model = &loaded.model;
    let params = model.sampling.params();
    Ok(json(&json!({
        "total_slots": state.options.n_slots,
        "model_path": model.path.as_deref().unwrap_or(&model.id),
        "model_alias": model.id,
        "chat_template": model.template.as_ref().map_or("", |t| t.source(false)),
        "default_generation_settings": {
            "n_ctx": loaded.context,
            "params": {
                "temperature": params.temperature,
                "top_k": params.top_k.unwrap_or(0),
                "top_p": params.top_p.unwrap_or(1.0),
                "min_p": params.min_p.unwrap_or(0.0),
                "repeat_penalty": params.repetition_penalty.unwrap_or(1.0),
                "max_tokens": state.options.max_tokens
            }
        },
        "build_info": concat!("zmlx ", env!("CARGO_PKG_VERSION"))
    })))
}

/// `GET /slots`: the length of each sequence, but never its text.
pub(crate) async fn slots(State(state): State<Arc<Shared>>) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let status = state.engine.status();
    let slot = |id: usize| {
        let n_tokens = status.n_tokens.get(id).copied();
        json!({
            "id": id,
            "is_processing": n_tokens.is_some(),
            "n_ctx": loaded.context,
            "n_tokens": n_tokens.unwrap_or(0)
        })
    };
    let n_slots = state.options.n_slots.max(status.n_tokens.len());
    Ok(json(&(0..n_slots).map(slot).collect()))
}

//! The list of models, which has one entry.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::http::json;
use crate::model::Loaded;
use crate::state::State as Shared;

fn entry(loaded: &Loaded, id: &str) -> Value {
    json!({
        "id": id,
        "object": "model",
        "created": loaded.created,
        "owned_by": "zmlx",
        // These fields are for Anthropic's clients.
        "type": "model",
        "display_name": id,
        "created_at": "1970-01-01T00:00:00Z",
        "context_length": loaded.context,
        "max_model_len": loaded.context
    })
}

/// `GET /v1/models`.
pub(crate) async fn list(State(state): State<Arc<Shared>>) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let names = std::iter::once(loaded.model.id.as_str());
    let names = names.chain(state.options.names().into_iter().filter(|name| *name != loaded.model.id));
    let data: Vec<Value> = names.map(|name| entry(&loaded, name)).collect();
    Ok(json(&json!({"object": "list", "data": data, "has_more": false})))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn one(
    State(state): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    if loaded.is_named(&id, &state.options) {
        return Ok(json(&entry(&loaded, &id)));
    }
    Err(ApiError {
        param: Some("model".into()),
        code: Some("model_not_found"),
        ..ApiError::new(StatusCode::NOT_FOUND, "there is no model with that name")
    })
}

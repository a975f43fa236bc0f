//! HTTP: paths, access, bodies, and errors in the form of each interface.

pub(crate) mod body;
mod decode;
mod guard;
pub(crate) mod helpers;
pub(crate) mod listen;
pub(crate) mod page;
pub(crate) mod sse;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::Value;

use crate::api::{anthropic, openai, responses};
use crate::error::ApiError;
use crate::options::Feature;
use crate::state::{State, new_id};

/// The names of the paths in metrics.
const PATHS: [&str; 17] = [
    "/chat/completions",
    "/completions",
    "/messages",
    "/messages/count_tokens",
    "/responses",
    "/models",
    "/models/{*id}",
    "/health",
    "/metrics",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/props",
    "/slots",
    "/api/hello",
    "/",
    "other",
];

/// The router with all paths.
pub(crate) fn router(state: Arc<State>) -> Router {
    let mut router = Router::new();
    for prefix in ["", "/v1"] {
        let path = |path: &str| format!("{prefix}{path}");
        router = router
            .route(&path("/chat/completions"), post(openai::chat::handle))
            .route(&path("/completions"), post(openai::completions::handle))
            .route(&path("/messages"), post(anthropic::handle))
            .route(&path("/messages/count_tokens"), post(anthropic::count_tokens))
            .route(&path("/responses"), post(responses::handle))
            .route(&path("/models"), get(openai::models::list))
            .route(&path("/models/{*id}"), get(openai::models::one))
            .route(&path("/health"), get(helpers::health))
            .route(&path("/tokenize"), post(helpers::tokenize))
            .route(&path("/detokenize"), post(helpers::detokenize))
            .route(&path("/apply-template"), post(helpers::apply_template))
            .route(&path("/props"), get(helpers::props))
            .route(&path("/slots"), get(helpers::slots));
        if state.options.metrics == Feature::On {
            router = router.route(&path("/metrics"), get(helpers::metrics));
        }
    }
    router = router.route("/api/hello", get(helpers::hello));
    router = match state.options.page {
        Feature::On => router.route("/", get(page::page)),
        Feature::Off => router.route("/", get(helpers::hello)),
    };
    router
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods: see the header Allow")
        })
        .layer(from_fn_with_state(Arc::clone(&state), around))
        .with_state(state)
}

/// Checks a request, and gives its answer the headers and the form that its clients expect.
async fn around(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let label = label(request.extensions().get::<MatchedPath>().map(MatchedPath::as_str));
    let path = request.uri().path();
    let is_anthropic = path.strip_prefix("/v1").unwrap_or(path).starts_with("/messages");
    let is_head = request.method() == Method::HEAD;
    let id = new_id("req_");
    let cors = guard::cors(&state.options, request.headers());
    let mut response = match guard::check(&state.options, label, &request) {
        Err(error) => error.into_response(),
        Ok(guard::Way::Preflight) => guard::preflight(request.headers()),
        Ok(guard::Way::In) => next.run(request).await,
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let body = if is_anthropic { error.anthropic(&id) } else { error.openai() };
        response.headers_mut().insert(header::CONTENT_TYPE, JSON);
        let body = if is_head { Body::empty() } else { Body::from(body.to_string()) };
        *response.body_mut() = body;
    }
    let headers = response.headers_mut();
    set_request_id(headers, &id);
    guard::add_cors(headers, cors);
    if state.is_stopping() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if response.status().is_client_error() || response.status().is_server_error() {
        tracing::info!("{id} {label} status {}", response.status().as_u16());
    }
    state.metrics.count(label, response.status().as_u16());
    response
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The name of the path in metrics.
fn label(path: Option<&str>) -> &'static str {
    let path = path.unwrap_or("other");
    let path = path.strip_prefix("/v1").filter(|rest| !rest.is_empty()).unwrap_or(path);
    PATHS.iter().find(|known| **known == path).copied().unwrap_or("other")
}

fn set_request_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(HeaderName::from_static("request-id"), value.clone());
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
}

/// An answer of JSON.
pub(crate) fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

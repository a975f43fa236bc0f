//! The server's answers when it cannot do what a client asks, and the errors that stop it.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::engine::Failure;

/// Why a server did not start, or why it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot listen on the address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The value of an option makes no sense.
    #[error("{option}: expected {want}, got {got}")]
    Option {
        /// The option.
        option: &'static str,
        /// The values that are allowed.
        want: &'static str,
        /// The value.
        got: String,
    },
    /// The system refused to start threads or to handle signals.
    #[error("the server's threads cannot be started: {source}")]
    Start {
        /// The system's error.
        source: std::io::Error,
    },
    /// The tokenizer's vocabulary cannot be used for structured output.
    #[error("the vocabulary cannot be used for structured output: {why}")]
    Vocabulary {
        /// The reason.
        why: String,
    },
}

/// An error for a client.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field that caused it.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// The number of seconds after which the client should try again.
    pub(crate) retry_after: Option<u64>,
}

/// Seconds after which a client may try again if the server must be restarted.
pub(crate) const RESTART_SECONDS: u64 = 60;

/// The code of prompts that are too long.
pub(crate) const TOO_LONG: &str = "context_length_exceeded";

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// An error in a field.
    pub(crate) fn field(param: impl Into<String>, message: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("{param}: {}", message.as_ref());
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed to answer; its log says why")
    }

    pub(crate) fn too_long(param: &str, n_tokens: usize, limit: usize) -> Self {
        let message = format!(
            "the prompt has {n_tokens} tokens, but the context is {limit} tokens, and at least one is needed for the answer"
        );
        Self {
            code: Some(TOO_LONG),
            param: Some(param.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>, retry_after: u64) -> Self {
        Self {
            code: Some("overloaded"),
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// The error for the client of a failed request. `retry_after` is included if another attempt may help.
    pub(crate) fn of_failure(failure: Failure, param: &str, retry_after: u64) -> Self {
        match failure {
            Failure::QueueFull { .. } | Failure::QueueTimeout { .. } | Failure::Stopping => {
                Self::unavailable(failure.to_string(), retry_after)
            }
            Failure::Lost { .. } => Self::unavailable(failure.to_string(), RESTART_SECONDS),
            Failure::Engine(error) => Self::of_engine(&error, param),
        }
    }

    /// The client's version of an error of the models' crate.
    pub(crate) fn of_engine(error: &zmlx_models::Error, param: &str) -> Self {
        use zmlx_models::Error as E;
        let bad = |code| Self {
            code,
            param: Some(param.to_owned()),
            ..Self::new(StatusCode::BAD_REQUEST, error.to_string())
        };
        match error.root() {
            E::ContextLength { n_tokens, limit } => Self::too_long(param, *n_tokens, *limit),
            E::CacheFull { .. } => bad(Some(TOO_LONG)),
            E::EmptyPrompt | E::TokenOutOfRange { .. } | E::ChatRefused { .. } | E::NoChatTemplate { .. } => {
                bad(None)
            }
            E::ChatTemplate { .. } => bad(None),
            E::Parameter { field, .. } => Self { param: Some((*field).to_owned()), ..bad(None) },
            other => {
                tracing::error!("{other}");
                Self::internal()
            }
        }
    }

    /// The error in the form for OpenAI's clients.
    pub(crate) fn openai(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 | 503 => "overloaded_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }

    /// The error in the form for Anthropic's clients.
    pub(crate) fn anthropic(&self, request_id: &str) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | 529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({
            "type": "error",
            "error": {"type": kind, "message": self.message},
            "request_id": request_id
        })
    }
}

impl IntoResponse for ApiError {
    /// Only the status. The body is written where the path is known, in the form for the path's clients.
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE || self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of the request's body is not read.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

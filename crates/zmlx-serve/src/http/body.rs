//! Bodies of requests. They are read as JSON, whatever their content type is.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;

use super::decode::{Coding, decode};
use crate::error::ApiError;
use crate::state::{BODY_UNIT, State};

/// If no data comes for this time, the request fails.
const SILENCE: Duration = Duration::from_secs(30);
/// Bodies up to this size are decoded and parsed on the thread that reads them.
const SMALL_BYTES: usize = 64 << 10;

/// Reads the body as JSON.
pub(crate) async fn read(state: &State, request: Request) -> Result<Value, ApiError> {
    let limit = state.options.max_body_bytes;
    let codings = codings(request.headers())?;
    let bytes = read_bytes(state, request, limit).await?;
    if bytes.len() <= SMALL_BYTES && codings.is_empty() {
        return parse(&bytes);
    }
    let _turn = state.parsers.acquire().await.map_err(|_| ApiError::internal())?;
    let decoded_and_parsed = tokio::task::spawn_blocking(move || {
        let mut bytes = bytes;
        for coding in codings.into_iter().rev() {
            bytes = decode(coding, &bytes, limit)?;
        }
        parse(&bytes)
    });
    decoded_and_parsed.await.unwrap_or_else(|error| {
        tracing::error!("{error}");
        Err(ApiError::internal())
    })
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not UTF-8: {error}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))
}

async fn read_bytes(state: &State, request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("the body has more than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let told =
        request.headers().get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    let mut memory = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body of the request did not come")
        })?;
        let Some(frame) = frame else { return Ok(bytes.into()) };
        let frame = frame.map_err(|_| ApiError::bad_request("the body of the request ended early"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
            while memory.len() < bytes.len() / BODY_UNIT {
                let full = |_| ApiError::unavailable("the server reads as many requests as it can", 1);
                memory.push(state.bodies.try_acquire().map_err(full)?);
            }
        }
    }
}

/// The encodings of the body, in the order in which they were applied.
fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, ApiError> {
    let mut codings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let names = value.to_str().unwrap_or("?").split(',').map(str::trim);
        for name in names.filter(|n| !n.is_empty() && !n.eq_ignore_ascii_case("identity")) {
            let unknown = || {
                let message = "Content-Encoding: expected gzip, deflate, br or zstd";
                ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
            };
            codings.push(Coding::of_name(name).ok_or_else(unknown)?);
        }
    }
    // No client uses more than two encodings.
    if codings.len() > 2 {
        let message = "Content-Encoding: expected one or two";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    Ok(codings)
}

//! Access control: names of the host, origins of pages, keys.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::options::ServerOptions;

/// What happens to an allowed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Its handler answers it.
    In,
    /// It only asks whether another request would be allowed.
    Preflight,
}

/// Checks a request before it is handled.
pub(super) fn check(options: &ServerOptions, path: &str, request: &Request) -> Result<Way, ApiError> {
    let headers = request.headers();
    let forbidden = |what: &str| ApiError::new(StatusCode::FORBIDDEN, what);
    if options.is_loopback() && !host(request).is_none_or(is_local) {
        // Without this check, a web page could make its own host name point to this server.
        return Err(forbidden("the header Host: expected localhost, 127.0.0.1 or [::1]"));
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !is_admitted(options, origin, host(request))
    {
        return Err(forbidden(
            "the header Origin: pages of this origin may not use the server (--allowed-origins)",
        ));
    }
    if request.method() == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return Ok(Way::Preflight);
    }
    let is_open = matches!(path, "/health" | "/") || options.api_keys.is_empty();
    if is_open || keys(headers).any(|key| is_known(&options.api_keys, key)) {
        return Ok(Way::In);
    }
    Err(ApiError {
        code: Some("invalid_api_key"),
        ..ApiError::new(
            StatusCode::UNAUTHORIZED,
            "a valid API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`",
        )
    })
}

/// The host that a request names, without its port.
fn host(request: &Request) -> Option<&str> {
    let host = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or("?"));
    // A request in the form for proxies also names the host in its target.
    host.or_else(|| request.uri().authority().map(|a| a.as_str()))
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(at) if host[at + 1..].bytes().all(|b| b.is_ascii_digit()) && !host[at..].contains(']') => {
            &host[..at]
        }
        _ => host,
    }
}

fn is_local(host: &str) -> bool {
    let host = without_port(host);
    host.eq_ignore_ascii_case("localhost") || matches!(host, "127.0.0.1" | "[::1]")
}

fn is_admitted(options: &ServerOptions, origin: &HeaderValue, host: Option<&str>) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    let listed = |listed: &String| listed == "*" || listed.trim_end_matches('/').eq_ignore_ascii_case(origin);
    if options.allowed_origins.iter().any(listed) {
        return true;
    }
    let Ok(uri) = origin.parse::<Uri>() else { return false };
    let Some(authority) = uri.authority().filter(|_| uri.scheme_str().is_some()) else { return false };
    // The origin is the server's own page, or a page on this machine.
    is_local(authority.as_str()) || (!options.is_loopback() && host == Some(authority.as_str()))
}

/// The keys in a request.
fn keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    });
    bearer.chain(headers.get_all("x-api-key").iter().map(|value| value.as_bytes().trim_ascii()))
}

/// Compares a key with every known key. The time does not depend on which bytes are right.
fn is_known(known: &[String], key: &[u8]) -> bool {
    known.iter().fold(false, |found, known| found | bool::from(known.as_bytes().ct_eq(key)))
}

/// The origin that is allowed to read the answer.
pub(super) fn cors(options: &ServerOptions, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    is_admitted(options, origin, host).then(|| origin.clone())
}

pub(super) fn add_cors(headers: &mut HeaderMap, origin: Option<HeaderValue>) {
    let Some(origin) = origin else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let exposed = HeaderValue::from_static("request-id, x-request-id, retry-after");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

/// The answer to a browser that asks what is allowed.
pub(super) fn preflight(asked: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    let any = HeaderValue::from_static("authorization, content-type, x-api-key");
    let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned().unwrap_or(any);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if asked.contains_key("access-control-request-private-network") {
        let name = HeaderName::from_static("access-control-allow-private-network");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine() {
        for name in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"] {
            assert!(is_local(name), "{name}");
        }
        for name in
            ["localhost.example", "127.0.0.1.example:80", "example", "::1", "[::2]", "", ":80", "10.0.0.1"]
        {
            assert!(!is_local(name), "{name}");
        }
    }

    #[test]
    fn origins() {
        let admitted = |options: &ServerOptions, origin: &'static str, host: &str| {
            is_admitted(options, &HeaderValue::from_static(origin), Some(host))
        };
        let options =
            ServerOptions { allowed_origins: vec!["https://a.example".into()], ..Default::default() };
        for origin in ["http://localhost:3000", "http://127.0.0.1", "https://a.example"] {
            assert!(admitted(&options, origin, "localhost"), "{origin}");
        }
        for origin in ["https://b.example", "null", "https://a.example.b", "http://localhost.b", "localhost"]
        {
            assert!(!admitted(&options, origin, "localhost"), "{origin}");
        }
        let open = ServerOptions { host: "0.0.0.0".into(), ..Default::default() };
        assert!(admitted(&open, "http://10.0.0.1:8080", "10.0.0.1:8080"));
        assert!(!admitted(&open, "http://10.0.0.2:8080", "10.0.0.1:8080"));
        let any = ServerOptions { allowed_origins: vec!["*".into()], ..Default::default() };
        assert!(admitted(&any, "https://b.example", "localhost"));
    }
}

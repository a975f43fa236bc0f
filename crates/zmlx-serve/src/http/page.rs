//! The page: a single file, which loads nothing from elsewhere.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};

use crate::state::new_id;

const PAGE: &str = include_str!("../page/page.html");
const STYLE: &str = include_str!("../page/style.css");
const SCRIPT: &str = include_str!("../page/script.js");

/// `GET /`.
pub(crate) async fn page() -> Response<Body> {
    // The browser runs only elements with this nonce, which is different each time.
    let nonce = new_id("");
    let text = PAGE
        .replace("{{style}}", &format!("<style nonce=\"{nonce}\">\n{STYLE}</style>"))
        .replace("{{script}}", &format!("<script nonce=\"{nonce}\">\n{SCRIPT}</script>"));
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

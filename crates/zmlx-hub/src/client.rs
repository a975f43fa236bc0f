//! The hub over HTTP. Redirects are followed here, so that the token goes only to the hub itself.

mod listing;

use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{HeaderMap, Response, StatusCode, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body};

use crate::digest::Digest;
use crate::{Environment, Error, ModelName, Result};
pub(crate) use listing::{Listing, RemoteFile};

/// All other characters are written as %XX.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A longer chain of redirects is treated as a loop.
const MAX_REDIRECTS: usize = 10;

/// The size of the longest list of files that is accepted.
const MAX_LISTING_BYTES: u64 = 64 << 20;

/// The TLS implementation: the system's on Apple's systems, rustls elsewhere.
const TLS: TlsProvider =
    if cfg!(target_vendor = "apple") { TlsProvider::NativeTls } else { TlsProvider::Rustls };

/// A client of a hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Uri,
    token: Option<String>,
}

/// The content of a file from an offset on.
pub(crate) struct Content {
    /// The offset at which it begins.
    pub(crate) start: u64,
    /// The size of the whole file, if the answer contains it.
    pub(crate) total: Option<u64>,
    pub(crate) reader: Box<dyn Read + Send>,
}

impl Client {
    pub(crate) fn new(environment: &Environment) -> Result<Self> {
        let want = "the address of a hub, as https://huggingface.co";
        let wrong = || Error::Variable { variable: "HF_ENDPOINT".to_owned(), want };
        let endpoint = environment.endpoint()?.parse::<Uri>().ok().filter(is_web).ok_or_else(wrong)?;
        let timeout = environment.timeout()?;
        let config = Agent::config_builder()
            .user_agent(concat!("zmlx/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            // The hashes are those of the content without compression.
            .accept_encoding("identity")
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .tls_config(TlsConfig::builder().provider(TLS).root_certs(authorities(environment)?).build())
            .build();
        Ok(Self { agent: config.into(), endpoint, token: environment.token()? })
    }

    /// The list of a model's files at a revision.
    pub(crate) fn listing(&self, name: &ModelName) -> Result<Listing> {
        let revision = utf8_percent_encode(name.revision_or_main(), PLAIN);
        let url = self.url(&format!("api/models/{}/revision/{revision}?blobs=true", name.id()));
        let what = name.to_string();
        let (response, host) = self.get(&url, None, &what)?;
        check_status(&response, &what, &host)?;
        let mut body = Vec::new();
        let mut reader = response.into_body().into_reader().take(MAX_LISTING_BYTES + 1);
        reader
            .read_to_end(&mut body)
            .map_err(|e| Error::Network { host: host.clone(), why: e.to_string() })?;
        Listing::parse(&body).map_err(|got| Error::Answer {
            what,
            host,
            want: "a list of files as JSON",
            got,
        })
    }

    /// The hash and the size of a file from the headers of the file itself, for hubs whose list does not contain them.
    pub(crate) fn describe(&self, url: &str, what: &str) -> Result<(Digest, u64)> {
        let (mut digest, mut size) = (None, None);
        let see = |headers: &HeaderMap| {
            // The first answer is the hub's. A store to which it redirects may have etags of its own.
            let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
            digest =
                digest.take().or_else(|| Digest::parse(etag?.trim_start_matches("W/").trim_matches('"')));
            size = size.or_else(|| text(headers, "x-linked-size")?.parse::<u64>().ok());
        };
        let (response, host) = self.follow(url, Some("bytes=0-0"), what, see)?;
        if response.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            check_status(&response, what, &host)?;
        }
        let size = size.or_else(|| total(&response));
        let wrong = |want, got: &str| Error::Answer {
            what: what.to_owned(),
            host: host.clone(),
            want,
            got: got.to_owned(),
        };
        let digest = digest.ok_or_else(|| wrong("an etag that is a hash of the file", "none"))?;
        Ok((digest, size.ok_or_else(|| wrong("the size of the file", "none"))?))
    }

    /// The content of a file from the byte `start` on, or from its beginning if the hub does not support ranges.
    pub(crate) fn content(&self, url: &str, start: u64, what: &str) -> Result<Content> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let (response, host) = self.get(url, range.as_deref(), what)?;
        check_status(&response, what, &host)?;
        let total = total(&response);
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let from = text(response.headers(), "content-range").and_then(|range| {
                    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse::<u64>().ok()
                });
                if from != Some(start) {
                    let got =
                        format!("one from {}", from.map_or("nowhere".to_owned(), |from| from.to_string()));
                    return Err(Error::Answer {
                        what: what.to_owned(),
                        host,
                        want: "the range that was asked for",
                        got,
                    });
                }
                start
            }
            _ => 0,
        };
        Ok(Content { start, total, reader: Box::new(response.into_body().into_reader()) })
    }

    /// The URL of a file at a commit.
    pub(crate) fn file_url(&self, name: &ModelName, commit: &str, file: &str) -> String {
        let parts: Vec<_> =
            file.split('/').map(|part| utf8_percent_encode(part, PLAIN).to_string()).collect();
        self.url(&format!("{}/resolve/{commit}/{}", name.id(), parts.join("/")))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint.to_string().trim_end_matches('/'))
    }

    fn get(&self, url: &str, range: Option<&str>, what: &str) -> Result<(Response<Body>, String)> {
        self.follow(url, range, what, |_| ())
    }

    /// The answer after all redirects, with the host that gave it. `see` gets the headers of every answer.
    fn follow(
        &self,
        url: &str,
        range: Option<&str>,
        what: &str,
        mut see: impl FnMut(&HeaderMap),
    ) -> Result<(Response<Body>, String)> {
        let answer = |host: &str, want, got: &str| Error::Answer {
            what: what.to_owned(),
            host: host.to_owned(),
            want,
            got: shortened(got),
        };
        let parsed = url.parse::<Uri>();
        let mut url = parsed.map_err(|_| answer("the address", "a valid address", url))?;
        for _ in 0..=MAX_REDIRECTS {
            let host = url.authority().map_or_else(String::new, ToString::to_string);
            let mut request = self.agent.get(&url);
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| is_same_origin(&url, &self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| failed(host.clone(), &e))?;
            see(response.headers());
            if !is_redirect(response.status()) {
                let encoding = text(response.headers(), "content-encoding").unwrap_or("identity");
                if !encoding.eq_ignore_ascii_case("identity") {
                    return Err(answer(&host, "the plain file", &format!("content-encoding {encoding}")));
                }
                return Ok((response, host));
            }
            let to = text(response.headers(), "location").unwrap_or_default();
            let next = target(&url, to).filter(is_web);
            let next = next.ok_or_else(|| answer(&host, "a redirect to a web address", to))?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(answer(&host, "a redirect to https", to));
            }
            url = next;
        }
        let host = url.authority().map_or_else(String::new, ToString::to_string);
        Err(answer(&host, "a file", "redirects without an end"))
    }
}

/// The certificate authorities in the file that the environment names, or else those of Mozilla's list.
fn authorities(environment: &Environment) -> Result<RootCerts> {
    let Some(path) = environment.authorities() else { return Ok(RootCerts::WebPki) };
    let pem = std::fs::read(&path).map_err(Error::io(&path))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        let want = "a file with certificates in PEM format";
        return Err(Error::Variable { variable: path.display().to_string(), want });
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// True for an http or https URL without a user name and a password.
fn is_web(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https"))
        && url.authority().is_some_and(|a| !a.as_str().contains('@'))
}

fn is_same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |url: &Uri| url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let is_same_host = match (a.host(), b.host()) {
        (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
        _ => false,
    };
    is_same_host && a.scheme_str() == b.scheme_str() && port(a) == port(b)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The target of a redirect: a URL, or a path on the same host.
fn target(from: &Uri, to: &str) -> Option<Uri> {
    let scheme = from.scheme_str()?;
    let authority = from.authority()?;
    if to.is_empty() {
        None
    } else if to.contains("://") {
        to.parse().ok()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}").parse().ok()
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}").parse().ok()
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{to}").parse().ok()
    }
}

fn check_status(response: &Response<Body>, what: &str, host: &str) -> Result<()> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let headers = response.headers();
    let message = text(headers, "x-error-message").unwrap_or_default();
    Err(Error::Status {
        what: what.to_owned(),
        host: host.to_owned(),
        status: status.as_u16(),
        message: shortened(message),
        retry_after_s: text(headers, "retry-after").and_then(|s| s.trim().parse().ok()),
    })
}

/// The size of the whole file according to an answer.
fn total(response: &Response<Body>) -> Option<u64> {
    let headers = response.headers();
    if let Some(range) = text(headers, "content-range") {
        return range.rsplit_once('/')?.1.trim().parse().ok();
    }
    if response.status() == StatusCode::OK {
        text(headers, "content-length")?.trim().parse().ok()
    } else {
        None
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Text from outside, shortened so that it fits into an error message.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(200).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A host that cannot be reached is not tried again, but a broken connection is.
fn failed(host: String, error: &ureq::Error) -> Error {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let why = match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        other => other.to_string(),
    };
    let is_absent = match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) => true,
        #[cfg(not(target_vendor = "apple"))]
        ureq::Error::Rustls(_) => true,
        #[cfg(target_vendor = "apple")]
        ureq::Error::NativeTls(_) => true,
        ureq::Error::Io(e) => matches!(e.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable),
        _ => false,
    };
    if is_absent { Error::Unreachable { host, why } } else { Error::Network { host, why } }
}

/// How long to wait before attempt number `attempt`, counted from 0. A time that the hub names takes precedence.
pub(crate) fn pause(error: &Error, attempt: u32) -> Duration {
    match error {
        Error::Status { retry_after_s: Some(seconds), .. } => Duration::from_secs(*seconds),
        _ => Duration::from_millis(250 << attempt.min(5)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from: Uri = "https://hub.test:8443/a/b/resolve?x=1".parse().unwrap();
        for (to, want) in [
            ("https://cdn.test/y?z", Some("https://cdn.test/y?z")),
            ("//cdn.test/y", Some("https://cdn.test/y")),
            ("/c/d?e", Some("https://hub.test:8443/c/d?e")),
            ("f", Some("https://hub.test:8443/a/b/f")),
            ("", None),
            ("https://[", None),
        ] {
            assert_eq!(target(&from, to).map(|url| url.to_string()).as_deref(), want, "{to}");
        }
        for (url, want) in
            [("ftp://x/y", false), ("https://me:pass@x/y", false), ("/y", false), ("http://x", true)]
        {
            assert_eq!(is_web(&url.parse().unwrap()), want, "{url}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub: Uri = "https://hub.test".parse().unwrap();
        for (url, want) in [
            ("https://HUB.test:443/x", true),
            ("http://hub.test/x", false),
            ("https://hub.test:444/x", false),
            ("https://cdn.hub.test/x", false),
            ("https://hub.test.evil/x", false),
        ] {
            assert_eq!(is_same_origin(&url.parse().unwrap(), &hub), want, "{url}");
        }
    }
}

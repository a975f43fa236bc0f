//! Answers as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::Value;
use tokio::time::{Instant, Sleep};

use crate::error::ApiError;
use crate::generation::{Generation, Output, Summary, TokenInfo};
use crate::tools::Piece;

/// After this time without an event, a ping is sent to keep the connection open.
const SILENCE: Duration = Duration::from_secs(10);
/// Ready events are sent together up to this size.
const TOGETHER_BYTES: usize = 8 << 10;

/// Events that are ready to be sent.
#[derive(Debug, Default)]
pub(crate) struct Events {
    bytes: Vec<u8>,
}

impl Events {
    /// An event without a name.
    pub(crate) fn data(&mut self, value: &Value) {
        self.raw(&format!("data: {value}\n\n"));
    }

    /// An event with a name.
    pub(crate) fn event(&mut self, name: &str, value: &Value) {
        self.raw(&format!("event: {name}\ndata: {value}\n\n"));
    }

    pub(crate) fn raw(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }
}

/// Writes an answer in the events of an interface.
pub(crate) trait Writer: Send + Unpin + 'static {
    /// Writes the events before the first token.
    fn begin(&mut self, generation: &Generation, out: &mut Events);
    /// Writes the events for the results of a token.
    fn step(&mut self, pieces: Vec<Piece>, logprob: Option<TokenInfo>, out: &mut Events);
    /// Writes the events of the end.
    fn end(&mut self, pieces: Vec<Piece>, summary: &Summary, out: &mut Events);
    /// Writes the event of a failure.
    fn fail(&mut self, error: &ApiError, out: &mut Events);
    /// Writes an event without a meaning.
    fn ping(&mut self, out: &mut Events);
}

/// A response that streams an answer.
pub(crate) fn response(generation: Generation, writer: impl Writer) -> Response<Body> {
    let mut out = Events::default();
    let mut writer = writer;
    writer.begin(&generation, &mut out);
    let ping = Box::pin(tokio::time::sleep(SILENCE));
    of_body(Body::new(Stream { generation: Some(generation), writer, out, ping }))
}

/// A response that streams a failure, for clients that expect it in the stream.
pub(crate) fn failure(mut writer: impl Writer, error: &ApiError) -> Response<Body> {
    let mut out = Events::default();
    writer.fail(error, &mut out);
    of_body(Body::from(out.bytes))
}

fn of_body(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

struct Stream<W> {
    /// `None` after the end.
    generation: Option<Generation>,
    writer: W,
    out: Events,
    ping: Pin<Box<Sleep>>,
}

impl<W: Writer> hyper::body::Body for Stream<W> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        while let Some(generation) = &mut this.generation {
            if this.out.bytes.len() >= TOGETHER_BYTES {
                break;
            }
            match generation.poll_next(cx) {
                Poll::Ready(Some(Ok(Output::Step { pieces, logprob }))) => {
                    this.writer.step(pieces, logprob, &mut this.out);
                    continue;
                }
                Poll::Ready(Some(Ok(Output::End { pieces, summary }))) => {
                    this.writer.end(pieces, &summary, &mut this.out);
                }
                Poll::Ready(Some(Err(error))) => this.writer.fail(&error, &mut this.out),
                Poll::Ready(None) => {}
                Poll::Pending => {
                    if this.out.bytes.is_empty() {
                        if this.ping.as_mut().poll(cx).is_pending() {
                            return Poll::Pending;
                        }
                        this.writer.ping(&mut this.out);
                    }
                    break;
                }
            }
            this.generation = None;
        }
        if this.out.bytes.is_empty() {
            return Poll::Ready(None);
        }
        this.ping.as_mut().reset(Instant::now() + SILENCE);
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.out.bytes).into()))))
    }
}

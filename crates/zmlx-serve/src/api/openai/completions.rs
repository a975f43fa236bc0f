//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde_json::{Value, json};

use super::settings::structure;
use super::{Head, finish_reason, logprobs, model_name, settings};
use crate::api::fields::Fields;
use crate::call::{TextCall, TextPrompt};
use crate::error::ApiError;
use crate::generation::{Answer, Generation, Summary, TokenInfo};
use crate::http::sse::{Events, Writer};
use crate::http::{body, json, sse};
use crate::model::Loaded;
use crate::options::ServerOptions;
use crate::prepare;
use crate::state::State as Shared;
use crate::tools::Piece;

/// The object type of answers and chunks.
const OBJECT: &str = "text_completion";

/// Continues a text.
pub(crate) async fn handle(
    State(state): State<Arc<Shared>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let loaded = state.loaded()?;
    let body = body::read(&state, request).await?;
    let fields = Fields::of_body(&body)?;
    let model = model_name(&fields, &loaded, &state.options)?;
    let is_stream = fields.bool("stream")?.unwrap_or(false);
    let head = Head::new("cmpl-", model, &fields)?;
    let call = read(&fields, &loaded)?;
    drop(body);
    let log = (head.id.clone(), "/v1/completions");
    let begun = state
        .begin(log, move |loaded: &Loaded, options: &ServerOptions| prepare::text(loaded, options, call));
    let mut generation = begun.await?;
    if is_stream {
        let writer = TextWriter { head, loaded, infos: Vec::new(), offset: 0 };
        return Ok(sse::response(generation, writer));
    }
    let (answer, summary) = Answer::collect(&mut generation).await?;
    let logprobs = match answer.logprobs.as_slice() {
        [] => Value::Null,
        infos => logprobs::completion(&loaded.model.tokenizer, infos, &mut 0),
    };
    let choice = json!({
        "index": 0,
        "text": answer.content,
        "logprobs": logprobs,
        "finish_reason": finish_reason(&summary.finish)
    });
    Ok(json(&head.whole(OBJECT, choice, &summary)))
}

fn read(fields: &Fields<'_>, loaded: &Loaded) -> Result<TextCall, ApiError> {
    if fields.bool("echo")? == Some(true) {
        return Err(fields.error("echo", "expected false: the prompt is not repeated"));
    }
    if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.error("suffix", "expected null: a text can only be continued at its end"));
    }
    if fields.integer("best_of", 1, i64::MAX)?.is_some_and(|n| n > 1) {
        return Err(fields.error("best_of", "expected 1: an answer has one choice"));
    }
    let mut settings = settings(fields, loaded)?;
    settings.logprobs = fields.integer("logprobs", 0, 20)?.map(|n| n as usize);
    Ok(TextCall { prompt: prompt(fields, loaded.model.vocab_size)?, structure: structure(fields)?, settings })
}

/// The prompt: a string, tokens, or a list with one of these.
fn prompt(fields: &Fields<'_>, vocab_size: usize) -> Result<TextPrompt, ApiError> {
    const KEY: &str = "prompt";
    let Some(value) = fields.get(KEY) else {
        return Err(
            fields.error(KEY, "expected a string, a list of tokens, or a list of one of these, got nothing")
        );
    };
    let wrong = |got: &Value| fields.wrong(KEY, "a string, a list of tokens, or a list of one of these", got);
    let tokens = |list: &[Value]| -> Result<TextPrompt, ApiError> {
        let token = |value: &Value| {
            let id = value.as_u64().filter(|id| *id < vocab_size as u64);
            id.map(|id| id as u32)
                .ok_or_else(|| fields.wrong(KEY, &format!("token ids below {vocab_size}"), value))
        };
        list.iter().map(token).collect::<Result<_, _>>().map(TextPrompt::Tokens)
    };
    match value {
        Value::String(text) => Ok(TextPrompt::Text(text.clone())),
        Value::Array(list) => match list.as_slice() {
            [Value::String(text)] => Ok(TextPrompt::Text(text.clone())),
            [Value::Array(list)] => tokens(list),
            [Value::String(_) | Value::Array(_), ..] => {
                Err(fields.error(KEY, format!("expected one prompt, got {}", list.len())))
            }
            list => tokens(list),
        },
        other => Err(wrong(other)),
    }
}

/// Writes chunks.
struct TextWriter {
    head: Head,
    loaded: Arc<Loaded>,
    /// Tokens that are not in a chunk yet.
    infos: Vec<TokenInfo>,
    offset: usize,
}

impl TextWriter {
    fn text(&mut self, text: &str, finish: Option<&str>) -> Value {
        let infos = std::mem::take(&mut self.infos);
        let logprobs = if infos.is_empty() {
            Value::Null
        } else {
            logprobs::completion(&self.loaded.model.tokenizer, &infos, &mut self.offset)
        };
        let choice = json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish});
        self.head.object(OBJECT, json!([choice]))
    }

    fn pieces(&mut self, pieces: Vec<Piece>, out: &mut Events) {
        for piece in pieces {
            // Without a syntax of calls there are no other pieces.
            if let Piece::Content(text) = piece {
                let chunk = self.text(&text, None);
                out.data(&chunk);
            }
        }
    }
}

impl Writer for TextWriter {
    fn begin(&mut self, _: &Generation, _: &mut Events) {}

    fn step(&mut self, pieces: Vec<Piece>, logprob: Option<TokenInfo>, out: &mut Events) {
        self.infos.extend(logprob);
        self.pieces(pieces, out);
    }

    fn end(&mut self, pieces: Vec<Piece>, summary: &Summary, out: &mut Events) {
        self.pieces(pieces, out);
        let last = self.text("", Some(finish_reason(&summary.finish)));
        self.head.end(OBJECT, last, summary, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.data(&error.openai());
    }

    fn ping(&mut self, out: &mut Events) {
        out.raw(": ping\n\n");
    }
}

//! An answer as it is generated: the engine's tokens are parsed into thinking, text and calls.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use serde_json::{Value, json};
use zmlx_models::TokenLogprob;
use zmlx_models::engine::{Finished, StopReason, Token};

use crate::engine::{Ticket, Update};
use crate::error::ApiError;
use crate::prepare::Prepared;
use crate::state::State;
use crate::tools::{OutputParser, Piece, TextEnd};

/// The parts of an answer, in order.
#[derive(Debug)]
pub(crate) enum Output {
    /// The results of a token, which may be empty.
    Step { pieces: Vec<Piece>, logprob: Option<TokenInfo> },
    /// Its end.
    End { pieces: Vec<Piece>, summary: Summary },
}

/// A token and its probability.
#[derive(Clone, Debug)]
pub(crate) struct TokenInfo {
    pub(crate) chosen: TokenLogprob,
    pub(crate) top: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended it.
    Stop,
    /// A stop string ended it.
    StopString(String),
    /// The model called tools.
    ToolCalls,
    /// It reached its maximal length.
    Length,
    /// The context is full.
    Context,
}

/// The facts about an answer at its end.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) finish: Finish,
    pub(crate) usage: Usage,
    pub(crate) timings: Value,
}

/// Numbers of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) n_prompt: usize,
    pub(crate) n_cached: usize,
    pub(crate) n_generated: usize,
    pub(crate) n_reasoning: usize,
}

/// An answer in progress. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Generation {
    ticket: Ticket,
    parser: OutputParser,
    state: Arc<State>,
    usage: Usage,
    is_cut: bool,
    most_calls: Option<usize>,
    wants_logprobs: bool,
    param: &'static str,
    n_calls: usize,
    /// True inside a call whose name has been sent.
    is_in_call: bool,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// The end, if the parser found it before the engine did.
    ending: Option<Summary>,
    is_done: bool,
    log: Log,
}

/// The line in the log for a request.
#[derive(Debug)]
struct Log {
    id: String,
    path: &'static str,
    submitted: Instant,
    finish: &'static str,
}

impl Generation {
    /// Submits a prepared request and waits until it has a slot.
    pub(crate) async fn begin(
        state: Arc<State>,
        prepared: Prepared,
        (id, path): (String, &'static str),
    ) -> Result<Self, ApiError> {
        let Prepared { request, parser, n_prompt, is_cut, most_calls, wants_logprobs, param } = prepared;
        let submitted = Instant::now();
        let failed = |state: &State, failure| {
            ApiError::of_failure(failure, param, state.engine.status().retry_after.max(1))
        };
        let mut ticket = state.engine.submit(request).map_err(|failure| failed(&state, failure))?;
        let (n_cached, queue_time) = match ticket.updates.recv().await {
            Some(Update::Started { n_cached_tokens, queue_time }) => (n_cached_tokens, queue_time),
            Some(Update::Failed(failure)) => return Err(failed(&state, failure)),
            // The engine has ended, or reported tokens before the start.
            _ => return Err(ApiError::internal()),
        };
        Ok(Self {
            ticket,
            parser,
            state,
            usage: Usage { n_prompt, n_cached, ..Usage::default() },
            is_cut,
            most_calls,
            wants_logprobs,
            param,
            n_calls: 0,
            is_in_call: false,
            started: submitted + queue_time,
            first_token: None,
            last_token: None,
            ending: None,
            is_done: false,
            log: Log { id, path, submitted, finish: "cancelled" },
        })
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// The next part; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Output, ApiError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Output, ApiError>>> {
        loop {
            if let Some(summary) = self.ending.take() {
                return Poll::Ready(Some(Ok(Output::End { pieces: Vec::new(), summary })));
            }
            if self.is_done {
                return Poll::Ready(None);
            }
            let update = match self.ticket.updates.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(update) => update,
            };
            return Poll::Ready(Some(match update {
                Some(Update::Started { .. }) => continue,
                Some(Update::Token(token)) => Ok(self.take_token(token)),
                Some(Update::Finished(finished)) => Ok(self.end(&finished)),
                Some(Update::Failed(failure)) => {
                    self.is_done = true;
                    self.log.finish = "failed";
                    let retry_after = self.state.engine.status().retry_after.max(1);
                    Err(ApiError::of_failure(failure, self.param, retry_after))
                }
                None => {
                    self.is_done = true;
                    self.log.finish = "failed";
                    Err(ApiError::internal())
                }
            }));
        }
    }

    fn take_token(&mut self, token: Token) -> Output {
        let now = Instant::now();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.usage.n_generated += 1;
        self.usage.n_reasoning += usize::from(self.parser.is_thinking());
        let mut pieces = Vec::new();
        self.parser.push(&token.text, &mut pieces);
        let is_last = self.watch(&mut pieces);
        if is_last {
            self.ending = Some(self.finish(Finish::ToolCalls));
        }
        let chosen = TokenLogprob { token: token.token, logprob: token.logprob };
        let logprob = self.wants_logprobs.then_some(TokenInfo { chosen, top: token.top_logprobs });
        Output::Step { pieces, logprob }
    }

    /// Counts calls. Returns true when the last wanted call is complete; what follows it is left out.
    fn watch(&mut self, pieces: &mut Vec<Piece>) -> bool {
        for at in 0..pieces.len() {
            match pieces[at] {
                Piece::CallStart { .. } => self.is_in_call = true,
                Piece::CallBroken(_) | Piece::CallCut => self.is_in_call = false,
                Piece::CallEnd => {
                    self.is_in_call = false;
                    self.n_calls += 1;
                    if Some(self.n_calls) == self.most_calls {
                        pieces.truncate(at + 1);
                        return true;
                    }
                }
                _ => {}
            }
        }
        false
    }

    fn end(&mut self, finished: &Finished) -> Output {
        let mut pieces = Vec::new();
        self.parser.push(&finished.text, &mut pieces);
        let end = match finished.reason {
            StopReason::Eos | StopReason::StopString => TextEnd::Whole,
            _ => TextEnd::Cut,
        };
        self.parser.finish(end, &mut pieces);
        self.watch(&mut pieces);
        let finish = match finished.reason {
            StopReason::Eos if self.n_calls > 0 => Finish::ToolCalls,
            StopReason::Eos => Finish::Stop,
            StopReason::StopString => Finish::StopString(finished.stop_string.clone().unwrap_or_default()),
            StopReason::ContextLength => Finish::Context,
            StopReason::MaxTokens if self.is_cut => Finish::Context,
            _ => Finish::Length,
        };
        self.usage.n_generated = finished.n_generated_tokens;
        Output::End { pieces, summary: self.finish(finish) }
    }

    fn finish(&mut self, finish: Finish) -> Summary {
        self.is_done = true;
        self.log.finish = match finish {
            Finish::Stop | Finish::StopString(_) => "stop",
            Finish::ToolCalls => "tool_calls",
            Finish::Length => "length",
            Finish::Context => "context",
        };
        // Later updates of the engine are not needed.
        self.ticket.updates.close();
        Summary { finish, usage: self.usage, timings: self.timings() }
    }

    /// The times in the form of llama-server, in milliseconds.
    pub(crate) fn timings(&self) -> Value {
        let first = self.first_token.unwrap_or_else(Instant::now);
        let last = self.last_token.unwrap_or(first);
        let prompt_ms = (first - self.started).as_secs_f64() * 1e3;
        let predicted_ms = (last - first).as_secs_f64() * 1e3;
        let Usage { n_prompt, n_cached, n_generated, .. } = self.usage;
        let n_computed = n_prompt - n_cached;
        let per_second = |n: usize, ms: f64| if ms > 0.0 { n as f64 / ms * 1e3 } else { 0.0 };
        json!({
            "cache_n": n_cached,
            "prompt_n": n_computed,
            "prompt_ms": prompt_ms,
            "prompt_per_second": per_second(n_computed, prompt_ms),
            "predicted_n": n_generated,
            "predicted_ms": predicted_ms,
            "predicted_per_second": per_second(n_generated.saturating_sub(1), predicted_ms),
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let Usage { n_prompt, n_cached, n_generated, .. } = self.usage;
        let Log { id, path, submitted, finish } = &self.log;
        let ms = |from: Instant, to: Instant| (to - from).as_millis();
        let now = Instant::now();
        let first = self.first_token.unwrap_or(now);
        tracing::info!(
            "{id} {path} prompt {n_prompt} (cached {n_cached}) generated {n_generated} queue {} ms prompt {} ms total {} ms \
             finish {finish}",
            ms(*submitted, self.started),
            ms(self.started, first),
            ms(*submitted, now)
        );
    }
}

/// A complete answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) reasoning: String,
    pub(crate) content: String,
    pub(crate) calls: Vec<AnswerCall>,
    pub(crate) logprobs: Vec<TokenInfo>,
}

/// A tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerCall {
    pub(crate) name: String,
    /// The arguments as JSON text.
    pub(crate) arguments: String,
}

impl Answer {
    /// Waits for the complete answer.
    pub(crate) async fn collect(generation: &mut Generation) -> Result<(Self, Summary), ApiError> {
        let mut answer = Self::default();
        let mut open = None;
        while let Some(output) = generation.next().await {
            match output? {
                Output::Step { pieces, logprob } => {
                    answer.take(pieces, &mut open);
                    answer.logprobs.extend(logprob);
                }
                Output::End { pieces, summary } => {
                    answer.take(pieces, &mut open);
                    return Ok((answer, summary));
                }
            }
        }
        Err(ApiError::internal())
    }

    fn take(&mut self, pieces: Vec<Piece>, open: &mut Option<AnswerCall>) {
        for piece in pieces {
            match piece {
                Piece::Reasoning(text) => self.reasoning += &text,
                Piece::Content(text) => self.content += &text,
                Piece::CallStart { name } => *open = Some(AnswerCall { name, arguments: String::new() }),
                Piece::CallArguments(text) => {
                    if let Some(call) = open {
                        call.arguments += &text;
                    }
                }
                Piece::CallEnd => self.calls.extend(open.take()),
                Piece::CallBroken(text) => {
                    *open = None;
                    self.content += &text;
                }
                Piece::CallCut => *open = None,
            }
        }
    }
}

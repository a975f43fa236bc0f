//! Thinking stands ahead of all else, between `<think>` and `</think>`.

use super::{Piece, ThinkingMode, undecided};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Splits thinking off.
#[derive(Debug)]
pub(super) struct Thinking {
    state: State,
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: the tag may follow.
    Start,
    /// Within, before its first character. The tag may come although the prompt has opened it.
    Opened,
    /// Within.
    Inside,
    /// Behind, before the first character of the answer.
    Closed,
    /// Everything is passed on.
    Passing,
}

impl Thinking {
    pub(super) fn new(mode: ThinkingMode) -> Self {
        let state = match mode {
            ThinkingMode::Off => State::Passing,
            ThinkingMode::IfTagged => State::Start,
            ThinkingMode::Open => State::Opened,
        };
        Self { state, held: String::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Opened | State::Inside)
    }

    /// Adds text; thinking goes to `pieces`, what is none is given back.
    pub(super) fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) -> String {
        if self.state == State::Passing {
            return text.to_owned();
        }
        self.held.push_str(text);
        loop {
            match self.state {
                State::Start | State::Opened => {
                    let body = self.held.trim_start();
                    if let Some(rest) = body.strip_prefix(OPEN) {
                        self.held = rest.to_owned();
                        self.state = State::Opened;
                        continue;
                    }
                    if OPEN.starts_with(body) {
                        return String::new();
                    }
                    if self.state == State::Start {
                        self.state = State::Passing;
                        return std::mem::take(&mut self.held);
                    }
                    // The white space behind the tag is not the thinking's.
                    self.held = body.to_owned();
                    self.state = State::Inside;
                }
                State::Inside => {
                    let Some(at) = self.held.find(CLOSE) else {
                        let certain = self.held.len() - undecided(&self.held, &[CLOSE]);
                        let certain = self.held[..certain].trim_end().len();
                        self.give(certain, pieces);
                        return String::new();
                    };
                    let rest = self.held.split_off(at + CLOSE.len());
                    let len = self.held[..at].trim_end().len();
                    self.give(len, pieces);
                    self.held = rest;
                    self.state = State::Closed;
                }
                State::Closed => {
                    let body = self.held.trim_start();
                    if body.is_empty() {
                        self.held.clear();
                        return String::new();
                    }
                    self.state = State::Passing;
                    let body = body.to_owned();
                    self.held.clear();
                    return body;
                }
                State::Passing => return std::mem::take(&mut self.held),
            }
        }
    }

    /// Ends the text: what was held back is thinking, or is given back.
    pub(super) fn finish(&mut self, pieces: &mut Vec<Piece>) -> String {
        match self.state {
            State::Opened | State::Inside => {
                if self.state == State::Opened {
                    self.held = self.held.trim_start().to_owned();
                }
                let len = self.held.trim_end().len();
                self.give(len, pieces);
                self.held.clear();
                String::new()
            }
            State::Closed => String::new(),
            State::Start | State::Passing => std::mem::take(&mut self.held),
        }
    }

    fn give(&mut self, len: usize, pieces: &mut Vec<Piece>) {
        let text: String = self.held.drain(..len).collect();
        if text.is_empty() {
            return;
        }
        match pieces.last_mut() {
            Some(Piece::Reasoning(last)) => last.push_str(&text),
            _ => pieces.push(Piece::Reasoning(text)),
        }
    }
}

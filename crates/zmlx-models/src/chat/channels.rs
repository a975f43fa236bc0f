//! Answers in channels, as gpt-oss writes them: `<|channel|>analysis<|message|>…<|end|>`, then `<|start|>assistant` and
//! the next message. A message in the channel `analysis` is thinking, a message with `to=functions.NAME` is a tool
//! call, and everything else is the answer.
//!
//! Source: OpenAI's description of the Harmony response format.

use super::AnswerPart;
use super::thinking::undecided;

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
/// Texts that end a message.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", START, CHANNEL];
/// The longest header, in bytes. Longer ones are taken as text.
const LONGEST_HEADER: usize = 1024;

/// Reads an answer in channels.
#[derive(Debug, Default)]
pub(super) struct Channels {
    state: State,
    /// Text that is not decided yet. A header is held from its beginning.
    held: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before `<|message|>`.
    #[default]
    Header,
    /// In a message of this part. If it is a call, these are its arguments.
    Message(AnswerPart),
}

impl Channels {
    pub(super) fn is_thinking(&self) -> bool {
        self.state == State::Message(AnswerPart::Thinking)
    }

    pub(super) fn push(&mut self, piece: &str, out: &mut impl FnMut(AnswerPart, &str)) {
        self.held.push_str(piece);
        while self.step(out) {}
    }

    /// Ends the text. If it ends within a call, the call is complete: the token after a call ends the text and is not
    /// part of it.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(AnswerPart, &str)) {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Header if is_header(&rest) => {}
            State::Header => give(AnswerPart::Answer, &rest, out),
            State::Message(part) => {
                give(part, &rest, out);
                self.end(part, out);
            }
        }
    }

    /// Returns true if there may be more to do.
    fn step(&mut self, out: &mut impl FnMut(AnswerPart, &str)) -> bool {
        match self.state {
            State::Header => self.read_header(out),
            State::Message(part) => {
                let end = ENDS.iter().filter_map(|tag| Some((self.held.find(tag)?, *tag))).min();
                let certain = match end {
                    Some((at, _)) => at,
                    None => self.held.len() - undecided(&self.held, &ENDS),
                };
                let text: String = self.held.drain(..certain).collect();
                give(part, &text, out);
                let Some((_, tag)) = end else { return false };
                self.end(part, out);
                if tag != START && tag != CHANNEL {
                    self.held.drain(..tag.len());
                }
                true
            }
        }
    }

    fn read_header(&mut self, out: &mut impl FnMut(AnswerPart, &str)) -> bool {
        if !is_header(&self.held) || self.held.len() > LONGEST_HEADER {
            // This text has no channels.
            self.state = State::Message(AnswerPart::Answer);
            return true;
        }
        let Some(at) = self.held.find(MESSAGE) else { return false };
        let header: String = self.held.drain(..at + MESSAGE.len()).collect();
        let word_behind = |mark: &str| {
            let (_, rest) = header.split_once(mark)?;
            rest.split(|c: char| c.is_whitespace() || c == '<').next()
        };
        let tool = word_behind("to=").and_then(|to| to.strip_prefix("functions."));
        let part = match tool {
            Some(name) => {
                out(AnswerPart::CallStart, name);
                AnswerPart::CallArguments
            }
            None if word_behind(CHANNEL) == Some("analysis") => AnswerPart::Thinking,
            None => AnswerPart::Answer,
        };
        self.state = State::Message(part);
        true
    }

    fn end(&mut self, part: AnswerPart, out: &mut impl FnMut(AnswerPart, &str)) {
        if part == AnswerPart::CallArguments {
            out(AnswerPart::CallEnd, "");
        }
        self.state = State::Header;
    }
}

/// True if a text may be the header of a message, or the beginning of one.
fn is_header(text: &str) -> bool {
    let text = text.trim_start();
    [START, CHANNEL, "to="].iter().any(|begin| text.starts_with(begin) || begin.starts_with(text))
}

fn give(part: AnswerPart, text: &str, out: &mut impl FnMut(AnswerPart, &str)) {
    if !text.is_empty() {
        out(part, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AnswerPart::{Answer, CallArguments, CallEnd, CallStart, Thinking};

    fn read(pieces: &[&str]) -> Vec<(AnswerPart, String)> {
        let mut channels = Channels::default();
        let mut parts: Vec<(AnswerPart, String)> = Vec::new();
        let mut out = |part, text: &str| match parts.last_mut() {
            Some((last, all)) if *last == part && part != CallStart => all.push_str(text),
            _ => parts.push((part, text.to_owned())),
        };
        for piece in pieces {
            channels.push(piece, &mut out);
        }
        channels.finish(&mut out);
        parts
    }

    #[test]
    fn every_cut_gives_the_same_parts() {
        let cases: [(&str, &[(AnswerPart, &str)]); 8] = [
            (
                "<|channel|>analysis<|message|>Hm. a < b<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
                &[(Thinking, "Hm. a < b"), (Answer, "Yes.")],
            ),
            ("<|channel|>final<|message|>é<|return|>", &[(Answer, "é")]),
            (
                "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>commentary to=functions.look \
                 <|constrain|>json<|message|>{\"a\":1}",
                &[(Thinking, "x"), (CallStart, "look"), (CallArguments, "{\"a\":1}"), (CallEnd, "")],
            ),
            (
                " to=functions.look<|channel|>commentary json<|message|>{}<|call|>",
                &[(CallStart, "look"), (CallArguments, "{}"), (CallEnd, "")],
            ),
            ("<|channel|>commentary<|message|>I look.<|end|>", &[(Answer, "I look.")]),
            ("No channel <|at all", &[(Answer, "No channel <|at all")]),
            ("<|channel|>ana", &[]),
            ("", &[]),
        ];
        for (text, want) in cases {
            let want: Vec<(AnswerPart, String)> = want.iter().map(|(p, t)| (*p, (*t).to_owned())).collect();
            assert_eq!(read(&[text]), want, "{text:?}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(read(&chars.iter().map(String::as_str).collect::<Vec<_>>()), want, "{text:?}");
            for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
                assert_eq!(read(&[&text[..at], &text[at..]]), want, "{text:?} at {at}");
            }
        }
    }
}

//! Separates thinking from the answer while text comes in: `<think>…</think>` at the beginning, or messages in
//! channels.

use super::channels::Channels;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// How thinking is recognised in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThinkingMode {
    /// It is not: tags of thinking are part of the answer.
    Off,
    /// The answer begins with the tag if it contains thinking.
    IfTagged,
    /// The prompt has already opened the thinking. The answer may repeat the tag.
    Open,
    /// The answer consists of messages in channels, as gpt-oss writes them, and `analysis` is thinking.
    Channels,
}

impl ThinkingMode {
    /// [`Open`](Self::Open) if the thinking is open at the end of `prompt`; [`Channels`](Self::Channels) if the prompt
    /// ends as gpt-oss's prompts do; otherwise [`IfTagged`](Self::IfTagged).
    pub fn after(prompt: &str) -> Self {
        if prompt.ends_with("<|start|>assistant") {
            return Self::Channels;
        }
        let is_open = prompt.rfind(OPEN).is_some_and(|at| !prompt[at..].contains(CLOSE));
        if is_open { Self::Open } else { Self::IfTagged }
    }
}

/// The part of the answer that a piece of text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerPart {
    /// The model's thinking.
    Thinking,
    /// The answer itself.
    Answer,
    /// The name of the tool that is called. This and the next two occur only in channels.
    CallStart,
    /// The JSON text of a call's arguments.
    CallArguments,
    /// The end of a call; without text.
    CallEnd,
}

/// Splits an answer that comes in pieces into its parts. The tags and the white space beside them belong to no part.
#[derive(Debug)]
pub struct ThinkingSplitter {
    state: State,
    /// Used in place of the other two fields if the answer is in channels.
    channels: Option<Channels>,
    /// Text that may be the beginning of a tag, or white space before one.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There was only white space so far: the tag may follow.
    Start,
    /// In the thinking, before its first character.
    Opened,
    /// In the thinking.
    Inside,
    /// After the thinking, before the first character of the answer.
    Closed,
    /// All text is passed on.
    Passing,
}

impl ThinkingSplitter {
    /// A splitter at the start of an answer.
    pub fn new(mode: ThinkingMode) -> Self {
        let state = match mode {
            ThinkingMode::Off | ThinkingMode::Channels => State::Passing,
            ThinkingMode::IfTagged => State::Start,
            ThinkingMode::Open => State::Opened,
        };
        let channels = (mode == ThinkingMode::Channels).then(Channels::default);
        Self { state, channels, held: String::new() }
    }

    /// True while the text is thinking.
    pub fn is_thinking(&self) -> bool {
        let in_channels = self.channels.as_ref().is_some_and(Channels::is_thinking);
        in_channels || matches!(self.state, State::Opened | State::Inside)
    }

    /// Takes a piece and passes on what is certain. The text is empty only at the end of a call.
    pub fn push(&mut self, piece: &str, out: &mut impl FnMut(AnswerPart, &str)) {
        if let Some(channels) = &mut self.channels {
            return channels.push(piece, out);
        }
        if self.state == State::Passing {
            if !piece.is_empty() {
                out(AnswerPart::Answer, piece);
            }
            return;
        }
        self.held.push_str(piece);
        while self.step(out) {}
    }

    /// Ends the answer and passes on what was held back.
    pub fn finish(&mut self, out: &mut impl FnMut(AnswerPart, &str)) {
        if let Some(channels) = &mut self.channels {
            return channels.finish(out);
        }
        let rest = std::mem::take(&mut self.held);
        let (part, rest) = match self.state {
            State::Opened => (AnswerPart::Thinking, rest.trim()),
            State::Inside => (AnswerPart::Thinking, rest.trim_end()),
            State::Closed => return,
            State::Start | State::Passing => (AnswerPart::Answer, rest.as_str()),
        };
        if !rest.is_empty() {
            out(part, rest);
        }
    }

    /// Returns true if there may be more to do.
    fn step(&mut self, out: &mut impl FnMut(AnswerPart, &str)) -> bool {
        match self.state {
            State::Start | State::Opened => {
                let body = self.held.trim_start();
                if let Some(rest) = body.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Opened;
                } else if OPEN.starts_with(body) {
                    return false;
                } else if self.state == State::Start {
                    self.state = State::Passing;
                } else {
                    self.held = body.to_owned();
                    self.state = State::Inside;
                }
                true
            }
            State::Inside => {
                let end = self.held.find(CLOSE);
                let certain = end.unwrap_or_else(|| self.held.len() - undecided(&self.held, &[CLOSE]));
                let thought: String = self.held.drain(..self.held[..certain].trim_end().len()).collect();
                if !thought.is_empty() {
                    out(AnswerPart::Thinking, &thought);
                }
                if let Some(at) = self.held.find(CLOSE).filter(|_| end.is_some()) {
                    self.held.drain(..at + CLOSE.len());
                    self.state = State::Closed;
                }
                end.is_some()
            }
            State::Closed => {
                self.held = self.held.trim_start().to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Passing;
                true
            }
            State::Passing => {
                let rest = std::mem::take(&mut self.held);
                if !rest.is_empty() {
                    out(AnswerPart::Answer, &rest);
                }
                false
            }
        }
    }
}

/// The length in bytes of the end of `text` that may be the beginning of one of `tags`.
pub fn undecided(text: &str, tags: &[&str]) -> usize {
    let longest = tags.iter().map(|tag| tag.len()).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest.saturating_sub(1));
    let starts = (from..text.len()).filter(|&at| text.is_char_boundary(at));
    let begins = |at: &usize| tags.iter().any(|tag| tag.starts_with(&text[*at..]));
    starts.into_iter().find(begins).map_or(0, |at| text.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(prompt: &str, pieces: &[&str]) -> (String, String) {
        let mut splitter = ThinkingSplitter::new(ThinkingMode::after(prompt));
        let (mut thinking, mut answer) = (String::new(), String::new());
        let mut out = |part, text: &str| match part {
            AnswerPart::Thinking => thinking += text,
            _ => answer += text,
        };
        for piece in pieces {
            splitter.push(piece, &mut out);
        }
        splitter.finish(&mut out);
        (thinking, answer)
    }

    #[test]
    fn every_cut_gives_the_same_parts() {
        for (prompt, text, thinking, answer) in [
            ("", "<think>\na\n\nb\n</think>\n\nc\n", "a\n\nb", "c\n"),
            ("assistant\n<think>\n", "a < b\n</thing>\n</think>c", "a < b\n</thing>", "c"),
            ("assistant\n<think>\n", "\n<think> a </think> c", "a", "c"),
            ("<think>\n\n</think>\n\n", "c", "", "c"),
            ("", "\n <think>é</think> 🦀", "é", "🦀"),
            ("", "no <think>tag</think>", "", "no <think>tag</think>"),
            ("", "<thi", "", "<thi"),
            ("", "<think>cut off </thi", "cut off </thi", ""),
            ("", "<think>\n\n</think>\n\n", "", ""),
            ("", " \n", "", " \n"),
        ] {
            let want = (thinking.to_owned(), answer.to_owned());
            assert_eq!(split(prompt, &[text]), want, "{text:?}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(split(prompt, &chars), want, "{text:?}");
            for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
                assert_eq!(split(prompt, &[&text[..at], &text[at..]]), want, "{text:?} at {at}");
            }
        }
    }
}

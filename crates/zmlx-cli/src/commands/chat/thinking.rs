//! Thinking apart from the answer, as the text comes: `<think>…</think>` ahead of all.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What a piece of text belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Thinking,
    Answer,
}

/// Parts a text that comes in pieces. The tags belong to no part, nor do the line ends beside them.
#[derive(Debug)]
pub(super) struct Splitter {
    state: State,
    /// Text that could be the beginning of a tag, or blanks ahead of one.
    held: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but blanks, so far.
    Start,
    /// Behind the opening tag: line ends are skipped.
    Opened,
    Thinking,
    /// Behind the closing tag: line ends are skipped.
    Closed,
    Answer,
}

impl Splitter {
    /// At the start of a text, `prompt_end` being what stands ahead of it: it may have opened the thinking.
    pub(super) fn new(prompt_end: &str) -> Self {
        let opened = prompt_end.rfind(OPEN).is_some_and(|at| !prompt_end[at..].contains(CLOSE));
        Self { state: if opened { State::Opened } else { State::Start }, held: String::new() }
    }

    /// Takes a piece and hands out what is certain.
    pub(super) fn push(&mut self, piece: &str, out: &mut impl FnMut(Part, &str)) {
        self.held += piece;
        while self.step(out) {}
    }

    /// Hands out what was held back: the text has ended.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(Part, &str)) {
        let rest = std::mem::take(&mut self.held);
        let part =
            if matches!(self.state, State::Opened | State::Thinking) { Part::Thinking } else { Part::Answer };
        if !rest.is_empty() {
            out(part, &rest);
        }
    }

    /// True if there may be more to do.
    fn step(&mut self, out: &mut impl FnMut(Part, &str)) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPEN) {
                    self.held = rest.to_owned();
                    self.state = State::Opened;
                } else if OPEN.starts_with(text) {
                    return false;
                } else {
                    self.state = State::Answer;
                }
                true
            }
            State::Opened | State::Closed => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = if self.state == State::Opened { State::Thinking } else { State::Answer };
                true
            }
            State::Thinking => {
                if let Some(at) = self.held.find(CLOSE) {
                    let thought = self.held[..at].trim_end_matches('\n');
                    if !thought.is_empty() {
                        out(Part::Thinking, thought);
                    }
                    self.held = self.held[at + CLOSE.len()..].to_owned();
                    self.state = State::Closed;
                    return true;
                }
                let rest = self.held.split_off(undecided_from(&self.held));
                let certain = std::mem::replace(&mut self.held, rest);
                if !certain.is_empty() {
                    out(Part::Thinking, &certain);
                }
                false
            }
            State::Answer => {
                if !self.held.is_empty() {
                    out(Part::Answer, &std::mem::take(&mut self.held));
                }
                false
            }
        }
    }
}

/// Where the end of a text begins that could be the beginning of the closing tag, or line ends ahead of it.
fn undecided_from(text: &str) -> usize {
    let n = (1..CLOSE.len()).rev().find(|&n| text.ends_with(&CLOSE[..n])).unwrap_or(0);
    text[..text.len() - n].trim_end_matches('\n').len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(prompt_end: &str, pieces: &[&str]) -> (String, String) {
        let mut splitter = Splitter::new(prompt_end);
        let (mut thinking, mut answer) = (String::new(), String::new());
        let mut out = |part, text: &str| match part {
            Part::Thinking => thinking += text,
            Part::Answer => answer += text,
        };
        for piece in pieces {
            splitter.push(piece, &mut out);
        }
        splitter.finish(&mut out);
        (thinking, answer)
    }

    #[test]
    fn every_cut_gives_the_same_parts() {
        for (prompt_end, text, thinking, answer) in [
            ("", "<think>\na\n\nb\n</think>\n\nc\n", "a\n\nb", "c\n"),
            ("assistant\n<think>\n", "a < b\n</thing>\n</think>c", "a < b\n</thing>", "c"),
            ("<think>\n\n</think>\n\n", "c", "", "c"),
            ("", "\n <think>é</think> 🦀", "é", " 🦀"),
            ("", "no <think>tag</think>", "", "no <think>tag</think>"),
            ("", "<thi", "", "<thi"),
            ("", "<think>cut off </thi", "cut off </thi", ""),
            ("", " \n", "", " \n"),
        ] {
            let want = (thinking.to_owned(), answer.to_owned());
            assert_eq!(split(prompt_end, &[text]), want, "{text:?}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(
                split(prompt_end, &chars.iter().map(String::as_str).collect::<Vec<_>>()),
                want,
                "{text:?}"
            );
            for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
                assert_eq!(split(prompt_end, &[&text[..at], &text[at..]]), want, "{text:?} at {at}");
            }
        }
    }
}

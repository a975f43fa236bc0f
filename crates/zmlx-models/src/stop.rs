//! Stop strings, which may begin in one piece of text and end in another.

use crate::{Error, Result};

/// Watches a text for the first completed stop string.
///
/// The outcome does not depend on the pieces: of all stop strings the one that *ends* first counts, and of those that
/// end there the longest. The text before it is returned. It and everything after it are not.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    longest: usize,
    /// The end of the text, which may be the beginning of a stop string.
    held: String,
    /// The index of the completed stop string.
    found: Option<usize>,
}

/// What may be returned after a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is certainly before any stop string.
    pub text: String,
    /// True once a stop string has been completed.
    pub stopped: bool,
}

impl StopStrings {
    /// A watcher at the start of a text. Without stop strings every piece is returned at once.
    ///
    /// # Errors
    /// If a stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Parameter {
                field: "stop",
                want: "non-empty strings",
                got: format!("{stops:?}"),
            });
        }
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { stops, longest, held: String::new(), found: None })
    }

    /// The stop string that was completed.
    pub fn found(&self) -> Option<&str> {
        self.stops.get(self.found?).map(String::as_str)
    }

    /// Adds a piece of text. After a stop string nothing more is returned.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.found.is_some() {
            return StopStep { text: String::new(), stopped: true };
        }
        self.held.push_str(piece);
        if let Some((start, which)) = self.first_stop() {
            self.found = Some(which);
            self.held.truncate(start);
            return StopStep { text: std::mem::take(&mut self.held), stopped: true };
        }
        let undecided = self.undecided_from();
        let rest = self.held.split_off(undecided);
        StopStep { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// The text that was held back. Call it at the end of the text: then this is not a stop string.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The place and the index of the stop string that is completed first.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(which, s)| {
            let start = self.held.find(s.as_str())?;
            Some((start + s.len(), start, which))
        });
        found.min().map(|(_, start, which)| (start, which))
    }

    /// Where the longest end of the held text begins that is also the beginning of a stop string.
    fn undecided_from(&self) -> usize {
        let n = self.held.len();
        // A whole stop string would have been found, so fewer bytes than the longest one has can be undecided.
        let from = n.saturating_sub(self.longest.saturating_sub(1));
        let starts = (from..n).filter(|&i| self.held.is_char_boundary(i));
        let begins = |i: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*i..]));
        starts.into_iter().find(begins).unwrap_or(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(|s| (*s).to_owned()).collect()).unwrap()
    }

    fn run(list: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stop = stops(list);
        let mut text = String::new();
        for p in pieces {
            let step = stop.push(p);
            text += &step.text;
            if step.stopped {
                return (text, true);
            }
        }
        (text + &stop.flush(), false)
    }

    /// All ways to cut `text` into pieces at character boundaries.
    fn splits(text: &str) -> Vec<Vec<&str>> {
        let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).skip(1).collect();
        let pieces = |mask: u32| {
            let chosen = cuts.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, c)| *c);
            let ends: Vec<usize> = chosen.chain([text.len()]).collect();
            let starts = [0].into_iter().chain(ends.iter().copied());
            starts.zip(&ends).map(|(s, e)| &text[s..*e]).collect()
        };
        (0..1 << cuts.len()).map(pieces).collect()
    }

    #[test]
    fn the_outcome_does_not_depend_on_the_pieces() {
        let cases: &[(&[&str], &str, &str, bool)] = &[
            (&["STOP"], "abSTOPcd", "ab", true),
            (&["STOP"], "abSTOcd", "abSTOcd", false),
            (&["STOP"], "abSTO", "abSTO", false),
            (&["aab"], "aaaab", "aa", true),
            (&["abcd", "bc"], "xabcd", "xa", true),
            (&["bc", "abc"], "xabc", "x", true),
            (&["é🦀"], "caé🦀!", "ca", true),
            (&["é🦀"], "caéé!", "caéé!", false),
            (&["\n\n"], "a\nb\n\nc", "a\nb", true),
            (&[], "abc", "abc", false),
            (&["abc"], "abc", "", true),
        ];
        for (list, text, want, stopped) in cases {
            for pieces in splits(text) {
                assert_eq!(run(list, &pieces), ((*want).to_owned(), *stopped), "{list:?} {pieces:?}");
            }
        }
    }

    #[test]
    fn holds_back_no_more_than_a_possible_beginning() {
        let mut stop = stops(&["STOP"]);
        assert_eq!(stop.push("abS"), StopStep { text: "ab".into(), stopped: false });
        assert_eq!(stop.push("T"), StopStep { text: String::new(), stopped: false });
        assert_eq!(stop.push("x"), StopStep { text: "STx".into(), stopped: false });
        assert_eq!(stop.push("STOP"), StopStep { text: String::new(), stopped: true });
        assert_eq!(stop.push("more"), StopStep { text: String::new(), stopped: true });
        assert_eq!(stop.flush(), "");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new(vec!["a".into(), String::new()]).is_err());
    }
}

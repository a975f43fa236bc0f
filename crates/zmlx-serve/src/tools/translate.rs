//! Turns what models write in place of JSON into JSON: single quotes, Python's constants, line ends in strings.

/// Turns a text into JSON, one character at a time. Text that is already JSON stays as it is.
#[derive(Debug, Default)]
pub(super) struct Translator {
    state: State,
    /// Number of open braces and brackets.
    depth: usize,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Outside,
    /// In a string with this quote.
    Text(char),
    /// After a backslash in such a string.
    Escape(char),
    /// In `\xNN`, which is Python's.
    Hex(char),
    /// In a word.
    Word(String),
}

impl Translator {
    /// Number of open braces and brackets.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// True outside of strings and words.
    pub(super) fn is_outside(&self) -> bool {
        self.state == State::Outside
    }

    /// Adds a character, and appends to `json` what is now certain.
    pub(super) fn push(&mut self, c: char, json: &mut String) {
        match std::mem::take(&mut self.state) {
            State::Outside => self.outside(c, json),
            State::Word(mut word) => {
                if c.is_ascii_alphanumeric() || c == '_' {
                    word.push(c);
                    self.state = State::Word(word);
                } else {
                    json.push_str(constant(&word));
                    self.outside(c, json);
                }
            }
            State::Text(quote) => match c {
                _ if c == quote => json.push('"'),
                '\\' => self.state = State::Escape(quote),
                _ => {
                    push_plain(c, json);
                    self.state = State::Text(quote);
                }
            },
            State::Escape(quote) => {
                self.state = State::Text(quote);
                match c {
                    '\'' => json.push('\''),
                    'x' => {
                        json.push_str("\\u00");
                        self.state = State::Hex(quote);
                    }
                    _ => {
                        json.push('\\');
                        json.push(c);
                    }
                }
            }
            // Two digits follow, which have the same meaning in JSON.
            State::Hex(quote) => {
                json.push(c);
                self.state = State::Text(quote);
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, json: &mut String) {
        if let State::Word(word) = std::mem::take(&mut self.state) {
            json.push_str(constant(&word));
        }
    }

    fn outside(&mut self, c: char, json: &mut String) {
        match c {
            '"' | '\'' => {
                json.push('"');
                self.state = State::Text(c);
            }
            '{' | '[' => {
                self.depth += 1;
                json.push(c);
            }
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                json.push(c);
            }
            _ if c.is_ascii_alphabetic() => self.state = State::Word(c.into()),
            _ => json.push(c),
        }
    }
}

/// Adds a character of a string. Characters that JSON does not allow there are escaped.
fn push_plain(c: char, json: &mut String) {
    match c {
        '"' => json.push_str("\\\""),
        '\n' => json.push_str("\\n"),
        '\r' => json.push_str("\\r"),
        '\t' => json.push_str("\\t"),
        c if c < ' ' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => json.push(c),
    }
}

fn constant(word: &str) -> &str {
    match word {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    }
}

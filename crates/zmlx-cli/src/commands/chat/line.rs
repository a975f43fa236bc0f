//! Parses the user's input: messages of one or more lines, and commands.

use anyhow::{Result, bail};

/// Encloses a message of several lines.
const FENCE: &str = "\"\"\"";

/// The commands, with their arguments and descriptions.
pub(super) const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "this list"),
    ("/reset", "", "clear the conversation, but keep the system message"),
    ("/system", "[TEXT]", "show or change the system message; \"\" removes it"),
    ("/retry", "", "answer the last message again"),
    ("/undo", "", "take back the last message and its answer"),
    ("/set", "[NAME VALUE]", "show the settings, or change one"),
    ("/stats", "", "show tokens, speed, and how full the context is"),
    ("/save", "FILE", "write the conversation and the settings to a file"),
    ("/load", "FILE", "continue the conversation of a file"),
    ("/exit", "", "leave; Ctrl-D does the same"),
];

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Nothing,
    Message(String),
    Help,
    Reset,
    /// `None` shows the system message.
    System(Option<String>),
    Retry,
    Undo,
    /// `None` shows the settings.
    Set(Option<(String, String)>),
    Stats,
    Save(String),
    Load(String),
    Exit,
}

/// True if the text continues on the next line: its last line ends with a backslash, or a `"""` is not closed.
pub(super) fn goes_on(text: &str) -> bool {
    match text.trim_start().strip_prefix(FENCE) {
        Some(fenced) => !fenced.trim_end().ends_with(FENCE),
        None => text.trim_end_matches(['\r', '\n']).ends_with('\\'),
    }
}

impl Input {
    /// Parses an input, with all of its lines.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        if let Some(fenced) = trimmed.strip_prefix(FENCE) {
            let inner = fenced.strip_suffix(FENCE).unwrap_or(fenced).trim_matches(['\r', '\n']);
            return Ok(if inner.trim().is_empty() { Self::Nothing } else { Self::Message(inner.to_owned()) });
        }
        if trimmed.is_empty() {
            return Ok(Self::Nothing);
        }
        let (word, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let is_command = word
            .strip_prefix('/')
            .is_some_and(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphabetic()));
        if is_command {
            return Self::command(word, rest.trim());
        }
        let lines: Vec<_> = trimmed.lines().map(|line| line.strip_suffix('\\').unwrap_or(line)).collect();
        Ok(Self::Message(lines.join("\n").trim_end().to_owned()))
    }

    fn command(word: &str, rest: &str) -> Result<Self> {
        let text = || rest.to_owned();
        let takes_nothing = COMMANDS.iter().any(|(name, arguments, _)| *name == word && arguments.is_empty());
        if takes_nothing && !rest.is_empty() {
            bail!("{word} takes no argument");
        }
        Ok(match word {
            "/help" => Self::Help,
            "/reset" => Self::Reset,
            "/system" if rest.is_empty() => Self::System(None),
            "/system" => Self::System(Some(if rest == "\"\"" { String::new() } else { text() })),
            "/retry" => Self::Retry,
            "/undo" => Self::Undo,
            "/set" if rest.is_empty() => Self::Set(None),
            "/set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Self::Set(Some((name.to_owned(), value.trim().to_owned()))),
                None => bail!("/set: expected a name and a value; /set alone shows them"),
            },
            "/stats" => Self::Stats,
            "/save" | "/load" if rest.is_empty() => bail!("{word}: expected a file"),
            "/save" => Self::Save(text()),
            "/load" => Self::Load(text()),
            "/exit" => Self::Exit,
            _ => bail!("{word}: no such command; /help lists them"),
        })
    }
}

/// The list of commands.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (name, arguments, what) in COMMANDS {
        text += &format!("{:<20} {what}\n", format!("{name} {arguments}"));
    }
    text + "To write several lines, end a line with \\, or put all of them between \"\"\" and \"\"\". Ctrl-C ends an answer.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Input {
        Input::Message(text.to_owned())
    }

    #[test]
    fn messages_of_several_lines() {
        for (text, goes) in [
            ("a", false),
            ("a\\", true),
            ("a\\\nb", false),
            ("\"\"\"a", true),
            ("\"\"\"", true),
            ("\"\"\"a\nb\\", true),
            ("\"\"\"a\nb\"\"\"\n", false),
            ("\"\"\"\"\"\"", false),
            ("a \"\"\"", false),
        ] {
            assert_eq!(goes_on(text), goes, "{text:?}");
        }
        assert_eq!(Input::parse(" a\\\nb\\\n c \n").unwrap(), message("a\nb\n c"));
        assert_eq!(Input::parse("\"\"\"\na\\\n\n/b\n\"\"\"").unwrap(), message("a\\\n\n/b"));
        // The input ended before the closing quotes.
        assert_eq!(Input::parse("\"\"\"a").unwrap(), message("a"));
        assert_eq!(Input::parse("\"\"\"\n\"\"\"").unwrap(), Input::Nothing);
        assert_eq!(Input::parse(" \n").unwrap(), Input::Nothing);
    }

    #[test]
    fn commands_are_words_of_letters() {
        assert_eq!(Input::parse("/exit\n").unwrap(), Input::Exit);
        assert_eq!(Input::parse("/system Be brief.").unwrap(), Input::System(Some("Be brief.".into())));
        assert_eq!(Input::parse("/system \"\"").unwrap(), Input::System(Some(String::new())));
        assert_eq!(Input::parse("/set temp 0.7").unwrap(), Input::Set(Some(("temp".into(), "0.7".into()))));
        assert_eq!(Input::parse("/save a b.json").unwrap(), Input::Save("a b.json".into()));
        for text in ["/etc/hosts is a file", "/ is the root", "// comment", "q"] {
            assert_eq!(Input::parse(text).unwrap(), message(text));
        }
        for text in ["/foo", "/set temp", "/save", "/exit now"] {
            assert!(Input::parse(text).is_err(), "{text}");
        }
    }
}

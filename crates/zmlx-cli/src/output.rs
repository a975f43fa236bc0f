//! Exit codes, error messages, and output to stdout and files.

mod files;

use std::borrow::Cow;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

pub(crate) use files::{check_output, remove_temporary, write_file};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command succeeded, and every check passed.
    Done,
    /// The command did its work, and a check failed.
    CheckFailed,
    /// The checkpoint was shown, but it cannot be used.
    Unusable,
    /// Ctrl-C was pressed before there was a result.
    Interrupted,
}

impl Outcome {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::CheckFailed => 1,
            Self::Unusable => 2,
            Self::Interrupted => 130,
        }
    }
}

static QUIET: AtomicBool = AtomicBool::new(false);
static SILENT: AtomicBool = AtomicBool::new(false);

/// From here on only results and errors are written.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether [`be_quiet`] was called.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// From here on nothing but errors is written, and no file: another rank writes the results.
pub(crate) fn be_silent() {
    be_quiet();
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether results are another rank's to write.
pub(crate) fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes a line to stderr. An error is ignored, because there is no other place to report it. The line is escaped,
/// because it may contain names and messages from files.
pub(crate) fn note(line: fmt::Arguments<'_>) {
    // In one piece: stderr is not buffered, and ranks share it.
    let line = format!("{}\n", escaped(&line.to_string()));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// A text for a terminal: control characters that it would execute are spelled out. Line ends and tabs stay.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    // Characters that change the direction of text can make it look like another text.
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_obeyed = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || turns(c);
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_obeyed(c) { plain.extend(c.escape_unicode()) } else { plain.push(c) }
    }
    Cow::Owned(plain)
}

/// Writes a value as one line of JSON to stdout.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string(value)?;
    text.push('\n');
    print(&text)
}

/// Writes a text to stdout.
pub(crate) fn print(text: &str) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.any(|e| e.kind() == ErrorKind::BrokenPipe)
}

/// The error and its causes, without those which an outer message already contains.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a text to the file `path`. Fails if the file exists, unless `force` is set.
pub(crate) fn write_new(path: &Path, force: bool, text: &str) -> Result<()> {
    check_output(path, force, &[])?;
    write_file(path, |out| Ok(out.write_all(text.as_bytes())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_sees_no_control_characters() {
        assert_eq!(escaped("a\tb\né🦀"), "a\tb\né🦀");
        assert_eq!(
            escaped("x\u{1b}[2J\u{7}\r\u{9b}\u{7f}\u{202e}"),
            "x\\u{1b}[2J\\u{7}\\u{d}\\u{9b}\\u{7f}\\u{202e}"
        );
    }

    #[test]
    fn causes_are_not_told_twice() {
        let error = anyhow::anyhow!("no such file").context("a.json: no such file").context("loading");
        assert_eq!(message(&error), "loading: a.json: no such file");
    }
}

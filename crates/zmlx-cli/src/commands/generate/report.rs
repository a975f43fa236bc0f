//! What `zmlx generate` prints.

use std::io::{self, IsTerminal as _, Write};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;
use zmlx_models::Generation;

use crate::output::{self, escaped, note, print, print_json};
use crate::table::{is_coloured, painted};

/// The line which mlx_lm.generate prints before and after the text.
const RULE: &str = "==========\n";

/// What is written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The text as it is generated. Statistics go to stderr.
    Text,
    /// The text as it is generated, between two rules, then the statistics.
    TextWithStatistics,
    /// One JSON object.
    Json,
}

/// Writes the text to stdout as it is generated, except for JSON.
#[derive(Debug)]
pub(super) struct Stream {
    format: Format,
    /// The text to print before the first piece.
    opening: Option<&'static str>,
    /// Whether stdout is a terminal.
    is_seen: bool,
    /// Whether the first piece was printed. If it was not, an error message needs no line end before it.
    is_begun: bool,
    /// The number of bytes of the text that were printed.
    n_printed: usize,
    failed: Option<io::Error>,
}

impl Stream {
    pub(super) fn new(format: Format, opening: Option<&'static str>) -> Self {
        let is_seen = io::stdout().is_terminal();
        Self { format, opening, is_seen, is_begun: false, n_printed: 0, failed: None }
    }

    /// Prints a piece of text. Returns false once a write to stdout has failed.
    pub(super) fn push(&mut self, piece: &str) -> bool {
        if self.format != Format::Json && !piece.is_empty() {
            self.begin();
            // A model may generate control sequences that a terminal would execute. A file gets the text unchanged.
            if self.is_seen {
                self.write(&escaped(piece))
            } else {
                self.write(piece)
            }
            self.n_printed += piece.len();
        }
        self.failed.is_none()
    }

    fn begin(&mut self) {
        if self.is_begun {
            return;
        }
        self.is_begun = true;
        if self.format == Format::TextWithStatistics {
            self.write(RULE);
        }
        if let Some(opening) = self.opening {
            let dimmed =
                if is_coloured() { painted(opening, Style::new().dimmed()) } else { opening.to_owned() };
            self.write(&dimmed);
        }
    }

    fn write(&mut self, text: &str) {
        if self.failed.is_none() && !output::is_silent() {
            let mut out = io::stdout().lock();
            self.failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// Prints the part of the whole text that was held back, and ends the last line.
    pub(super) fn end(mut self, whole: &str) -> Result<()> {
        self.begin();
        let rest = whole.get(self.n_printed..).unwrap_or_default();
        self.push(rest);
        match (self.failed, self.format) {
            (Some(e), _) => Err(e.into()),
            (None, Format::Text) => print("\n"),
            (None, Format::TextWithStatistics) => print(&format!("\n{RULE}")),
            (None, Format::Json) => Ok(()),
        }
    }

    /// Ends the line, so that an error message starts on a new one.
    pub(super) fn abandon(mut self) {
        if self.n_printed > 0 {
            self.push("\n");
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    text: &'a str,
    prompt_tps: f64,
    generation_tps: f64,
    peak_memory_bytes: Option<u64>,
    stop_reason: &'static str,
}

/// Prints the statistics in mlx_lm's words, or everything as JSON.
pub(super) fn print_report(
    prompt: &[u32],
    generation: &Generation,
    peak: Option<u64>,
    format: Format,
) -> Result<()> {
    if format == Format::Json {
        return print_json(&Report {
            prompt_tokens: prompt,
            tokens: &generation.tokens,
            text: &generation.text,
            prompt_tps: generation.prompt_tps(),
            generation_tps: generation.generation_tps(),
            peak_memory_bytes: peak,
            stop_reason: generation.finished.reason.name(),
        });
    }
    let mut text = format!(
        "Prompt: {} tokens, {:.3} tokens-per-sec\nGeneration: {} tokens, {:.3} tokens-per-sec\n",
        prompt.len(),
        generation.prompt_tps(),
        generation.tokens.len(),
        generation.generation_tps(),
    );
    if let Some(peak) = peak {
        text += &format!("Peak memory: {:.3} GB\n", peak as f64 / 1e9);
    }
    match format {
        Format::TextWithStatistics => print(&text),
        _ if output::is_quiet() => Ok(()),
        _ => {
            note(format_args!("{}", text.trim_end()));
            Ok(())
        }
    }
}

//! What `zmlx generate` prints.

use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;
use zmlx_models::Generation;

use crate::memory;
use crate::output::{print, print_json};

const RULE: &str = "==========\n";

/// Text that appears on stdout as it comes; or, for JSON, does not.
#[derive(Debug)]
pub(super) struct Stream {
    is_on: bool,
    /// Whether the line above the text was printed: with the first piece, so that an error before it stands alone.
    is_begun: bool,
    /// Bytes of the text that were printed.
    n_printed: usize,
    failed: Option<io::Error>,
}

impl Stream {
    pub(super) fn new(is_on: bool) -> Self {
        Self { is_on, is_begun: false, n_printed: 0, failed: None }
    }

    /// Prints a piece of text; false once stdout does not take it.
    pub(super) fn push(&mut self, piece: &str) -> bool {
        if self.is_on && !piece.is_empty() {
            self.begin();
            self.write(piece);
            self.n_printed += piece.len();
        }
        self.failed.is_none()
    }

    fn begin(&mut self) {
        if self.is_on && !self.is_begun {
            self.is_begun = true;
            self.write(RULE);
        }
    }

    fn write(&mut self, text: &str) {
        if self.failed.is_none() {
            let mut out = io::stdout().lock();
            self.failed = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// Prints what of the whole text was held back, and closes the block.
    pub(super) fn end(mut self, whole: &str) -> Result<()> {
        self.begin();
        let rest = whole.get(self.n_printed..).unwrap_or_default();
        self.push(rest);
        match self.failed {
            Some(e) => Err(e.into()),
            None if self.is_on => print(&format!("\n{RULE}")),
            None => Ok(()),
        }
    }

    /// Ends the line so that an error message stands on its own.
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

/// The statistics in mlx-lm's words, or everything as JSON.
pub(super) fn print_report(prompt: &[u32], generation: &Generation, json: bool) -> Result<()> {
    let peak = memory::peak_bytes();
    if json {
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
    print(&text)
}

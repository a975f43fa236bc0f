//! `zmlx perplexity`: measures how well a model predicts a text.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use zmlx_kernels::Backend;
use zmlx_models::{Checkpoint, Error, Estimate, Perplexity, PerplexityOptions, perplexity};

use crate::args::{BackendArgs, FusionArgs, ModelArgs, heading, positive};
use crate::engine::{self, About, Job};
use crate::interrupt::{self, Interrupted};
use crate::output::{Outcome, print, print_json};
use crate::progress::Progress;
use crate::source::{Source, read_text};

/// Arguments of `zmlx perplexity`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Two numbers are printed. The first is computed as by mlx_lm.perplexity: over every token except the first \
                  of each window. The second is computed as by llama-perplexity: over the second half of each window, where \
                  every token is predicted from a long context. Lower is better. Compare only numbers for the same text, \
                  tokenizer and context."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, in UTF-8. No token is put before it; see --first-token.
    #[arg(short, long, value_name = "TEXT")]
    file: PathBuf,
    /// The number of tokens of a window. The text is cut into windows, which are predicted independently of each other.
    /// Tokens after the last whole window are not used.
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, visible_alias = "sequence-length", value_parser = positive())]
    context: usize,
    /// The number of tokens from the beginning of a window to that of the next one. The default is the context, so that
    /// windows do not overlap. With a smaller number they overlap, and only the last TOKENS of each window are scored:
    /// this takes longer and gives every token a long context.
    #[arg(long, value_name = "TOKENS", value_parser = positive())]
    stride: Option<usize>,
    /// Compute at most N windows. The default is all windows.
    #[arg(long, value_name = "N", visible_alias = "chunks", value_parser = positive())]
    windows: Option<usize>,
    /// A token that replaces the first one of each window, for models that expect a special token (BOS) before every
    /// text.
    #[arg(long, value_name = "ID")]
    first_token: Option<u32>,
    #[command(flatten)]
    fusion: FusionArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object.
    #[arg(long, help_heading = heading::OUTPUT)]
    json: bool,
}

/// Computes the perplexity and prints it.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&args.model)?;
    let text = read_text(&args.file)?;
    let checkpoint = source.checkpoint()?;
    let tokens = source.need_tokenizer()?.encode(&text)?;
    let limit = checkpoint.architecture().max_position_embeddings;
    if args.context > limit {
        return Err(Error::ContextLength { n_tokens: args.context, limit }.into());
    }
    // Checked before the model is loaded, which may take minutes.
    if tokens.len() < args.context {
        let (n_tokens, context) = (tokens.len(), args.context);
        return Err(Error::TextTooShort { n_tokens, context }).context(args.file.display().to_string());
    }
    interrupt::install()?;
    engine::with_backend(args.backend, Measure { checkpoint, tokens, args })
}

struct Measure {
    checkpoint: Checkpoint,
    tokens: Vec<u32>,
    args: Args,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    backend: &'a str,
    /// The number of tokens of the text.
    n_tokens: usize,
    #[serde(flatten)]
    found: Perplexity,
    /// The time in seconds, without loading the model.
    seconds: f64,
    tokens_per_second: f64,
}

impl Job for Measure {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let Self { checkpoint, tokens, args } = self;
        let (model, _) = engine::load(backend, &checkpoint)?;
        let fusion = about.fusion(&model, args.fusion)?;
        let options = PerplexityOptions {
            stride: args.stride.unwrap_or(args.context),
            max_windows: args.windows,
            first_token: args.first_token,
            ..PerplexityOptions::new(args.context)
        };
        let mut bar = Progress::new("Windows");
        let busy = interrupt::begin();
        let started = Instant::now();
        let found = perplexity(&model, &tokens, &options, &fusion, &mut |done, of| {
            bar.update(done, of);
            if busy.is_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let found = match found {
            Err(Error::Stopped) => return Err(Interrupted.into()),
            found => found?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let tokens_per_second = found.n_computed as f64 / seconds;
        let report = Report {
            model: checkpoint.name(),
            backend: &about.text,
            n_tokens: tokens.len(),
            found,
            seconds,
            tokens_per_second,
        };
        if args.json {
            print_json(&report)?
        } else {
            print(&report.text())?
        }
        Ok(Outcome::Done)
    }
}

impl Report<'_> {
    fn text(&self) -> String {
        let Perplexity { n_windows, context, stride, every_token, second_half, .. } = &self.found;
        let overlap = if stride < context { format!(", one every {stride}") } else { String::new() };
        let mut text = format!(
            "{}: {} tokens, {n_windows} windows of {context}{overlap}\n\n",
            self.model, self.n_tokens
        );
        let mut line = |estimate: &Estimate, what: &str| {
            let Estimate { n_scored, perplexity, standard_error, .. } = estimate;
            text += &format!("Perplexity {perplexity:.4} ± {standard_error:.4}  {what}, {n_scored} scored\n");
        };
        line(every_token, "every token (as mlx_lm.perplexity)");
        if let Some(second_half) = second_half {
            line(second_half, "second half of each window (as llama-perplexity)");
        }
        text +=
            &format!("\n{:.1} tokens/s, {:.2} s, {}\n", self.tokens_per_second, self.seconds, self.backend);
        text
    }
}

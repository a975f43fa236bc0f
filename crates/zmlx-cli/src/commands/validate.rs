//! `zmlx validate`: do the stock, concatenated and fused paths give the same tokens, and the right ones?

mod reference;
mod tokens;

use anyhow::Result;
use serde::Serialize;
use zmlx_kernels::{Backend, Fusion};
use zmlx_models::{Checkpoint, Model, Tokenizer};
use zmlx_oracle::golden::Greedy;

use crate::args::{BackendArgs, ModelArgs, RouteArgs, positive};
use crate::embedded;
use crate::engine::{self, About, Job, Rounding};
use crate::output::{Outcome, note, print, print_json};
use crate::progress::Progress;
use crate::prompts;
use crate::source::Source;
use crate::table::Table;
use reference::{Reference, ReferenceCheck};
use tokens::{TokenCheck, Verdict};

const PATHS: [(&str, Fusion); 3] =
    [("stock", Fusion::STOCK), ("concat", Fusion::CONCAT), ("fused", Fusion::FUSED)];

/// Arguments of `zmlx validate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens to decode after each prompt.
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = positive())]
    max_tokens: usize,
    /// How often each path decodes each prompt: all runs must give the same bits.
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = positive())]
    runs: usize,
    #[command(flatten)]
    route: RouteArgs,
    #[command(flatten)]
    backend: BackendArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A prompt with, for the built-in model, the tokens that the reference engine recorded.
#[derive(Debug)]
struct Prompt {
    name: String,
    tokens: Vec<u32>,
    recorded: Option<Recorded>,
}

/// The reference engine's tokens, by the type that it computed in.
#[derive(Debug)]
struct Recorded {
    f32: Greedy,
    bf16: Greedy,
}

/// Decodes every prompt on every path and compares.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let source = Source::resolve(&args.model)?;
    let checkpoint = source.checkpoint()?;
    let prompts = match (&source, source.tokenizer()?) {
        (Source::Embedded, _) => recorded_prompts()?,
        (Source::Dir(_), Some(tokenizer)) => neutral_prompts(&tokenizer)?,
        (Source::Dir(_), None) => seeded_prompts(checkpoint.config().vocab_size()),
    };
    engine::with_backend(args.backend, Validate { source, checkpoint, prompts, args })
}

fn recorded_prompts() -> Result<Vec<Prompt>> {
    let prompt = |p: zmlx_oracle::golden::GoldenPrompt| Prompt {
        name: p.name,
        tokens: p.prompt_tokens,
        recorded: Some(Recorded { f32: p.truth_f32, bf16: p.bf16 }),
    };
    Ok(embedded::golden()?.prompts.into_iter().map(prompt).collect())
}

fn neutral_prompts(tokenizer: &Tokenizer) -> Result<Vec<Prompt>> {
    let prompt = |(name, text): &(&str, &str)| {
        Ok(Prompt { name: (*name).to_owned(), tokens: tokenizer.encode(text)?, recorded: None })
    };
    prompts::NEUTRAL.iter().map(prompt).collect()
}

fn seeded_prompts(vocab: usize) -> Vec<Prompt> {
    let prompt = |n: usize| Prompt {
        name: format!("{n} seeded tokens"),
        tokens: prompts::seeded_tokens(n as u64, n, vocab),
        recorded: None,
    };
    [1, 2, 17, 64].map(prompt).into()
}

struct Validate {
    source: Source,
    checkpoint: Checkpoint,
    prompts: Vec<Prompt>,
    args: Args,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    backend: &'a str,
    max_tokens: usize,
    runs: usize,
    /// A flip is explained below this margin, as a part of the logits' spread.
    margin_bound: f64,
    /// Most relative root mean square of the fused path's logits against the reference's.
    reference_bound: f64,
    tokens: Vec<TokenCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Vec<ReferenceCheck>>,
    verdict: Verdict,
}

impl Job for Validate {
    fn run<B: Backend>(self, backend: B, about: &About) -> Result<Outcome> {
        let (model, _) = engine::load(backend, &self.checkpoint)?;
        let mut reference = Reference::open(&self.source, &self.checkpoint)?;
        let has_reference = reference.is_some();
        let fused = self.args.route.apply(Fusion::FUSED, model.config())?;
        let mut progress = Progress::new("Validating");
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        for (i, prompt) in self.prompts.iter().enumerate() {
            let stock = self.check_tokens(&model, prompt, about.rounding, &mut tokens)?;
            if let Some(reference) = &mut reference {
                // The last token may lie just past the context.
                let limit = model.config().max_position_embeddings();
                let sequence: Vec<u32> = prompt.tokens.iter().chain(&stock).copied().take(limit).collect();
                logits.push(reference.check(&model, &prompt.name, &sequence, &fused, about.rounding)?);
            }
            progress.update(i + 1, self.prompts.len());
        }
        let verdicts = tokens.iter().map(|t| t.verdict).chain(logits.iter().map(|l| l.verdict));
        let report = Report {
            model: self.checkpoint.name(),
            backend: &about.text,
            max_tokens: self.args.max_tokens,
            runs: self.args.runs,
            margin_bound: tokens::margin_bound(about.rounding),
            reference_bound: reference::max_rel_rms(about.rounding),
            verdict: verdicts.max().unwrap_or(Verdict::Fail),
            tokens,
            reference: has_reference.then_some(logits),
        };
        if self.args.json {
            print_json(&report)?;
        } else {
            print(&report.text())?;
        }
        if report.verdict == Verdict::Fail {
            note(format_args!("error: {}: the paths do not agree", report.model));
            return Ok(Outcome::CheckFailed);
        }
        Ok(Outcome::Done)
    }
}

impl Validate {
    /// Compares each path with the stock one and that with the recording, if there is one; returns the stock tokens.
    fn check_tokens<B: Backend>(
        &self,
        model: &Model<B>,
        prompt: &Prompt,
        rounding: Rounding,
        checks: &mut Vec<TokenCheck>,
    ) -> Result<Vec<u32>> {
        let decode = |fusion: &Fusion| -> Result<_> {
            let fusion = self.args.route.apply(*fusion, model.config())?;
            tokens::decode(model, prompt, self.args.max_tokens, self.args.runs, &fusion)
        };
        let (name, margin_bound) = (&prompt.name, tokens::margin_bound(rounding));
        let stock = decode(&PATHS[0].1)?;
        if let Some(recorded) = &prompt.recorded {
            let want = match rounding {
                Rounding::F32 => &recorded.f32,
                Rounding::Checkpoint => &recorded.bf16,
            };
            let n_tokens = self.args.max_tokens;
            checks.push(TokenCheck::against_recording(name, want, &stock, n_tokens, margin_bound));
        }
        for (path, fusion) in &PATHS[1..] {
            checks.push(TokenCheck::of(name, path, &stock, &decode(fusion)?, margin_bound));
        }
        Ok(stock.tokens())
    }
}

impl Report<'_> {
    fn text(&self) -> String {
        let mut text = format!("{} on {}\n", self.model, self.backend);
        text += &format!(
            "Greedy tokens; a flip is explained where the margin is below {:.0e} of the logits' spread\n\n",
            self.margin_bound
        );
        let mut table =
            Table::new(&["prompt", "comparison", "tokens", "first flip", "margin", "bound", "verdict"]);
        for t in &self.tokens {
            let number = |x: Option<f64>| x.map_or_else(|| "-".into(), |x| format!("{x:.1e}"));
            table.row(vec![
                t.prompt.clone(),
                t.comparison.clone(),
                t.n_tokens.to_string(),
                t.first_divergence.map_or_else(|| "-".into(), |i| i.to_string()),
                number(t.margin),
                number(t.bound),
                t.verdict.name().into(),
            ]);
        }
        text += &table.render();
        if let Some(reference) = &self.reference {
            text += &format!(
                "\nLogits of the fused path and of the reference in f32: at most {:.0e} of the reference's root mean \
                 square\n\n",
                self.reference_bound
            );
            let mut table = Table::new(&["prompt", "tokens", "max abs", "rel rms", "verdict"]);
            for r in reference {
                table.row(vec![
                    r.prompt.clone(),
                    r.n_tokens.to_string(),
                    format!("{:.1e}", r.max_abs),
                    format!("{:.1e}", r.rel_rms),
                    r.verdict.name().into(),
                ]);
            }
            text += &table.render();
        }
        text + &format!("\n{}\n", self.verdict.name())
    }
}

//! `zmlx`: generates text with mixture-of-experts checkpoints of MLX, and inspects, measures and validates them.
//!
//! Exit codes: 0 success, 1 a check failed, 2 wrong usage or bad input, 130 ended by Ctrl-C before there was a result.
#![forbid(unsafe_code)]
// These macros panic if the reader of the output is gone.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(not(feature = "proof"), allow(dead_code, reason = "what only the commands of the feature use"))]

mod args;
#[cfg(feature = "proof")]
mod build_info;
mod commands;
mod embedded;
mod engine;
mod hub;
mod interrupt;
mod memory;
#[cfg(all(test, feature = "proof"))]
mod mutants;
mod output;
mod progress;
#[cfg(feature = "proof")]
mod prompts;
mod ranks;
mod source;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
use anyhow::Result;
#[cfg(feature = "shell")]
use clap::CommandFactory;
use clap::{Parser, Subcommand};

use output::{Outcome, note};

/// Runs MLX-quantised mixture-of-experts language models with fused kernels, and checks that their tokens are right.
#[derive(Debug, Parser)]
#[command(name = "zmlx", version, propagate_version = true)]
#[cfg_attr(
    not(feature = "proof"),
    command(
        after_help = "This build has no bench, validate, golden and capsule: they need the feature `proof`."
    )
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print more on stderr: backend, fused ops, times, and why the text ended. RUST_LOG selects in more detail.
    #[arg(short, long, global = true, help_heading = "Messages", display_order = 1000)]
    verbose: bool,
    /// Print only results and errors: no statistics, progress bars or warnings.
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Messages",
        display_order = 1001
    )]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer or continue a prompt.
    Generate(commands::generate::Args),
    /// Start a command as several processes, on one machine or several, which share a model.
    Launch(commands::launch::Args),
    /// Talk to a model.
    Chat(commands::chat::Args),
    /// Answer requests over HTTP, as OpenAI's and Anthropic's servers do.
    #[cfg(feature = "serve")]
    Serve(Box<commands::serve::Args>),
    /// Write the logits of a token sequence to a safetensors file.
    Logits(commands::logits::Args),
    /// Show the architecture, the formats and the memory use of a model, and check every tensor.
    Inspect(commands::inspect::Args),
    /// Convert a model in Hugging Face's layout to MLX's format, and quantise it.
    Convert(Box<commands::convert::Args>),
    /// Measure how well a model predicts a text.
    Perplexity(commands::perplexity::Args),
    /// Measure how fast a model runs on the stock, concatenated and fused paths.
    #[cfg(feature = "proof")]
    Bench(commands::bench::Args),
    /// Show what this machine and this build can do, and check every fused op on the weights of the model.
    Doctor(commands::doctor::Args),
    /// Check that all paths give the same tokens, and the right ones.
    #[cfg(feature = "proof")]
    Validate(commands::validate::Args),
    /// Download a model from the Hugging Face hub, and print its folder.
    #[cfg(feature = "hub")]
    Pull(commands::pull::Args),
    /// List, delete or verify the models in the Hugging Face cache.
    Models(commands::models::Args),
    /// Show and compare the records of benches and validations, and write reports from them.
    #[cfg(feature = "proof")]
    Capsule(commands::capsule::Args),
    /// Record the tokens of a model, and check that they stay the same.
    #[cfg(feature = "proof")]
    Golden(commands::golden::Args),
    /// Print a script with which a shell completes zmlx's arguments.
    #[cfg(feature = "shell")]
    Completions(commands::shell::CompletionsArgs),
    /// Print the man page of zmlx or of one of its commands: `zmlx man | man -l -`.
    #[cfg(feature = "shell")]
    Man(commands::shell::ManArgs),
}

impl Command {
    /// The commands that several ranks may run by their names, the others by one.
    fn name(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::Logits(_) => "logits",
            #[cfg(feature = "proof")]
            Self::Bench(_) => "bench",
            #[cfg(feature = "serve")]
            Self::Serve(_) => "serve",
            _ => "other commands",
        }
    }
}

fn main() -> ExitCode {
    engine::prepare();
    let cli = Cli::parse_from(arguments());
    // `convert` has its own --quiet, because its -q means --quantize.
    if cli.quiet || matches!(&cli.command, Command::Convert(args) if args.quiet) {
        output::be_quiet();
    }
    let verbose = cli.verbose && !ranks::is_silent();
    if ranks::is_silent() {
        output::be_silent();
    }
    start_log(verbose, &cli.command);
    let ends_itself = match &cli.command {
        // A server handles signals itself: it first finishes the answers in progress.
        #[cfg(feature = "serve")]
        Command::Serve(_) => true,
        // A launcher ends its ranks first.
        Command::Launch(_) => true,
        _ => false,
    };
    let taken = if ends_itself { Ok(()) } else { interrupt::take_signals() };
    if let Err(error) = taken.and_then(|()| interrupt::watch_files()) {
        tracing::warn!("{error}: a signal will end this process at once");
    }
    let done = ranks::join(cli.command.name()).and_then(|()| run(cli.command, verbose));
    let (code, error) = match done {
        Ok(outcome) => (outcome.exit_code(), None),
        // The reader of the output is gone, as with `zmlx … | head`. That is not an error.
        Err(error) if output::is_broken_pipe(&error) => {
            (0, Some("the reader of the output has gone".to_owned()))
        }
        Err(error) if error.is::<interrupt::Interrupted>() => {
            (Outcome::Interrupted.exit_code(), Some(error.to_string()))
        }
        Err(error) => {
            let text = output::message(&error);
            match ranks::shard() {
                Some(shard) => note(format_args!("error: rank {}: {text}", shard.rank)),
                None => note(format_args!("error: {text}")),
            }
            (2, Some(text))
        }
    };
    ranks::leave(code, error.as_deref());
    ExitCode::from(code)
}

fn run(command: Command, verbose: bool) -> Result<Outcome> {
    match command {
        Command::Generate(args) => commands::generate::run(args, verbose),
        Command::Launch(args) => commands::launch::run(args),
        Command::Chat(args) => commands::chat::run(args, verbose),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(*args),
        Command::Logits(args) => commands::logits::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Convert(args) => commands::convert::run(*args),
        Command::Perplexity(args) => commands::perplexity::run(args),
        #[cfg(feature = "proof")]
        Command::Bench(args) => commands::bench::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        #[cfg(feature = "proof")]
        Command::Validate(args) => commands::validate::run(args),
        #[cfg(feature = "hub")]
        Command::Pull(args) => commands::pull::run(args),
        Command::Models(args) => commands::models::run(args),
        #[cfg(feature = "proof")]
        Command::Capsule(args) => commands::capsule::run(args),
        #[cfg(feature = "proof")]
        Command::Golden(args) => commands::golden::run(args),
        #[cfg(feature = "shell")]
        Command::Completions(args) => commands::shell::completions(args, Cli::command()),
        #[cfg(feature = "shell")]
        Command::Man(args) => commands::shell::man(args, Cli::command()),
    }
}

/// The arguments, with `-np` of llama-server replaced by its long name. clap would take these two letters for two
/// flags.
fn arguments() -> Vec<OsString> {
    let mut is_serve = false;
    let named = |argument: OsString| {
        is_serve |= argument == "serve";
        if is_serve && argument == "-np" { "--parallel".into() } else { argument }
    };
    std::env::args_os().map(named).collect()
}

fn start_log(verbose: bool, command: &Command) {
    use tracing_subscriber::EnvFilter;
    let default = match (verbose, output::is_quiet()) {
        (true, _) => "info",
        (false, true) => "error",
        (false, false) => "warn",
    };
    let default = match command {
        // A server logs each request.
        #[cfg(feature = "serve")]
        Command::Serve(args) if !verbose && !output::is_quiet() => args.log_level(),
        _ => default,
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(AutoStream::choice(&std::io::stderr()) != ColorChoice::Never)
        .without_time()
        .with_target(false)
        .init();
}

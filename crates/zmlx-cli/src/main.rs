//! `zmlx`: generate text with MLX mixture-of-experts checkpoints, look into them, bench and validate them.
//!
//! Exit codes: 0 done, 1 a check failed, 2 usage or bad input, 130 ended by Ctrl-C before there was a result.
#![forbid(unsafe_code)]
// The macros panic where the reader of the output has gone.
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(not(feature = "proof"), allow(dead_code, reason = "what only the commands of the feature use"))]

mod args;
#[cfg(feature = "proof")]
mod capsule;
mod commands;
mod embedded;
mod engine;
#[cfg(feature = "proof")]
mod greedy;
mod hub;
mod interrupt;
mod memory;
#[cfg(all(test, feature = "proof"))]
mod mutants;
mod output;
mod progress;
#[cfg(feature = "proof")]
mod prompts;
mod source;
mod table;

use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};
#[cfg(feature = "shell")]
use clap::CommandFactory;
use clap::{Parser, Subcommand};

use output::{Outcome, note};

/// Decodes MLX-quantised mixture-of-experts language models with fused kernels.
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
    /// Tell more on stderr: backend, fusion, times, why the text ended. RUST_LOG chooses more finely.
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Only results and errors: no progress bars, no warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Continue a prompt.
    Generate(commands::generate::Args),
    /// Talk to a model, line by line.
    Chat(commands::chat::Args),
    /// Write the logits of a token sequence to a safetensors file.
    Logits(commands::logits::Args),
    /// Show a checkpoint's architecture, formats and memory needs, and check every tensor.
    Inspect(commands::inspect::Args),
    /// Measure tokens per second of the stock, concatenated and fused paths on the same weights.
    #[cfg(feature = "proof")]
    Bench(commands::bench::Args),
    /// Show what this machine and this build can do, and check each fused op on the model's own weights.
    Doctor(commands::doctor::Args),
    /// Compare the tokens of the stock, concatenated and fused paths, and small models with the reference.
    #[cfg(feature = "proof")]
    Validate(commands::validate::Args),
    /// Download a model from the Hugging Face hub, and print its folder.
    #[cfg(feature = "hub")]
    Pull(commands::pull::Args),
    /// List the models in the Hugging Face cache, delete or verify them.
    Models(commands::models::Args),
    /// Look at records of benches and validations, compare them, and make a report of them.
    #[cfg(feature = "proof")]
    Capsule(commands::capsule::Args),
    /// Record what a model says, and check that it still says it.
    #[cfg(feature = "proof")]
    Golden(commands::golden::Args),
    /// Print the script that makes a shell complete zmlx's arguments.
    #[cfg(feature = "shell")]
    Completions(commands::shell::CompletionsArgs),
    /// Print the man page of zmlx or of one of its commands: `zmlx man | man -l -`.
    #[cfg(feature = "shell")]
    Man(commands::shell::ManArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.quiet {
        output::be_quiet();
    }
    start_log(cli.verbose);
    let done = match cli.command {
        Command::Generate(args) => commands::generate::run(args, cli.verbose),
        Command::Chat(args) => commands::chat::run(args, cli.verbose),
        Command::Logits(args) => commands::logits::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
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
    };
    match done {
        Ok(outcome) => outcome.exit_code(),
        // Whoever read the output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => Outcome::Interrupted.exit_code(),
        Err(error) => {
            note(format_args!("error: {}", output::message(&error)));
            ExitCode::from(2)
        }
    }
}

fn start_log(verbose: bool) {
    use tracing_subscriber::EnvFilter;
    let default = match (verbose, output::is_quiet()) {
        (true, _) => "info",
        (false, true) => "error",
        (false, false) => "warn",
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

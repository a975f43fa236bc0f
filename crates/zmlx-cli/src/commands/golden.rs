//! `zmlx golden`: record what a model says, and hold later builds, backends and machines to it.

mod check;
mod record;
mod report;

use anyhow::Result;

use crate::output::Outcome;

/// Arguments of `zmlx golden`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Decode prompts greedily and keep the tokens with their margins in a golden file.
    Record(record::Args),
    /// Decode a golden file's prompts again. A token that differs beyond doubt ends with exit code 1, a model that is not
    /// the recorded one with 2.
    Check(check::Args),
}

pub(crate) fn run(args: Args) -> Result<Outcome> {
    match args.command {
        Command::Record(args) => record::run(args),
        Command::Check(args) => check::run(args),
    }
}

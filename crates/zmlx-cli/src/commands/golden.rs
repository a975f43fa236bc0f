//! `zmlx golden`: records the tokens of a model, and checks later builds, other backends and other machines against
//! them.

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
    /// Decode prompts greedily, and write the tokens with their margins and probabilities to a golden file.
    Record(record::Args),
    /// Decode the prompts of a golden file again and compare. The exit code is 1 if a token is wrong, and 2 if the
    /// check cannot run.
    Check(check::Args),
}

pub(crate) fn run(args: Args) -> Result<Outcome> {
    match args.command {
        Command::Record(args) => record::run(args),
        Command::Check(args) => check::run(args),
    }
}

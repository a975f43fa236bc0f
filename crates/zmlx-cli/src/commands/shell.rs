//! `zmlx completions` and `zmlx man`: scripts for shells and manual pages, generated from the definitions of the
//! arguments.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::output::{Outcome, print};

/// Arguments of `zmlx completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "bash: zmlx completions bash > ~/.local/share/bash-completion/completions/zmlx\n\
    zsh:  zmlx completions zsh > ~/.zfunc/_zmlx   (with fpath+=~/.zfunc ahead of compinit)\n\
    fish: zmlx completions fish > ~/.config/fish/completions/zmlx.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Arguments of `zmlx man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The command to describe. The default is zmlx itself.
    command: Option<String>,
    /// Write the pages of zmlx and all its commands into this folder instead of stdout.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// Prints the script.
pub(crate) fn completions(args: CompletionsArgs, mut cli: Command) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "zmlx", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(Outcome::Done)
}

/// Prints a page, or writes them all.
pub(crate) fn man(args: ManArgs, mut cli: Command) -> Result<Outcome> {
    if let Some(dir) = args.out {
        let what = || dir.display().to_string();
        std::fs::create_dir_all(&dir).with_context(what)?;
        clap_mangen::generate_to(cli, &dir).with_context(what)?;
        return Ok(Outcome::Done);
    }
    // Fills in the full names of subcommands and the global arguments.
    cli.build();
    let command = match &args.command {
        None => &cli,
        Some(name) => {
            cli.find_subcommand(name).with_context(|| format!("{name}: zmlx has no such command"))?
        }
    };
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(Outcome::Done)
}

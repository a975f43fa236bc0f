//! `zmlx pull`: downloads a model.

use anyhow::{Result, bail};
use zmlx_hub::{Cache, Environment, Error, ModelName};
use zmlx_models::Checkpoint;

use crate::hub;
use crate::output::{Outcome, note, print};

/// Arguments of `zmlx pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model on the hub: org/name or org/name@revision.
    #[arg(value_name = "ID[@REV]")]
    model: ModelName,
    /// A branch, a tag or a commit; the same as @REV.
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
}

/// Downloads the current version of the model on the hub into the cache, and prints its folder.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let name = match (args.model.revision(), args.revision) {
        (Some(_), Some(_)) => bail!("{}: the revision is given twice, here and with --revision", args.model),
        (None, Some(revision)) => args.model.at(&revision)?,
        (_, None) => args.model,
    };
    let environment = Environment::of_process();
    let dir = hub::download(&name, &environment)?;
    // The download is complete. Whether the model can be loaded is only a warning.
    match Cache::of(&environment)?.find(&name) {
        Ok(_) => {
            if let Err(error) = Checkpoint::open(&dir) {
                note(format_args!("warning: this model cannot be loaded: {error}"));
            }
        }
        Err(Error::Incomplete { why, .. }) => {
            note(format_args!("warning: the model on the hub is incomplete: {why}"));
        }
        Err(error) => return Err(error.into()),
    }
    print(&format!("{}\n", dir.display()))?;
    Ok(Outcome::Done)
}

//! `zmlx models`: lists, deletes and verifies the models in the cache.

use anyhow::Result;
use clap::Subcommand;
use zmlx_hub::{Cache, CachedModel, CachedRevision, Environment, ModelName};

use crate::output::{Outcome, note, print, print_json};
use crate::table::Table;
use zmlx_models::human_bytes;

/// Arguments of `zmlx models`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print one JSON array.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the models; the same as `zmlx models` without a subcommand.
    List {
        /// Print one JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Delete models, or single revisions.
    #[command(visible_alias = "remove")]
    Rm {
        /// org/name, or org/name@revision.
        #[arg(value_name = "ID[@REV]", required = true)]
        models: Vec<ModelName>,
    },
    /// Hash the files again and compare with the hashes of the download. The exit code is 1 if a file differs or is
    /// missing.
    #[cfg(feature = "hub")]
    Verify {
        /// org/name, or org/name@revision. The default is all models.
        #[arg(value_name = "ID[@REV]")]
        models: Vec<ModelName>,
    },
}

/// Lists, deletes or verifies.
pub(crate) fn run(args: Args) -> Result<Outcome> {
    let cache = Cache::of(&Environment::of_process())?;
    match args.action {
        None => list(&cache, args.json),
        Some(Action::List { json }) => list(&cache, json),
        Some(Action::Rm { models }) => {
            for name in models {
                let bytes = cache.remove(&name)?;
                note(format_args!("{name}: deleted, {} freed", human_bytes(bytes)));
            }
            Ok(Outcome::Done)
        }
        #[cfg(feature = "hub")]
        Some(Action::Verify { models }) => verify(&cache, models),
    }
}

fn list(cache: &Cache, json: bool) -> Result<Outcome> {
    let models = cache.list()?;
    if json {
        print_json(&models)?;
        return Ok(Outcome::Done);
    }
    if models.is_empty() {
        note(format_args!("no models in {}", cache.root().display()));
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["model", "revision", "commit", "files", "size", "state"]);
    for model in &models {
        for revision in &model.revisions {
            table.row(row(model, revision));
        }
        if model.revisions.is_empty() || model.unfinished_bytes > 0 {
            let size = human_bytes(model.unfinished_bytes);
            let cells = [model.id.as_str(), "", "", "", &size, "unfinished download"];
            table.row(cells.map(str::to_owned).into());
        }
    }
    let total = models.iter().map(|model| model.bytes).sum();
    print(&format!("{}{} in {}\n", table.render(), human_bytes(total), cache.root().display()))?;
    Ok(Outcome::Done)
}

fn row(model: &CachedModel, revision: &CachedRevision) -> Vec<String> {
    let commit: String = revision.commit.chars().take(8).collect();
    let state = revision.lacks.as_deref().map_or("complete".to_owned(), |why| format!("incomplete: {why}"));
    let (n_files, size) = (revision.n_files.to_string(), human_bytes(revision.bytes));
    vec![model.id.clone(), revision.refs.join(", "), commit, n_files, size, state]
}

#[cfg(feature = "hub")]
fn verify(cache: &Cache, mut models: Vec<ModelName>) -> Result<Outcome> {
    if models.is_empty() {
        models = cache.list()?.iter().map(|model| model.id.parse()).collect::<Result<_, _>>()?;
    }
    let mut outcome = Outcome::Done;
    for name in models {
        let mut told = Ok(());
        let verified = cache.verify(&name, |file| {
            if let Some(fault) = &file.fault
                && told.is_ok()
            {
                told = print(&crate::output::escaped(&format!("{}: {fault}\n", file.path.display())));
            }
        })?;
        told?;
        let n_faults = verified.iter().filter(|file| file.fault.is_some()).count();
        let size = human_bytes(verified.iter().map(|file| file.bytes).sum());
        if n_faults == 0 {
            print(&format!("{name}: ok ({} files, {size})\n", verified.len()))?;
        } else {
            print(&format!(
                "{name}: {n_faults} faults; `zmlx models rm {name}` and `zmlx pull {name}` download it again\n"
            ))?;
            outcome = Outcome::CheckFailed;
        }
    }
    Ok(outcome)
}

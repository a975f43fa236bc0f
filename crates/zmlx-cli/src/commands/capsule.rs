//! `zmlx capsule`: look at capsules, compare them, and make a report of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::capsule::grid::plain;
use crate::capsule::{Capsule, compare, facts, report};
use crate::output::{self, Outcome, note, print};

/// Arguments of `zmlx capsule`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show all that a capsule says.
    Show {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show in what two capsules differ, and what both measured.
    Diff {
        #[arg(value_name = "A")]
        a: PathBuf,
        #[arg(value_name = "B")]
        b: PathBuf,
    },
    /// Is B worse than A? A test that is slower or a verdict that is worse ends with exit code 1.
    Check {
        #[arg(value_name = "A")]
        a: PathBuf,
        #[arg(value_name = "B")]
        b: PathBuf,
        /// How much longer a test may take.
        #[arg(long, value_name = "PERCENT", default_value_t = 5.0, allow_negative_numbers = true, value_parser = percent)]
        threshold: f64,
        /// Compare speeds of different machines, too.
        #[arg(long)]
        any_machine: bool,
    },
    /// Make one document of many capsules: a page with plots (.html) or tables (.md).
    Report {
        /// Capsules, and folders whose .json files are capsules.
        #[arg(value_name = "FILE|DIR", required = true)]
        paths: Vec<PathBuf>,
        /// The file to write; its extension, html or md, says what.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
    },
    /// Print the JSON Schema of capsules.
    Schema,
}

pub(crate) fn run(args: Args) -> Result<Outcome> {
    match args.command {
        Command::Show { file } => show(&Capsule::read(&file)?),
        Command::Diff { a, b } => diff(&Capsule::read(&a)?, &Capsule::read(&b)?),
        Command::Check { a, b, threshold, any_machine } => {
            check(&Capsule::read(&a)?, &Capsule::read(&b)?, threshold, any_machine)
        }
        Command::Report { paths, output, force } => write_report(&paths, &output, force),
        Command::Schema => {
            let schema = schemars::schema_for!(Capsule);
            print(&(serde_json::to_string_pretty(&schema)? + "\n"))?;
            Ok(Outcome::Done)
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0);
    value.ok_or_else(|| "expected a number of percent, 0 or more".to_owned())
}

fn show(capsule: &Capsule) -> Result<Outcome> {
    let mut text = String::new();
    for row in facts::about(capsule).rows {
        if let [what, value] = &row[..] {
            text += &format!("{what:<15} {}\n", plain(value));
        }
    }
    if let Some(bench) = &capsule.bench {
        text += &format!("\n{}", facts::speed(bench).text());
        if !bench.profile.is_empty() {
            text += &format!("\n{}", facts::profile(bench).text());
        }
    }
    if let Some(record) = &capsule.validate {
        for (title, grid) in facts::validation(record) {
            text += &format!("\n{title}\n\n{}", grid.text());
        }
        text += &format!("\n{}\n", record.verdict.name());
    }
    print(&text)?;
    Ok(Outcome::Done)
}

fn diff(a: &Capsule, b: &Capsule) -> Result<Outcome> {
    let facts = compare::facts(a, b)?;
    let mut text = if facts.is_empty() { "All facts are equal.\n".to_owned() } else { facts.text() };
    let pairs = compare::pairs(a, b);
    if !pairs.is_empty() {
        text += &format!("\n{}", compare::table(&pairs).text());
    }
    for (which, names) in ["A", "B"].iter().zip(compare::only_in_one(a, b)) {
        for name in names {
            text += &format!("only in {which}: {}\n", plain(&name));
        }
    }
    print(&text)?;
    Ok(Outcome::Done)
}

fn check(a: &Capsule, b: &Capsule, threshold: f64, any_machine: bool) -> Result<Outcome> {
    compare::must_be_comparable(a, b, any_machine)?;
    let pairs = compare::pairs(a, b);
    let [lost, _] = compare::only_in_one(a, b);
    for name in &lost {
        note(format_args!("not compared, as B lacks it: {}", plain(name)));
    }
    let regressions: Vec<_> = pairs.iter().filter_map(|pair| pair.regression(threshold)).collect();
    let mut text = compare::table(&pairs).text();
    for regression in &regressions {
        text += &format!("worse: {}\n", plain(regression));
    }
    let n = regressions.len();
    text += &match n {
        0 => format!("No regression in {} comparisons (threshold {threshold} %)\n", pairs.len()),
        _ => format!("{n} of {} comparisons are worse (threshold {threshold} %)\n", pairs.len()),
    };
    print(&text)?;
    Ok(if n == 0 { Outcome::Done } else { Outcome::CheckFailed })
}

fn write_report(paths: &[PathBuf], output: &Path, force: bool) -> Result<Outcome> {
    let render = match output.extension().and_then(|e| e.to_str()) {
        Some("html") => report::html,
        Some("md") => report::markdown,
        _ => bail!("--output {}: expected a name that ends in .html or .md", output.display()),
    };
    let files = files(paths)?;
    output::check_output(output, force, &files)?;
    let capsules = files.iter().map(|file| Capsule::read(file)).collect::<Result<Vec<_>>>()?;
    let text = render(&capsules);
    output::write_file(output, |out| Ok(out.write_all(text.as_bytes())?))?;
    note(format_args!("{} capsules in {}", capsules.len(), output.display()));
    Ok(Outcome::Done)
}

/// The files as named, and of folders the .json files by name.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in path.read_dir().with_context(|| path.display().to_string())? {
            let file = entry.with_context(|| path.display().to_string())?.path();
            if file.extension().is_some_and(|e| e == "json") {
                inside.push(file);
            }
        }
        if inside.is_empty() {
            bail!("{}: holds no .json file", path.display());
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

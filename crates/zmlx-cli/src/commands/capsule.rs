//! `zmlx capsule`: shows capsules, compares them, and writes reports from them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use zmlx_bench::capsule::compare::{self, Judgement};
use zmlx_bench::capsule::{Capsule, facts};
use zmlx_bench::grid::plain;
use zmlx_bench::report::{self, Recorded};

use crate::output::{self, Outcome, note, print};
use crate::table::Table;

/// Arguments of `zmlx capsule`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show everything in a capsule.
    Show {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show how two capsules differ, and compare what both measured.
    Diff {
        #[arg(value_name = "A")]
        a: PathBuf,
        #[arg(value_name = "B")]
        b: PathBuf,
    },
    /// Find out whether B is worse than A. The exit code is 1 if a verdict is worse or a test is slower. A test counts
    /// as slower if its whole 95 % confidence interval is above the threshold.
    Check {
        #[arg(value_name = "A")]
        a: PathBuf,
        #[arg(value_name = "B")]
        b: PathBuf,
        /// By how many percent a test may be slower.
        #[arg(long, value_name = "PERCENT", default_value_t = 5.0, allow_negative_numbers = true, value_parser = percent)]
        threshold: f64,
        /// Compare speeds even if the machines differ.
        #[arg(long)]
        any_machine: bool,
    },
    /// Write one document about many capsules: a page with plots (.html) or tables (.md).
    Report {
        /// Capsules, or folders of capsules (their .json files).
        #[arg(value_name = "FILE|DIR", required = true)]
        paths: Vec<PathBuf>,
        /// The file to write. Its extension, .html or .md, selects the kind of document.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Overwrite an existing file.
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
            print(&(serde_json::to_string_pretty(&Capsule::schema())? + "\n"))?;
            Ok(Outcome::Done)
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0);
    value.ok_or_else(|| "expected a percentage, 0 or more".to_owned())
}

fn show(capsule: &Capsule) -> Result<Outcome> {
    let mut text = String::new();
    for row in facts::about(capsule).rows {
        if let [what, value] = &row[..] {
            text += &format!("{what:<15} {}\n", plain(value));
        }
    }
    if let Some(bench) = &capsule.bench {
        text += &format!("\n{}", Table::of(&facts::speed(bench)).render());
        if !bench.profile.is_empty() {
            text += &format!("\n{}", Table::of(&facts::profile(bench)).render());
        }
    }
    if let Some(record) = &capsule.validate {
        for (title, grid) in facts::validation(record) {
            text += &format!("\n{title}\n\n{}", Table::of(&grid).render());
        }
        text += &format!("\n{}\n", record.verdict.name());
    }
    print(&text)?;
    Ok(Outcome::Done)
}

fn diff(a: &Capsule, b: &Capsule) -> Result<Outcome> {
    let facts = compare::facts(a, b)?;
    let mut text =
        if facts.is_empty() { "All facts are equal.\n".to_owned() } else { Table::of(&facts).render() };
    let pairs = compare::pairs(a, b);
    if !pairs.is_empty() {
        text += &format!("\n{}", Table::of(&compare::table(&pairs)).render());
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
        note(format_args!("not compared, because B lacks it: {}", plain(name)));
    }
    let (mut worse, mut unclear) = (Vec::new(), Vec::new());
    for pair in &pairs {
        match pair.judge(threshold) {
            Judgement::Fine => {}
            Judgement::Unclear(what) => unclear.push(what),
            Judgement::Worse(what) => worse.push(what),
        }
    }
    let mut text = Table::of(&compare::table(&pairs)).render();
    for (word, list) in [("worse", &worse), ("not clear", &unclear)] {
        for what in list {
            text += &format!("{word}: {}\n", plain(what));
        }
    }
    if !unclear.is_empty() {
        text += "Results that are not clear do not fail the check: more repetitions (-r) make the intervals narrower.\n";
    }
    text += &match worse.len() {
        0 => format!("No regression in {} comparisons (threshold {threshold} %)\n", pairs.len()),
        n => format!("{n} of {} comparisons are worse (threshold {threshold} %)\n", pairs.len()),
    };
    print(&text)?;
    Ok(if worse.is_empty() { Outcome::Done } else { Outcome::CheckFailed })
}

fn write_report(paths: &[PathBuf], output: &Path, force: bool) -> Result<Outcome> {
    let render = match output.extension().and_then(|e| e.to_str()) {
        Some("html") => report::html,
        Some("md") => report::markdown,
        _ => bail!("--output {}: expected a name that ends in .html or .md", output.display()),
    };
    let files = files(paths)?;
    output::check_output(output, force, &files)?;
    let recorded = |path: &PathBuf| {
        let file =
            path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Recorded { file, capsule: Capsule::read(path)? })
    };
    let capsules = files.iter().map(recorded).collect::<Result<Vec<_>>>()?;
    let text = render(&capsules);
    output::write_new(output, force, &text)?;
    note(format_args!("{} capsules in {}", capsules.len(), output.display()));
    Ok(Outcome::Done)
}

/// The files in `paths`. A folder stands for its .json files, sorted by name.
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
            bail!("{}: contains no .json file", path.display());
        }
        inside.sort();
        files.append(&mut inside);
    }
    Ok(files)
}

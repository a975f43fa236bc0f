//! Many capsules as one document: Markdown, or a self-contained page.

mod answers;
mod page;

pub use page::html;

use crate::capsule::bench::{BenchRecord, BenchTest};
use crate::capsule::validate::Verdict;
use crate::capsule::{Capsule, facts};
use crate::grid::{Grid, markdown_escaped};
use crate::stats::median;

/// A capsule, and the file that it came from.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The file's name.
    pub file: String,
    /// The capsule.
    pub capsule: Capsule,
}

/// The speeds of some benches, with a row for each test and path.
fn speeds(capsules: &[&Capsule]) -> Grid {
    let header =
        ["model", "test", "backend", "path", "tokens/s", "vs first", "range", "of probe", "probe GB/s"];
    let mut grid = Grid::new(4, &header);
    for (capsule, bench, test) in capsules.iter().copied().flat_map(tests) {
        let rate = median(&test.samples_s).map(|s| test.tokens_per_sample as f64 / s);
        let [ratio, spread] = facts::speed_up_cells(bench, test);
        let share = facts::bandwidth_share(bench, test);
        grid.row(vec![
            short(&capsule.model.name),
            test.name.clone(),
            facts::backend(capsule, test),
            test.fusion.clone(),
            facts::number(rate, 1),
            ratio,
            spread,
            share.map_or_else(facts::dash, |share| format!("{:.0} %", share * 100.0)),
            facts::number(facts::probe(bench, test).map(|bytes_per_second| bytes_per_second / 1e9), 1),
        ]);
    }
    grid.without_repetition()
}

/// The verdicts of some validations, with a row for each.
fn verdicts(capsules: &[&Capsule]) -> Grid {
    let mut grid =
        Grid::new(4, &["model", "backend", "suite", "against", "checks", "explained", "failed", "verdict"]);
    for capsule in capsules {
        let Some(record) = &capsule.validate else { continue };
        let all = record.checks.iter().map(|c| c.verdict).chain(record.logits.iter().map(|l| l.verdict));
        let all: Vec<Verdict> = all.collect();
        let count = |verdict| all.iter().filter(|v| **v == verdict).count().to_string();
        grid.row(vec![
            short(&capsule.model.name),
            capsule.backend.description.clone(),
            record.suite.clone(),
            record.against.join(", "),
            all.len().to_string(),
            count(Verdict::Explained),
            count(Verdict::Fail),
            record.verdict.name().to_owned(),
        ]);
    }
    grid
}

/// A machine, and what was recorded on it.
struct Origin<'a> {
    machine: String,
    /// The dates and commits.
    builds: Vec<String>,
    capsules: Vec<&'a Capsule>,
}

/// The machines, in the order of their first capsules.
fn origins(capsules: &[Recorded]) -> Vec<Origin<'_>> {
    let mut origins: Vec<Origin<'_>> = Vec::new();
    for Recorded { capsule: c, .. } in capsules {
        let machine = format!("{}, {} cores, {}", c.machine.cpu, c.machine.physical_cores, c.machine.level);
        let at = origins.iter().position(|o| o.machine == machine).unwrap_or_else(|| {
            origins.push(Origin { machine, builds: Vec::new(), capsules: Vec::new() });
            origins.len() - 1
        });
        let day = c.date.get(..10).unwrap_or(&c.date);
        let build = format!("{day}, commit {}, {}", c.zmlx.short_commit(), c.zmlx.profile);
        if !origins[at].builds.contains(&build) {
            origins[at].builds.push(build);
        }
        origins[at].capsules.push(c);
    }
    origins
}

/// All tests of a capsule's bench.
fn tests(capsule: &Capsule) -> impl Iterator<Item = (&Capsule, &BenchRecord, &BenchTest)> {
    capsule.bench.iter().flat_map(move |bench| bench.tests.iter().map(move |test| (capsule, bench, test)))
}

/// The tables of speeds and verdicts as Markdown.
pub fn markdown(capsules: &[Recorded]) -> String {
    let mut text = String::new();
    for origin in origins(capsules) {
        let builds = origin.builds.join("; ");
        text += &format!("\n**{}** ({})\n", markdown_escaped(&origin.machine), markdown_escaped(&builds));
        for grid in [speeds(&origin.capsules), verdicts(&origin.capsules)] {
            if !grid.is_empty() {
                text += &format!("\n{}", grid.markdown());
            }
        }
    }
    text
}

/// A model's name for titles. Of the commit after `@` only the first digits are kept.
fn short(name: &str) -> String {
    match name.rsplit_once('@') {
        Some((id, commit)) if commit.len() == 40 && commit.is_ascii() => format!("{id}@{}", &commit[..8]),
        _ => name.to_owned(),
    }
}

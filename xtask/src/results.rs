//! The results in the documents, generated from the capsules in benches/record: all of them in docs/results.md, some
//! ratios in README.md.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use serde_json::Value;

use crate::project;

const BEGIN: &str = "<!-- results: cargo xtask results -->\n";
const END: &str = "<!-- end of results -->";

/// The content of the table in README.md: capsules that contain llama.cpp, and the tests of each.
const SHOWN: [(&str, &[&str]); 3] = [
    ("2026-11-27-xeon-amx-qwen3-beside-llama-again.json", &["pp512", "tg32 @ d128", "tg32 @ d4096"]),
    ("2026-11-27-zen4-qwen3-beside-llama-later.json", &["pp512", "tg32 @ d128", "tg32 @ d4096"]),
    ("2026-11-27-zen3-qwen3-beside-llama-d128.json", &["pp512", "tg16 @ d128"]),
];

/// The capsule whose speed-ups README.md shows as a plot.
const PLOTTED: &str = SHOWN[1].0;

/// The style of that plot. In a report the page contains it.
const STYLE: &str = "<style>\
    text{font:13px system-ui,sans-serif;fill:#1b1f24}.tick,.unit{fill:#5b6570;font-size:12px}.middle{text-anchor:middle}\
    .grid{stroke:#d9dee3}.ref{stroke:#1b1f24;stroke-width:1.5;stroke-dasharray:4 4}\
    .s0{fill:#7a8794;stroke:#7a8794}.s1{fill:#c27803;stroke:#c27803}.s2{fill:#1d5fd1;stroke:#1d5fd1}\
    .s3{fill:#0f8a6d;stroke:#0f8a6d}.s4{fill:#a83f9e;stroke:#a83f9e}.s5{fill:#c0392b;stroke:#c0392b}\
    .spread{stroke-width:3;stroke-opacity:.5}\
    </style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>";

/// Rewrites the text between the marks in both documents, and draws the plot.
pub(crate) fn run() -> Result<()> {
    let root = project::root()?;
    let results = root.join("target/results.md");
    std::fs::create_dir_all(root.join("target")).context("target")?;
    // The same selection of packages as for the tests, so that nothing is compiled again with other features.
    let mut build = Command::new(env!("CARGO"));
    project::run(build.args(["build", "--quiet", "--workspace", "--bin", "zmlx"]).current_dir(&root))?;
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec()?;
    let report = |from: &str, to: &Path| -> Result<String> {
        let mut zmlx = Command::new(metadata.target_directory.join("debug/zmlx"));
        zmlx.args(["capsule", "report", from, "--force", "--output"]);
        project::run(zmlx.arg(to).current_dir(&root))?;
        std::fs::read_to_string(to).with_context(|| to.display().to_string())
    };
    let plotted = format!("benches/record/{PLOTTED}");
    let plot = plot(&report(&plotted, &root.join("target/plotted.html"))?)?;
    std::fs::write(root.join("docs/images/speed-up.svg"), plot).context("docs/images/speed-up.svg")?;
    let results = report("benches/record", &results)?;
    rewrite(&root.join("docs/results.md"), &results)?;
    rewrite(&root.join("README.md"), &ratios(&root)?)
}

/// The first plot of a report as a separate picture.
fn plot(page: &str) -> Result<String> {
    let svg = page.split_once("<svg ").and_then(|(_, rest)| rest.split_once("</svg>"));
    let (attributes, content) =
        svg.and_then(|(svg, _)| svg.split_once('>')).context("the report has no plot")?;
    Ok(format!("<svg xmlns=\"http://www.w3.org/2000/svg\" {attributes}>{STYLE}{content}</svg>\n"))
}

fn rewrite(path: &Path, results: &str) -> Result<()> {
    let what = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(what)?;
    std::fs::write(path, replaced(&text, results).with_context(what)?).with_context(what)
}

fn replaced(text: &str, results: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no {END:?} after {BEGIN:?}"))?;
    Ok(format!("{before}{BEGIN}\n{}\n\n{END}{after}", results.trim()))
}

/// The table of README.md.
fn ratios(root: &Path) -> Result<String> {
    let mut table =
        "| machine, 2 threads | test | llama.cpp | zmlx | ratio | date |\n|---|---|--:|--:|--:|---|\n"
            .to_owned();
    for (file, names) in SHOWN {
        let path = root.join("benches/record").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let capsule: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        for name in names {
            let row = row(&capsule, name).with_context(|| format!("{file}: no two results of {name}"))?;
            table += &row;
        }
    }
    Ok(table)
}

/// A test of zmlx's fused path and of llama.cpp, side by side.
fn row(capsule: &Value, name: &str) -> Option<String> {
    let tests = capsule["bench"]["tests"].as_array()?;
    let of = |fusion: &str| tests.iter().find(|t| t["name"] == name && t["fusion"] == fusion);
    let seconds = |test: &Value| -> Option<Vec<f64>> {
        test["samples_s"].as_array()?.iter().map(Value::as_f64).collect()
    };
    let (theirs, ours) = (of("Q4_0")?, of("fused")?);
    let n_tokens = ours["tokens_per_sample"].as_f64()?;
    let (theirs, ours) = (seconds(theirs)?, seconds(ours)?);
    let speed = |seconds: &[f64]| median(seconds.to_vec()).map(|s| n_tokens / s);
    let mut ratios: Vec<f64> = theirs.iter().zip(&ours).map(|(t, o)| t / o).collect();
    ratios.sort_by(f64::total_cmp);
    let machine = &capsule["machine"];
    let cpu = machine["cpu"].as_str()?.replace("(R)", "").replace(" Processor", "");
    Some(format!(
        "| {cpu}, {} | {} | {:.1} tok/s | {:.1} tok/s | **{:.2}×** ({:.2}–{:.2}) | {} |\n",
        machine["level"].as_str()?,
        in_words(name),
        speed(&theirs)?,
        speed(&ours)?,
        median(ratios.clone())?,
        ratios.first()?,
        ratios.last()?,
        capsule["date"].as_str()?.get(..10)?
    ))
}

/// The name of a test in words.
fn in_words(name: &str) -> String {
    let (test, depth) = name.split_once(" @ d").unwrap_or((name, "0"));
    match test.strip_prefix("pp") {
        Some(n) => format!("prompt of {n} tokens"),
        None => format!("decoding at depth {depth}"),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = format!("a\n{BEGIN}old\n{END}\nb\n");
        let new = replaced(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}\nb\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("a", "new").is_err());
        assert!(replaced(BEGIN, "new").is_err());
    }

    #[test]
    fn the_readmes_ratios_are_those_of_the_record() {
        let root = project::root().unwrap();
        let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
        assert_eq!(replaced(&readme, &ratios(&root).unwrap()).unwrap(), readme, "stale: cargo xtask results");
    }

    #[test]
    fn middles() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    }
}

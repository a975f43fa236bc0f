//! The results in README.md: made from the capsules in benches/record by `zmlx capsule report`.

use std::process::Command;

use anyhow::{Context, Result};

use crate::project;

const BEGIN: &str = "<!-- results: cargo xtask results -->\n";
const END: &str = "<!-- end of results -->";

/// Rewrites what stands between the marks.
pub(crate) fn run() -> Result<()> {
    let root = project::root()?;
    let results = root.join("target/results.md");
    std::fs::create_dir_all(root.join("target")).context("target")?;
    let mut report = Command::new(env!("CARGO"));
    report.args([
        "run",
        "--quiet",
        "--package",
        "zmlx-cli",
        "--",
        "capsule",
        "report",
        "benches/record",
        "--force",
    ]);
    project::run(report.arg("--output").arg(&results).current_dir(&root))?;
    let results = std::fs::read_to_string(results).context("target/results.md")?;
    let path = root.join("README.md");
    let readme = std::fs::read_to_string(&path).context("README.md")?;
    std::fs::write(&path, replaced(&readme, &results)?).context("README.md")
}

fn replaced(readme: &str, results: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).with_context(|| format!("README.md: no line {BEGIN:?}"))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("README.md: no {END:?} after {BEGIN:?}"))?;
    Ok(format!("{before}{BEGIN}\n{}\n\n{END}{after}", results.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let readme = format!("a\n{BEGIN}old\n{END}\nb\n");
        let new = replaced(&readme, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}\nb\n"));
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("a", "new").is_err());
        assert!(replaced(BEGIN, "new").is_err());
    }
}

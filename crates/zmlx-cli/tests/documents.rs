//! Checks that files and links which the documents name exist, and that the READMEs show the code of the examples.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// A name with one of these endings is taken for a path of this repository.
const ENDINGS: &[&str] = &[".rs", ".md", ".sh", ".py", ".json", ".toml", ".yml", ".metal", ".cu", ".cuh"];
/// The top-level folders of the repository.
const TOP: &[&str] = &["crates/", "docs/", "fixtures/", "tools/", "benches/", "xtask/", ".ci/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All files and folders, with paths relative to the root.
fn tree(dir: &Path, prefix: &str, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if ["target", ".git", ".mlx"].contains(&name.as_str()) {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.file_type().unwrap().is_dir() {
            tree(&entry.path(), &format!("{path}/"), into);
        }
        into.push(path);
    }
}

/// The parts in back quotes that look like paths of this repository.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|q| {
        let is_name = q.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        // Files of a user's own programs do not begin with a folder of the repository.
        let is_ours = TOP.iter().any(|top| q.starts_with(top))
            || (q.contains('/') && ENDINGS.iter().any(|e| q.ends_with(e)));
        is_name && is_ours
    })
}

#[test]
fn documents_name_files_that_exist() {
    let mut files = Vec::new();
    tree(&root(), "", &mut files);
    let mut n_paths = 0;
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for path in paths(&text) {
            let path = path.trim_end_matches('/');
            // After the full path of a file, its last part is enough.
            let exists = files.iter().any(|f| f == path || f.ends_with(&format!("/{path}")));
            assert!(exists, "{document} names {path}, which does not exist");
            n_paths += 1;
        }
    }
    assert!(n_paths > 30, "only {n_paths} paths were found: are they still written so?");
}

/// The Markdown files of the repository, with paths relative to the root.
fn markdown() -> Vec<String> {
    let mut files = Vec::new();
    tree(&root(), "", &mut files);
    files.retain(|f| f.ends_with(".md") && !f.contains("/target/") && !f.contains("/fixtures/"));
    files
}

/// The targets of the links of a Markdown text, without links in code.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if !is_code {
            let ends = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(ends.map(|(target, _)| target));
        }
    }
    links
}

#[test]
fn links_lead_somewhere() {
    let mut n_links = 0;
    for document in markdown() {
        let path = root().join(&document);
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text).into_iter().filter(|l| !l.contains("://") && !l.starts_with('#')) {
            let file = link.split('#').next().unwrap();
            assert!(path.parent().unwrap().join(file).exists(), "{document} links to {link}");
            n_links += 1;
        }
    }
    assert!(n_links > 30, "only {n_links} links were found");
}

#[test]
fn the_book_has_every_page() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut pages = links(&summary);
    pages.sort_unstable();
    let twice = pages.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "a page of the summary stands there twice");
    let mut files = Vec::new();
    tree(&docs, "", &mut files);
    for file in files.iter().filter(|f| f.ends_with(".md") && *f != "SUMMARY.md") {
        assert!(pages.contains(&file.as_str()), "docs/SUMMARY.md lacks {file}");
    }
}

#[test]
fn the_readme_is_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
}

/// Each library has an example that runs on a CPU, and its README shows the code of the example.
#[test]
fn the_readmes_show_the_examples() {
    for (name, example) in [
        ("zmlx-core", "core_quantize"),
        ("zmlx-cpu", "cpu_linear"),
        ("zmlx-kernels", "kernels_cpu"),
        ("zmlx-moe", "moe_cpu"),
        ("zmlx-models", "models_generate"),
        ("zmlx-oracle", "oracle_logits"),
        ("zmlx-bench", "bench_measure"),
    ] {
        let folder = root().join("crates").join(name);
        let code = fs::read_to_string(folder.join(format!("examples/{example}.rs"))).unwrap();
        let code: Vec<&str> = code.lines().skip_while(|l| l.starts_with("//!") || l.is_empty()).collect();
        assert!(code.len() <= 50, "{example} has {} lines", code.len());
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        assert!(readme.contains(&code.join("\n")), "the README of {name} shows other code than {example}");
    }
}

//! The documents name files that exist.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// Endings of the names that are taken for paths of this repository.
const ENDINGS: &[&str] = &[".rs", ".md", ".sh", ".py", ".json", ".toml", ".yml", ".metal", ".cu", ".cuh"];
/// Its top folders.
const TOP: &[&str] = &["crates/", "docs/", "fixtures/", "tools/", "benches/", "xtask/", ".ci/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every file and folder, named from the root.
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

/// What stands between back quotes and looks like a path here.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|q| {
        let is_name = q.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        // What a program of the user's own writes or reads stands in other places.
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
            // Beside the file that was named before, a part of the path is enough.
            let exists = files.iter().any(|f| f == path || f.ends_with(&format!("/{path}")));
            assert!(exists, "{document} names {path}, which does not exist");
            n_paths += 1;
        }
    }
    assert!(n_paths > 30, "only {n_paths} paths were found: are they still written so?");
}

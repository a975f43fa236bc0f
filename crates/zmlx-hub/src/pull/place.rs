//! The snapshot of links, and the reference, once all blobs are there.

use std::path::{Path, PathBuf};

use super::Wanted;
use crate::{Cache, Error, ModelName, Result};

/// Links the files of a commit, `config.json` last: without it a snapshot is no model. Then the reference names the commit.
pub(super) fn snapshot(cache: &Cache, name: &ModelName, commit: &str, files: &[Wanted]) -> Result<PathBuf> {
    let dir = cache.snapshot_dir(name, commit);
    let is_config = |file: &&Wanted| file.path == "config.json";
    for file in files.iter().filter(|file| !is_config(file)).chain(files.iter().filter(is_config)) {
        let path = dir.join(&file.path);
        let folder = path.parent().unwrap_or(&dir);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        link(&cache.model_dir(name), file, &path)?;
    }
    let revision = name.revision_or_main();
    if revision != commit {
        let path = cache.model_dir(name).join("refs").join(revision);
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        replace(&path, |new| std::fs::write(new, commit))?;
    }
    Ok(dir)
}

/// The link of a file to its blob; one that leads elsewhere, or is no link, is replaced.
fn link(model_dir: &Path, file: &Wanted, path: &Path) -> Result<()> {
    // From `snapshots/COMMIT/FOLDER/…/FILE`.
    let up = "../".repeat(2 + file.path.matches('/').count());
    let target = PathBuf::from(format!("{up}blobs/{}", file.digest.hex()));
    if std::fs::read_link(path).is_ok_and(|there| there == target) {
        return Ok(());
    }
    let blob = model_dir.join("blobs").join(file.digest.hex());
    replace(path, |new| make_link(&target, &blob, new))
}

#[cfg(unix)]
fn make_link(target: &Path, _blob: &Path, new: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, new)
}

/// Where links take a privilege, the blob gets a second name.
#[cfg(not(unix))]
fn make_link(_target: &Path, blob: &Path, new: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, new)
}

/// Makes a file or link beside `path`, which then takes its place at once.
fn replace(path: &Path, make: impl FnMut(&Path) -> std::io::Result<()>) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let new = tempfile::Builder::new().prefix(".zmlx-").make_in(dir, make).map_err(Error::io(path))?;
    new.into_temp_path().persist(path).map_err(|e| Error::Io { path: path.to_owned(), source: e.error })
}

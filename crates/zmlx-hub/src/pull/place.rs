//! Creates the links of a snapshot, and the reference, when all blobs exist.

use std::path::{Path, PathBuf};

use super::Wanted;
use crate::{Cache, Error, ModelName, Result};

/// Links the files of a commit, `config.json` last, because a snapshot without it is not a model. Then makes the
/// reference point to the commit.
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

/// Creates the link of a file to its blob. Replaces a link that leads elsewhere, and a file that is not a link.
fn link(model_dir: &Path, file: &Wanted, path: &Path) -> Result<()> {
    // The way up from `snapshots/COMMIT/FOLDER/…/FILE`.
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

/// On systems where links need a privilege, the blob gets a second name instead.
#[cfg(not(unix))]
fn make_link(_target: &Path, blob: &Path, new: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, new)
}

/// Creates a file or link next to `path`, which then replaces `path` atomically.
fn replace(path: &Path, make: impl FnMut(&Path) -> std::io::Result<()>) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let new = tempfile::Builder::new().prefix(".zmlx-").make_in(dir, make).map_err(Error::io(path))?;
    new.into_temp_path().persist(path).map_err(|e| Error::Io { path: path.to_owned(), source: e.error })
}

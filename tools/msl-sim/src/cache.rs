//! The folder of compiled kernels. The name of a file is a hash of everything that it depends on. Files are written
//! under a temporary name and then renamed, so that tests of several processes can share the folder.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

/// The hash of `parts` as 128 bits in hexadecimal. Two kernels practically never share a file.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let (mut high, mut low) = (DefaultHasher::new(), DefaultHasher::new());
    "high".hash(&mut high);
    for part in parts {
        part.hash(&mut high);
        part.hash(&mut low);
    }
    format!("{:016x}{:016x}", high.finish(), low.finish())
}

/// The folder `msl-sim-cache` in the target folder that contains the running test, otherwise in the temporary folder.
pub(crate) fn folder() -> PathBuf {
    let target = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.ancestors().find(|p| p.join("CACHEDIR.TAG").exists()).map(Path::to_path_buf));
    target.unwrap_or_else(std::env::temp_dir).join("msl-sim-cache")
}

/// A path that no other process or thread writes to. The caller renames it to `path`.
fn temporary(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{n}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// The file at `path`. If it does not exist, `make` writes it under a temporary name.
pub(crate) fn file(path: PathBuf, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
    if path.exists() {
        return Ok(path);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let temporary = temporary(&path);
    make(&temporary)?;
    match std::fs::rename(&temporary, &path) {
        Ok(()) => Ok(path),
        // Another process has renamed its folder first. Its content is the same.
        Err(_) if path.exists() => {
            let _ = std::fs::remove_dir_all(&temporary);
            Ok(path)
        }
        Err(source) => Err(Error::Io { path, source }),
    }
}

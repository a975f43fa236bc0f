//! Writes files that are never visible half written, never replace a file that the command reads, and leave no
//! temporary file behind.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use super::is_silent;

/// The temporary files of all writes in progress.
static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Checks an output before the work whose result it will contain. It must be writable, it must not exist unless `force`
/// is set, and it must not be one of the files that the command reads, whatever its name.
pub(crate) fn check_output(path: &Path, force: bool, inputs: &[PathBuf]) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    if inputs.iter().any(|input| is_same_file(input, path)) {
        bail!("{}: this command reads it, so it does not overwrite it", path.display());
    }
    // If the path is a symbolic link, the file that it points to is replaced, not the link.
    let target = Target::of(path)?;
    if !force && path.symlink_metadata().is_ok() {
        bail!("{}: exists already; --force overwrites it", path.display());
    }
    target.temporary().map(drop)
}

/// Writes the file `path`. `write` fills a temporary file in the same folder, which is renamed once it is complete.
pub(crate) fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if is_silent() {
        return write(&mut std::io::sink());
    }
    let target = Target::of(path)?;
    let what = || target.what();
    let file = target.temporary()?;
    let _noted = Noted::new(file.path());
    let mut buffered = std::io::BufWriter::new(file);
    write(&mut buffered)?;
    let file = buffered.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(what)?;
    file.as_file().sync_all().with_context(what)?;
    file.persist(&target.path).map_err(|e| e.error).with_context(what)?;
    Ok(())
}

/// Removes the temporary files of all writes in progress, because the process is about to end.
pub(crate) fn remove_temporary() {
    for path in temporary().iter() {
        let _ = std::fs::remove_file(path);
    }
}

fn temporary() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Registers a temporary file for [`remove_temporary`], until it is dropped.
struct Noted(PathBuf);

impl Noted {
    fn new(path: &Path) -> Self {
        temporary().insert(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        temporary().remove(&self.0);
    }
}

/// The path of an output.
struct Target {
    path: PathBuf,
}

impl Target {
    fn of(path: &Path) -> Result<Self> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.metadata().is_ok_and(|m| !m.is_file()) {
            bail!("{}: not a regular file, which the output would have to replace", path.display());
        }
        Ok(Self { path })
    }

    fn what(&self) -> String {
        format!("{}: cannot be written", self.path.display())
    }

    /// A new temporary file in the same folder.
    fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if self.path.file_name().is_none() {
            bail!("{}: not the name of a file", self.path.display());
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".zmlx-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The permissions of an ordinary new file: the umask applies.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        builder.tempfile_in(dir).with_context(|| self.what())
    }
}

#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let failed = write_file(&path, |out| {
            out.write_all(b"half")?;
            bail!("disk on fire")
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for text in ["one", "two"] {
            write_file(&path, |out| Ok(out.write_all(text.as_bytes())?)).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_file(dir.path(), |_| Ok(())).is_err());
        assert!(temporary().iter().all(|path| !path.starts_with(dir.path())));
    }

    #[test]
    fn outputs_are_checked_before_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("input"), "x").unwrap();
        std::fs::hard_link(at("input"), at("also")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("input", at("link")).unwrap();
        let inputs = [at("gone"), at("input")];
        check_output(&at("new"), false, &inputs).unwrap();
        for name in ["input", "also", "link"] {
            assert!(check_output(&at(name), true, &inputs).is_err(), "{name}");
        }
        std::fs::write(at("old"), "x").unwrap();
        assert!(check_output(&at("old"), false, &inputs).is_err());
        check_output(&at("old"), true, &inputs).unwrap();
        for bad in [at("no/such/folder"), dir.path().to_owned(), PathBuf::from("/"), PathBuf::from("")] {
            assert!(check_output(&bad, true, &inputs).is_err(), "{}", bad.display());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), if cfg!(unix) { 4 } else { 3 });
    }

    #[test]
    fn temporary_files_can_be_removed_early() {
        let dir = tempfile::tempdir().unwrap();
        let done = write_file(&dir.path().join("x"), |_| {
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            let mine: Vec<PathBuf> =
                temporary().iter().filter(|path| path.starts_with(dir.path())).cloned().collect();
            assert_eq!(mine.len(), 1);
            Ok(())
        });
        done.unwrap();
    }
}

//! The files besides the weights, and the disk space for all files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Names of files that are copied: the tokenizer's, those about generation, and the licence.
fn goes_along(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "spiece.model",
    ];
    let begins = |with: &str| name.starts_with(with);
    NAMES.contains(&name)
        || begins("tokenizer")
        || begins("LICENSE")
        || begins("NOTICE")
        || (begins("chat_template") && name.ends_with(".json"))
        || name.ends_with(".jinja")
        || name.ends_with(".tiktoken")
}

/// The folder of further templates.
const TEMPLATES: &str = "additional_chat_templates";

/// The paths of the files in the folder that are copied, sorted.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn names(dir: Option<&Path>) -> Result<Vec<String>> {
    let Some(dir) = dir else { return Ok(Vec::new()) };
    let in_folder = |folder: &Path| -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // In the hub's cache these are links to files.
            if entry.path().is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    };
    let mut names: Vec<String> = in_folder(dir).map_err(error_at(dir))?;
    names.retain(|name| goes_along(name));
    let templates = dir.join(TEMPLATES);
    if templates.is_dir() {
        let more = in_folder(&templates).map_err(error_at(&templates))?;
        names.extend(more.into_iter().filter(|n| n.ends_with(".jinja")).map(|n| format!("{TEMPLATES}/{n}")));
    }
    names.sort();
    Ok(names)
}

/// Copies these files.
///
/// # Errors
/// If one cannot be read or written.
pub(super) fn copy(from: Option<&Path>, to: &Path) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    for name in names(Some(from))? {
        let path = from.join(&name);
        let bytes = zmlx_kernels::read_bytes(&path).map_err(error_at(&path))?;
        let target = to.join(&name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(error_at(folder))?;
        }
        write(&target, &bytes)?;
    }
    Ok(())
}

/// Writes a file in such a way that no one ever sees half of it.
///
/// # Errors
/// If the system returns an error.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part(path);
    let error = error_at(&part);
    let written = File::create(&part).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(error)?;
    fs::rename(&part, path).map_err(error_at(path))
}

/// The name of a file while it is written.
pub(super) fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Makes renamed and removed files of a folder permanent.
pub(super) fn sync_folder(dir: &Path) -> Result<()> {
    // Windows cannot synchronise a folder.
    if cfg!(unix) { File::open(dir).and_then(|f| f.sync_all()).map_err(error_at(dir)) } else { Ok(()) }
}

/// The error for a file.
pub(super) fn error_at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let file = path.display().to_string();
    move |source| Error::Io { file: file.clone(), source }
}

/// Returns an error if the disk does not have enough space.
///
/// # Errors
/// [`Error::DiskSpace`].
pub(super) fn ensure_room(dir: &Path, want_bytes: u64) -> Result<()> {
    match free_bytes(dir) {
        Some(free_bytes) if free_bytes < want_bytes => {
            Err(Error::DiskSpace { dir: dir.display().to_string(), want_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Free bytes at the place of a folder, which need not exist yet; `None` if the system does not report them.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let full = std::path::absolute(dir).ok()?;
    let there = full.ancestors().find(|dir| dir.is_dir())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    // The types differ between systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "not useless on other systems")]
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

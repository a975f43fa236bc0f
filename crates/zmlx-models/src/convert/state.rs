//! The state of an unfinished conversion, which is kept in its folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::files::{self, error_at};
use super::plan::{Plan, Shard};
use crate::{Checkpoint, Error, Result};

/// The name of the note.
const STATE: &str = ".zmlx-convert.json";
/// The name of the file that the converting process locks.
const LOCK: &str = ".zmlx-convert.lock";
/// Increased when the same plan leads to other bytes.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u32,
    /// A hash of the input and the settings.
    fingerprint: String,
    finished: Vec<Finished>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Finished {
    name: String,
    n_bytes: u64,
    sha256: String,
}

/// A folder with a running conversion. No other conversion may use it.
pub(super) struct State {
    dir: PathBuf,
    note: Note,
    /// The system releases the lock when this process ends.
    _lock: File,
}

impl State {
    /// Looks at `dir` without changing it. Returns whether an earlier run of the same conversion has begun there.
    ///
    /// # Errors
    /// [`Error::OutputFolder`] if the folder holds something else.
    pub(super) fn has_begun(dir: &Path, fingerprint: &str) -> Result<bool> {
        let refused = |got: String| Error::OutputFolder { dir: dir.display().to_string(), got };
        match dir.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(error_at(dir)(source)),
            Ok(meta) if !meta.is_dir() => return Err(refused("a file of that name".to_owned())),
            Ok(_) => {}
        }
        if let Some(note) = read(dir)? {
            if note.format == FORMAT && note.fingerprint == fingerprint {
                return Ok(true);
            }
            return Err(refused(
                "an unfinished conversion of another source, or with other settings".to_owned(),
            ));
        }
        let mut entries = fs::read_dir(dir).map_err(error_at(dir))?;
        match entries.find(|e| e.as_ref().map_or(true, |e| e.file_name() != LOCK)) {
            None => Ok(false),
            Some(entry) => {
                let name = entry.map_err(error_at(dir))?.file_name();
                Err(refused(format!("one with {}", name.to_string_lossy())))
            }
        }
    }

    /// Creates the folder, and the note if it does not exist.
    ///
    /// # Errors
    /// As [`State::has_begun`]; if another process converts into the folder; if the system returns an error.
    pub(super) fn begin(dir: &Path, fingerprint: &str) -> Result<Self> {
        fs::create_dir_all(dir).map_err(error_at(dir))?;
        let lock_path = dir.join(LOCK);
        let lock = File::create(&lock_path).map_err(error_at(&lock_path))?;
        match lock.try_lock() {
            // Some network file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let got = "one into which another process converts".to_owned();
                return Err(Error::OutputFolder { dir: dir.display().to_string(), got });
            }
        }
        Self::has_begun(dir, fingerprint)?;
        let new = || Note { format: FORMAT, fingerprint: fingerprint.to_owned(), finished: Vec::new() };
        let state = Self { dir: dir.to_owned(), note: read(dir)?.unwrap_or_else(new), _lock: lock };
        state.save()?;
        Ok(state)
    }

    /// Whether an earlier run finished a shard that has not changed since.
    ///
    /// # Errors
    /// If the system cannot read it.
    pub(super) fn has_finished(&self, shard: &Shard) -> Result<bool> {
        let Some(noted) = self.note.finished.iter().find(|f| f.name == shard.name) else { return Ok(false) };
        let path = self.dir.join(&shard.name);
        let is_there = path.metadata().is_ok_and(|m| m.is_file() && m.len() == noted.n_bytes);
        Ok(is_there && noted.n_bytes == shard.n_bytes() && hash_of(&path)? == noted.sha256)
    }

    /// Renames a shard that was written as a `.part` file to its final name, and adds it to the note.
    ///
    /// # Errors
    /// If the system returns an error.
    pub(super) fn finish(&mut self, shard: &Shard) -> Result<()> {
        let path = self.dir.join(&shard.name);
        let part = files::part(&path);
        let sha256 = hash_of(&part)?;
        fs::rename(&part, &path).map_err(error_at(&path))?;
        files::sync_folder(&self.dir)?;
        self.note.finished.retain(|f| f.name != shard.name);
        self.note.finished.push(Finished { name: shard.name.clone(), n_bytes: shard.n_bytes(), sha256 });
        self.save()
    }

    /// Removes the note: the folder now holds a model.
    ///
    /// # Errors
    /// If the system returns an error.
    pub(super) fn end(self) -> Result<()> {
        for name in [STATE, LOCK] {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(error_at(&path))?;
        }
        files::sync_folder(&self.dir)
    }

    fn save(&self) -> Result<()> {
        let path = self.dir.join(STATE);
        let file = || path.display().to_string();
        let text =
            serde_json::to_vec_pretty(&self.note).map_err(|source| Error::Json { file: file(), source })?;
        files::write(&path, &text)
    }
}

/// The note in a folder. An unreadable note is treated as missing, so the folder counts as not empty.
fn read(dir: &Path) -> Result<Option<Note>> {
    let path = dir.join(STATE);
    match zmlx_kernels::read_bytes(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(error_at(&path)(source)),
    }
}

/// A hash of the input and the settings.
pub(super) fn fingerprint(source: &Checkpoint, plan: &Plan) -> String {
    let mut hasher = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (name, content) in source.shards().iter().zip(source.shard_contents()) {
        add(name.as_bytes());
        add(&(content.len() as u64).to_le_bytes());
        let changed = source.dir().and_then(|dir| dir.join(name).metadata().ok()?.modified().ok());
        let changed = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        add(&changed.map_or(0, |d| d.as_nanos()).to_le_bytes());
    }
    add(plan.config.as_bytes());
    for shard in &plan.shards {
        add(shard.name.as_bytes());
        add(&shard.header);
    }
    for weight in plan.modules.iter().flat_map(|(_, weights)| weights) {
        add(format!("{:?}", weight.encoding).as_bytes());
    }
    hex(&hasher.finalize())
}

/// The SHA-256 of a file.
fn hash_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(error_at(path))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(error_at(path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

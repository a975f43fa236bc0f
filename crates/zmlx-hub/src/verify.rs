//! Checks whether the files in the cache are still what was downloaded. The names of blobs are their hashes.

use std::fs::File;
use std::path::PathBuf;

use crate::cache::files;
use crate::digest::Digest;
use crate::{Cache, Error, ModelName, Result};

/// The result for a file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// The problem; `None` if its hash equals its name.
    pub fault: Option<String>,
}

impl Cache {
    /// Hashes the files of a model and calls `each` with the result for each file. If the name has no revision, it
    /// covers all revisions.
    ///
    /// # Errors
    /// [`Error::NotCached`] if there is no such model, or an error if a file cannot be read.
    pub fn verify(&self, name: &ModelName, mut each: impl FnMut(&Verified)) -> Result<Vec<Verified>> {
        let commit = name.revision().and_then(|_| self.commit(name));
        let mut verified = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for revision in self.model(name)?.revisions {
            if name.revision().is_some() && Some(&revision.commit) != commit.as_ref() {
                continue;
            }
            for path in files(&revision.dir)? {
                // Revisions share blobs.
                if path.canonicalize().is_ok_and(|blob| !seen.insert(blob)) {
                    continue;
                }
                let file = checked(path)?;
                each(&file);
                verified.push(file);
            }
            if let Some(why) = revision.lacks {
                let file = Verified { path: revision.dir, bytes: 0, fault: Some(why) };
                each(&file);
                verified.push(file);
            }
        }
        if verified.is_empty() {
            return Err(Error::NotCached { name: name.to_string(), dir: self.model_dir(name) });
        }
        Ok(verified)
    }
}

fn checked(path: PathBuf) -> Result<Verified> {
    let fault = |path, bytes, why: &str| Ok(Verified { path, bytes, fault: Some(why.to_owned()) });
    let Ok(blob) = path.canonicalize() else { return fault(path, 0, "leads to nothing") };
    let mut file = File::open(&blob).map_err(Error::io(&blob))?;
    let bytes = file.metadata().map_err(Error::io(&blob))?.len();
    let Some(digest) = blob.file_name().and_then(|name| Digest::parse(name.to_str()?)) else {
        return fault(path, bytes, "is not a link to a blob, so there is no hash to compare it with");
    };
    let mut hasher = digest.hasher(bytes);
    hasher.update_from(&mut file, &blob)?;
    if hasher.hex() == digest.hex() {
        return Ok(Verified { path, bytes, fault: None });
    }
    fault(path, bytes, "has a hash that differs from its name")
}

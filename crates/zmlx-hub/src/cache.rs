//! The local cache of models.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::complete;
use crate::name::is_commit;
use crate::{Environment, Error, ModelName, Result};

/// The folder in which Hugging Face's tools keep models. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug, Serialize)]
pub struct CachedModel {
    /// `org/name`.
    pub id: String,
    /// Bytes that it takes on the disk, including unfinished downloads.
    pub bytes: u64,
    /// Bytes of unfinished downloads.
    pub unfinished_bytes: u64,
    /// Its revisions in the cache, sorted by commit.
    pub revisions: Vec<CachedRevision>,
}

/// A model at a commit.
#[derive(Clone, Debug, Serialize)]
pub struct CachedRevision {
    /// The commit.
    pub commit: String,
    /// Branches and tags that pointed to the commit when they were last downloaded.
    pub refs: Vec<String>,
    /// Its folder.
    pub dir: PathBuf,
    /// Number of files.
    pub n_files: usize,
    /// Bytes of its files.
    pub bytes: u64,
    /// What is missing for a model that can be loaded; `None` if it is complete.
    pub lacks: Option<String>,
}

impl Cache {
    /// The cache in a folder.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The cache that an environment names.
    ///
    /// # Errors
    /// If it names none.
    pub fn of(environment: &Environment) -> Result<Self> {
        environment.cache_dir().map(Self::new)
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a model.
    pub(crate) fn model_dir(&self, name: &ModelName) -> PathBuf {
        self.root.join(name.folder())
    }

    /// The folder of a model at a commit.
    pub(crate) fn snapshot_dir(&self, name: &ModelName, commit: &str) -> PathBuf {
        self.model_dir(name).join("snapshots").join(commit)
    }

    /// The folder with the locks of a model's blobs.
    #[cfg(feature = "download")]
    pub(crate) fn locks_dir(&self, name: &ModelName) -> PathBuf {
        self.root.join(".locks").join(name.folder())
    }

    /// The folder of a model whose files are all there.
    ///
    /// # Errors
    /// [`Error::NotCached`], or [`Error::Incomplete`] if only a part is there.
    pub fn find(&self, name: &ModelName) -> Result<PathBuf> {
        let not_cached = || Error::NotCached { name: name.to_string(), dir: self.model_dir(name) };
        let dir = self.snapshot_dir(name, &self.commit(name).ok_or_else(not_cached)?);
        if !dir.is_dir() {
            return Err(not_cached());
        }
        match complete::check(&dir) {
            Ok(()) => Ok(dir),
            Err(why) => Err(Error::Incomplete { name: name.to_string(), dir, why }),
        }
    }

    /// The commit that a revision pointed to, or the revision itself if it is a commit.
    pub(crate) fn commit(&self, name: &ModelName) -> Option<String> {
        let revision = name.revision_or_main();
        let reference = self.model_dir(name).join("refs").join(revision);
        let commit = std::fs::read_to_string(reference).map(|text| text.trim().to_owned());
        let is_there = || is_commit(revision) && self.snapshot_dir(name, revision).is_dir();
        commit.ok().filter(|commit| is_commit(commit)).or_else(|| is_there().then(|| revision.to_owned()))
    }

    /// All models, sorted by name.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        let folders = entries(&self.root)?.into_iter().filter(|path| path.is_dir());
        let names = folders.filter_map(|path| ModelName::of_folder(path.file_name()?.to_str()?));
        let mut models = names.map(|name| self.model(&name)).collect::<Result<Vec<_>>>()?;
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(models)
    }

    /// One model.
    ///
    /// # Errors
    /// [`Error::NotCached`] if it is not there.
    pub fn model(&self, name: &ModelName) -> Result<CachedModel> {
        let dir = self.model_dir(name);
        if !dir.is_dir() {
            return Err(Error::NotCached { name: name.to_string(), dir });
        }
        let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (reference, commit) in self.refs(name)? {
            refs.entry(commit).or_default().push(reference);
        }
        let mut revisions = Vec::new();
        for snapshot in entries(&dir.join("snapshots"))? {
            let Some(commit) = snapshot.file_name().and_then(|n| n.to_str()).filter(|n| is_commit(n)) else {
                continue;
            };
            let files = files(&snapshot)?;
            // A link to nothing is a missing file, which the check reports.
            let bytes = files.iter().filter_map(|file| file.metadata().ok()).map(|m| m.len()).sum();
            revisions.push(CachedRevision {
                commit: commit.to_owned(),
                refs: refs.remove(commit).unwrap_or_default(),
                n_files: files.len(),
                bytes,
                lacks: complete::check(&snapshot).err(),
                dir: snapshot,
            });
        }
        let (mut bytes, mut unfinished_bytes) = (0, 0);
        for file in files(&dir)? {
            let metadata = file.symlink_metadata().map_err(Error::io(&file))?;
            if metadata.is_file() {
                bytes += metadata.len();
                let is_unfinished = file.extension().is_some_and(|e| e == "incomplete");
                unfinished_bytes += if is_unfinished { metadata.len() } else { 0 };
            }
        }
        Ok(CachedModel { id: name.id().to_owned(), bytes, unfinished_bytes, revisions })
    }

    /// The branches and tags of a model, with their commits.
    fn refs(&self, name: &ModelName) -> Result<Vec<(String, String)>> {
        let root = self.model_dir(name).join("refs");
        let mut refs = Vec::new();
        for file in files(&root)? {
            let reference = file.strip_prefix(&root).ok().and_then(Path::to_str);
            if let (Some(reference), Ok(commit)) = (reference, std::fs::read_to_string(&file)) {
                refs.push((reference.to_owned(), commit.trim().to_owned()));
            }
        }
        Ok(refs)
    }

    /// Deletes a model. If the name has a revision, deletes only this revision, with the blobs that no other revision
    /// uses. Returns how many bytes became free.
    ///
    /// # Errors
    /// [`Error::NotCached`] if it is not there, or if a file cannot be deleted.
    pub fn remove(&self, name: &ModelName) -> Result<u64> {
        let before = self.model(name)?;
        let not_cached = || Error::NotCached { name: name.to_string(), dir: self.model_dir(name) };
        let commit = match name.revision() {
            Some(_) => Some(self.commit(name).ok_or_else(not_cached)?),
            None => None,
        };
        let is_last = |commit: &String| before.revisions.iter().all(|r| r.commit == *commit);
        let Some(commit) = commit.filter(|commit| !is_last(commit)) else {
            self.remove_all(name)?;
            return Ok(before.bytes);
        };
        let dir = self.model_dir(name);
        for (reference, _) in self.refs(name)?.iter().filter(|(_, c)| *c == commit) {
            let path = dir.join("refs").join(reference);
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        let snapshot = self.snapshot_dir(name, &commit);
        std::fs::remove_dir_all(&snapshot).map_err(Error::io(&snapshot))?;
        let mut used = BTreeSet::new();
        for file in files(&dir.join("snapshots"))? {
            used.extend(file.canonicalize());
        }
        let is_whole = |blob: &PathBuf| blob.extension().is_none_or(|e| e != "incomplete");
        for blob in entries(&dir.join("blobs"))?.into_iter().filter(is_whole) {
            if blob.canonicalize().is_ok_and(|path| !used.contains(&path)) {
                std::fs::remove_file(&blob).map_err(Error::io(&blob))?;
            }
        }
        Ok(before.bytes - self.model(name)?.bytes)
    }

    /// The folder is first renamed, so that a half-deleted model never looks like a model. The locks stay. They are
    /// empty files, a download may hold one, and later downloads must wait for it.
    fn remove_all(&self, name: &ModelName) -> Result<()> {
        let dir = self.model_dir(name);
        let grave = tempfile::Builder::new().prefix(".zmlx-rm-").tempdir_in(&self.root);
        let grave = grave.map_err(Error::io(&self.root))?;
        std::fs::rename(&dir, grave.path().join("model")).map_err(Error::io(&dir))?;
        let path = grave.path().to_owned();
        grave.close().map_err(Error::io(&path))
    }
}

/// The contents of a folder, sorted; empty if the folder does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(dir)(error)),
    };
    let paths = entries.map(|entry| entry.map(|e| e.path()));
    let mut paths = paths.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(dir))?;
    paths.sort();
    Ok(paths)
}

/// All files and links in a folder and its subfolders. Links to folders are not followed.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for path in entries(&dir)? {
            let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
            if is_dir { left.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A model with two revisions that share a blob.
    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--a--b");
        for folder in ["blobs", "refs", "snapshots/c1", "snapshots/c2"] {
            std::fs::create_dir_all(model.join(folder)).unwrap();
        }
        let shard = [&2_u64.to_le_bytes()[..], b"{}"].concat();
        for (blob, bytes) in
            [("config1", &b"{}"[..]), ("config2", b"{ }"), ("shared", &shard), ("x.incomplete", b"1234")]
        {
            std::fs::write(model.join("blobs").join(blob), bytes).unwrap();
        }
        for (link, blob) in [
            ("c1/config.json", "config1"),
            ("c1/model.safetensors", "shared"),
            ("c2/config.json", "config2"),
            ("c2/model.safetensors", "shared"),
        ] {
            std::os::unix::fs::symlink(format!("../../blobs/{blob}"), model.join("snapshots").join(link))
                .unwrap();
        }
        std::fs::write(model.join("refs/main"), "c2").unwrap();
        std::fs::write(model.join("refs/old"), "c1\n").unwrap();
        let cache = Cache::new(dir.path().to_owned());
        (dir, cache)
    }

    fn name(text: &str) -> ModelName {
        text.parse().unwrap()
    }

    #[test]
    fn revisions_are_found_by_reference_and_by_commit() {
        let (dir, cache) = cache();
        let snapshots = dir.path().join("models--a--b/snapshots");
        for (text, commit) in [("a/b", "c2"), ("a/b@main", "c2"), ("a/b@old", "c1"), ("a/b@c1", "c1")] {
            assert_eq!(cache.find(&name(text)).unwrap(), snapshots.join(commit), "{text}");
        }
        for text in ["a/c", "a/b@c3", "a/b@other"] {
            assert!(matches!(cache.find(&name(text)), Err(Error::NotCached { .. })), "{text}");
        }
        // A reference that leads out of the cache is ignored.
        std::fs::write(dir.path().join("models--a--b/refs/main"), "../../../etc").unwrap();
        assert!(matches!(cache.find(&name("a/b")), Err(Error::NotCached { .. })));
        std::fs::write(dir.path().join("models--a--b/refs/main"), "c1").unwrap();
        std::fs::remove_file(snapshots.join("c1/model.safetensors")).unwrap();
        assert!(matches!(cache.find(&name("a/b")), Err(Error::Incomplete { .. })));
    }

    #[test]
    fn the_list_tells_sizes_and_what_is_missing() {
        let (dir, cache) = cache();
        std::fs::create_dir_all(dir.path().join("datasets--x--y/snapshots")).unwrap();
        let blob = dir.path().join("models--a--b/blobs/config1");
        std::fs::remove_file(blob).unwrap();
        let models = cache.list().unwrap();
        assert_eq!(models.len(), 1);
        let model = &models[0];
        assert_eq!((model.id.as_str(), model.unfinished_bytes), ("a/b", 4));
        assert_eq!(model.revisions[0].lacks.as_deref(), Some("config.json is missing"));
        let second = &model.revisions[1];
        assert_eq!((second.n_files, second.bytes, &second.lacks), (2, 13, &None));
        assert_eq!(second.refs, ["main"]);
        assert!(Cache::new(dir.path().join("nothing")).list().unwrap().is_empty());
    }

    #[test]
    fn a_revision_is_removed_without_what_others_use() {
        let (dir, cache) = cache();
        assert!(matches!(cache.remove(&name("a/c")), Err(Error::NotCached { .. })));
        assert!(matches!(cache.remove(&name("a/b@nothing")), Err(Error::NotCached { .. })));
        assert_eq!(cache.remove(&name("a/b@old")).unwrap(), 2 + "c1\n".len() as u64);
        assert!(cache.find(&name("a/b")).is_ok());
        assert!(cache.find(&name("a/b@old")).is_err());
        assert!(cache.remove(&name("a/b")).unwrap() > 13);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! Downloads a model: all files or none.

mod fetch;
mod place;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::{Client, RemoteFile, pause};
use crate::digest::Digest;
use crate::{Cache, Environment, Error, ModelName, Result};
use fetch::Fetch;

/// Number of connections at once. A store does not use the whole line for a single connection.
const N_CONNECTIONS: usize = 4;

/// The largest number of successive attempts that bring no data.
pub(crate) const MAX_IDLE_ATTEMPTS: u32 = 5;

/// The longest pause that is waited for. If the hub asks for more, this is reported as an error.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// Space that is left free on the disk, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// A hub, and the cache that its models are downloaded to.
pub struct Hub {
    cache: Cache,
    client: Client,
    offline: Option<String>,
}

/// An event during the download of a model.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Notice<'a> {
    /// It is now known what has to be done.
    Begin {
        /// Number of files of the model.
        n_files: usize,
        /// Size of all files in bytes.
        bytes: u64,
        /// Number of these bytes that are already present.
        present_bytes: u64,
    },
    /// This many bytes have come. The number is negative if earlier bytes were discarded.
    Bytes(i64),
    /// A file is complete and its hash is right.
    Done {
        /// Its path, relative to the model.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
    },
    /// Another process downloads the file.
    Waiting {
        /// Its path, relative to the model.
        file: &'a str,
    },
    /// An attempt failed. Another one follows.
    Again {
        /// The error.
        error: &'a Error,
        /// The time until the next attempt.
        pause: Duration,
    },
}

/// A model that was downloaded or already present.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// Its folder.
    pub dir: PathBuf,
    /// Its commit.
    pub commit: String,
}

/// A file with its expected size and hash.
#[derive(Clone, Debug)]
struct Wanted {
    path: String,
    url: String,
    digest: Digest,
    size: u64,
}

impl Hub {
    /// The hub and the cache that an environment names.
    ///
    /// # Errors
    /// If a variable has a value that cannot be used.
    pub fn of(environment: &Environment) -> Result<Self> {
        let offline = environment.forbids_network().map(|variable| format!("{variable} is set"));
        Ok(Self { cache: Cache::of(environment)?, client: Client::new(environment)?, offline })
    }

    /// Downloads what the cache lacks of a model as it is on the hub now. If anything goes wrong, the cache never
    /// contains a partial model that looks complete, and the next call continues with what has come so far.
    ///
    /// # Errors
    /// If the hub cannot be reached or refuses, if it sends something other than it lists, or if the model does not fit
    /// on the disk.
    pub fn pull(&self, name: &ModelName, notice: &(dyn Fn(Notice<'_>) + Sync)) -> Result<Pulled> {
        if let Some(why) = self.offline.clone() {
            return Err(Error::Offline { name: name.to_string(), why });
        }
        let listing = patiently(notice, || self.client.listing(name))?;
        if !listing.files.iter().any(|file| file.path == "config.json") {
            return Err(lacks(name, "config.json"));
        }
        if !listing.files.iter().any(|file| file.path.ends_with(".safetensors")) {
            return Err(lacks(name, "*.safetensors"));
        }
        let describe = |file: &RemoteFile| {
            let url = self.client.file_url(name, &listing.commit, &file.path);
            let (digest, size) = match (&file.digest, file.size) {
                (Some(digest), Some(size)) => (digest.clone(), size),
                _ => patiently(notice, || self.client.describe(&url, &file.path))?,
            };
            Ok(Wanted { path: file.path.clone(), url, digest, size })
        };
        let mut files = listing.files.iter().map(describe).collect::<Result<Vec<_>>>()?;
        let blobs = self.cache.model_dir(name).join("blobs");
        let present_bytes = files.iter().map(|file| file.present_bytes(&blobs)).sum::<u64>();
        let bytes = files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.size));
        notice(Notice::Begin { n_files: files.len(), bytes, present_bytes });
        self.check_space(name, bytes.saturating_sub(present_bytes))?;
        // Small files come first. They fail early, and the large ones keep the connections busy at the end.
        files.sort_by_key(|file| file.size);
        self.fetch_all(name, &files, notice)?;
        let dir = place::snapshot(&self.cache, name, &listing.commit, &files)?;
        Ok(Pulled { dir, commit: listing.commit })
    }

    fn check_space(&self, name: &ModelName, need_bytes: u64) -> Result<()> {
        let root = self.cache.root();
        match free_bytes(root) {
            Some(free_bytes) if need_bytes > 0 && need_bytes.saturating_add(SPARE_BYTES) > free_bytes => {
                Err(Error::NoSpace { dir: root.to_owned(), name: name.to_string(), need_bytes, free_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Downloads all files, several at once. The first failure stops the others.
    fn fetch_all(
        &self,
        name: &ModelName,
        files: &[Wanted],
        notice: &(dyn Fn(Notice<'_>) + Sync),
    ) -> Result<()> {
        let folders = [self.cache.model_dir(name).join("blobs"), self.cache.locks_dir(name)];
        for folder in &folders {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let [blobs, locks] = &folders;
        let is_given_up = AtomicBool::new(false);
        let left = Mutex::new(files.iter());
        let failure = Mutex::new(None);
        let work = || {
            while let Some(file) = left.lock().ok().and_then(|mut left| left.next()) {
                let fetch =
                    Fetch { client: &self.client, blobs, locks, file, notice, is_given_up: &is_given_up };
                if let Err(error) = fetch.run() {
                    is_given_up.store(true, Ordering::Relaxed);
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(error);
                    }
                    return;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..N_CONNECTIONS.min(files.len()) {
                scope.spawn(work);
            }
        });
        failure.into_inner().ok().flatten().map_or(Ok(()), Err)
    }
}

impl Wanted {
    fn blob(&self, blobs: &Path) -> PathBuf {
        blobs.join(self.digest.hex())
    }

    fn partial(&self, blobs: &Path) -> PathBuf {
        blobs.join(format!("{}.incomplete", self.digest.hex()))
    }

    /// True if the blob exists. It got its name when its hash was right, but its size is checked anyway.
    fn is_present(&self, blobs: &Path) -> bool {
        self.blob(blobs).metadata().is_ok_and(|m| m.is_file() && m.len() == self.size)
    }

    fn present_bytes(&self, blobs: &Path) -> u64 {
        if self.is_present(blobs) {
            return self.size;
        }
        self.partial(blobs).metadata().map_or(0, |m| m.len().min(self.size))
    }
}

/// Repeats a request while the hub is busy or the connection fails.
fn patiently<T>(notice: &dyn Fn(Notice<'_>), ask: impl Fn() -> Result<T>) -> Result<T> {
    let mut attempt = 0;
    loop {
        match ask() {
            Err(error) if attempt + 1 < MAX_IDLE_ATTEMPTS && is_passing(&error) => {
                let pause = pause(&error, attempt);
                notice(Notice::Again { error: &error, pause });
                std::thread::sleep(pause);
                attempt += 1;
            }
            done => return done,
        }
    }
}

/// True for errors that may disappear soon.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Network { .. } | Error::Truncated { .. } => true,
        Error::Status { status, .. } => {
            matches!(status, 408 | 425 | 429 | 500..=599) && pause(error, 0) <= MAX_PAUSE
        }
        _ => false,
    }
}

fn lacks(name: &ModelName, what: &str) -> Error {
    let why = format!("the hub has no {what} of it: not a model in MLX's format");
    Error::NoModel { name: name.to_string(), why }
}

/// Free bytes at the place of a folder, which need not exist yet.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|dir| dir.is_dir())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    // The types differ between systems.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "not useless on other systems")]
    Some((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

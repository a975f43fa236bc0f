//! Downloads one file: attempt after attempt until it is complete, under a lock that keeps other processes away.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{MAX_IDLE_ATTEMPTS, Notice, Wanted, is_passing};
use crate::client::{Client, pause};
use crate::digest::Hasher;
use crate::{Error, Result};

/// How often to check whether the other process is done, or whether the work was stopped.
const GLANCE: Duration = Duration::from_millis(100);

pub(super) struct Fetch<'a> {
    pub(super) client: &'a Client,
    pub(super) blobs: &'a Path,
    pub(super) locks: &'a Path,
    pub(super) file: &'a Wanted,
    pub(super) notice: &'a (dyn Fn(Notice<'_>) + Sync),
    pub(super) is_given_up: &'a AtomicBool,
}

/// The part of a file that has come, with its hash so far.
struct Partial {
    file: File,
    len: u64,
    hasher: Hasher,
}

impl Fetch<'_> {
    /// Makes sure that the blob exists.
    pub(super) fn run(&self) -> Result<()> {
        let Wanted { path, size, .. } = self.file;
        let done = Notice::Done { file: path, bytes: *size };
        if self.file.is_present(self.blobs) {
            (self.notice)(done);
            return Ok(());
        }
        let _lock = self.lock()?;
        let seen = self.file.partial(self.blobs).metadata().map_or(0, |m| m.len().min(*size));
        if self.file.is_present(self.blobs) {
            // The other process has downloaded it.
            (self.notice)(Notice::Bytes((size - seen) as i64));
            (self.notice)(done);
            return Ok(());
        }
        let path = self.file.partial(self.blobs);
        let mut partial = self.open(&path)?;
        let (mut n_idle, mut n_wrong, mut farthest) = (0, 0, partial.len);
        loop {
            let error = match self.attempt(&mut partial).and_then(|()| self.check(&partial)) {
                Ok(()) => break,
                Err(error) => error,
            };
            if matches!(error, Error::Differs { .. }) {
                n_wrong += 1;
                self.restart(&mut partial, &path)?;
                if n_wrong > 1 {
                    let _ = std::fs::remove_file(&path);
                    return Err(error);
                }
                (self.notice)(Notice::Again { error: &error, pause: Duration::ZERO });
                continue;
            }
            // If the hub says that the offset is after the end of the file, what has come is not the beginning of this
            // file.
            let is_behind = matches!(error, Error::Status { status: 416, .. }) && partial.len > 0;
            if is_behind || matches!(error, Error::Answer { .. }) && partial.len > 0 {
                self.restart(&mut partial, &path)?;
            } else if !is_passing(&error) {
                return Err(error);
            }
            n_idle = if partial.len > farthest { 0 } else { n_idle + 1 };
            farthest = farthest.max(partial.len);
            if n_idle >= MAX_IDLE_ATTEMPTS {
                return Err(error);
            }
            let pause = if partial.len > 0 && n_idle == 0 {
                Duration::ZERO
            } else {
                pause(&error, n_idle.saturating_sub(1))
            };
            (self.notice)(Notice::Again { error: &error, pause });
            self.wait(pause)?;
        }
        partial.file.sync_all().map_err(Error::io(&path))?;
        let blob = self.file.blob(self.blobs);
        std::fs::rename(&path, &blob).map_err(Error::io(&blob))?;
        (self.notice)(done);
        Ok(())
    }

    /// Waits until no other process downloads the file.
    fn lock(&self) -> Result<File> {
        let path = self.locks.join(format!("{}.lock", self.file.digest.hex()));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io(&path))?;
        let mut is_told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {
                    if !is_told {
                        (self.notice)(Notice::Waiting { file: &self.file.path });
                        is_told = true;
                    }
                    self.wait(GLANCE)?;
                }
                Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
            }
        }
    }

    /// Opens what an earlier attempt left. If it is longer than the file, it is not the file's beginning.
    fn open(&self, path: &Path) -> Result<Partial> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path);
        let mut file = file.map_err(Error::io(path))?;
        let len = file.metadata().map_err(Error::io(path))?.len();
        let hasher = self.file.digest.hasher(self.file.size);
        let mut partial = Partial { file: file.try_clone().map_err(Error::io(path))?, len, hasher };
        if len > self.file.size {
            partial.len = 0;
            file.set_len(0).map_err(Error::io(path))?;
        } else {
            partial.hasher.update_from(&mut file, path)?;
        }
        Ok(partial)
    }

    fn restart(&self, partial: &mut Partial, path: &Path) -> Result<()> {
        (self.notice)(Notice::Bytes(-(partial.len as i64)));
        partial.len = 0;
        partial.hasher = self.file.digest.hasher(self.file.size);
        partial.file.set_len(0).map_err(Error::io(path))?;
        partial.file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
        Ok(())
    }

    /// Requests the missing part once.
    fn attempt(&self, partial: &mut Partial) -> Result<()> {
        let Wanted { path: what, url, size, .. } = self.file;
        if self.is_given_up.load(Ordering::Relaxed) {
            return Err(Error::GivenUp);
        }
        if partial.len == *size {
            return Ok(());
        }
        let mut content = self.client.content(url, partial.len, what)?;
        if let Some(total) = content.total.filter(|total| total != size) {
            return Err(self.differs(format!("{size} bytes"), format!("{total} bytes")));
        }
        let path = self.file.partial(self.blobs);
        if content.start != partial.len {
            self.restart(partial, &path)?;
        }
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match content.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let host = url.split('/').nth(2).unwrap_or_default().to_owned();
                    return Err(Error::Network { host, why: format!("{what}: {error}") });
                }
            };
            if partial.len + n as u64 > *size {
                return Err(self.differs(format!("{size} bytes"), "more".to_owned()));
            }
            partial.file.write_all(&buffer[..n]).map_err(Error::io(&path))?;
            partial.hasher.update(&buffer[..n]);
            partial.len += n as u64;
            (self.notice)(Notice::Bytes(n as i64));
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(Error::GivenUp);
            }
        }
        if partial.len < *size {
            return Err(Error::Truncated { what: what.clone(), want: *size, got: partial.len });
        }
        Ok(())
    }

    fn check(&self, partial: &Partial) -> Result<()> {
        let (want, got) = (self.file.digest.hex(), partial.hasher.clone().hex());
        if want == got { Ok(()) } else { Err(self.differs(format!("hash {want}"), got)) }
    }

    fn differs(&self, want: String, got: String) -> Error {
        Error::Differs { what: self.file.path.clone(), want, got }
    }

    fn wait(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            if self.is_given_up.load(Ordering::Relaxed) {
                return Err(Error::GivenUp);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(GLANCE));
        }
    }
}

//! The errors of the hub and its cache.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model is not available.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text is not the name of a model.
    #[error("{name}: expected the name of a model on the hub, org/name or org/name@revision")]
    Name {
        /// The text.
        name: String,
    },
    /// A text is not the name of a revision.
    #[error("{revision}: expected a revision: a branch, a tag or a commit")]
    Revision {
        /// The text.
        revision: String,
    },
    /// Neither an environment variable nor a home folder determines where the cache is.
    #[error("there is no home folder for the Hugging Face cache: set HF_HOME")]
    NoCache,
    /// The cache does not hold the model.
    #[error("{name}: not in the Hugging Face cache ({dir})", dir = dir.display())]
    NotCached {
        /// The model.
        name: String,
        /// Where it would be.
        dir: PathBuf,
    },
    /// The cache holds only a part of the model.
    #[error("{name}: incomplete in the Hugging Face cache: {why} ({dir})", dir = dir.display())]
    Incomplete {
        /// The model.
        name: String,
        /// Its folder.
        dir: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// An environment variable has a value that cannot be used. The error does not contain the value, which may be a
    /// secret.
    #[error("{variable}: expected {want}")]
    Variable {
        /// The variable, or the file that it names.
        variable: String,
        /// The values that can be used.
        want: &'static str,
    },
    /// The use of the network is forbidden.
    #[error("{name}: {why}, so nothing is downloaded")]
    Offline {
        /// The model.
        name: String,
        /// What forbids it.
        why: String,
    },
    /// The hub cannot be reached.
    #[error("{host}: cannot be reached: {why}")]
    Unreachable {
        /// The host that was contacted.
        host: String,
        /// The reason.
        why: String,
    },
    /// The connection failed.
    #[error("{host}: {why}")]
    Network {
        /// The host that was contacted.
        host: String,
        /// The reason.
        why: String,
    },
    /// The hub refuses a request.
    #[error("{what}: {host} answers {status}{}", explained(*status, message))]
    Status {
        /// What was requested.
        what: String,
        /// The host that was contacted.
        host: String,
        /// The status of the answer.
        status: u16,
        /// The hub's message.
        message: String,
        /// How long to wait before the next attempt, in seconds, if the hub names a time.
        retry_after_s: Option<u64>,
    },
    /// The hub's answer cannot be understood.
    #[error("{what}: {host} answers with {got}, expected {want}")]
    Answer {
        /// What was requested.
        what: String,
        /// The host that was contacted.
        host: String,
        /// What the answer should be.
        want: &'static str,
        /// What the answer is.
        got: String,
    },
    /// The body of an answer ended early.
    #[error("{what}: the transfer ended after {got} of {want} bytes")]
    Truncated {
        /// The file.
        what: String,
        /// Number of bytes that were expected.
        want: u64,
        /// Number of bytes that came.
        got: u64,
    },
    /// The file that was sent differs from the one in the hub's list, also at the second attempt.
    #[error(
        "{what}: the file that the hub sends differs from the one that it lists: expected {want}, got {got}"
    )]
    Differs {
        /// The file.
        what: String,
        /// The size or hash in the hub's list.
        want: String,
        /// The size or hash of the file that was sent.
        got: String,
    },
    /// The repository contains no model that can be used.
    #[error("{name}: {why}")]
    NoModel {
        /// The model.
        name: String,
        /// What is missing.
        why: String,
    },
    /// There is not enough space on the disk.
    #[error("{dir}: {name} needs {need_bytes} bytes more, but only {free_bytes} are free", dir = dir.display())]
    NoSpace {
        /// The cache.
        dir: PathBuf,
        /// The model.
        name: String,
        /// Number of bytes to download.
        need_bytes: u64,
        /// Number of bytes that are free on the disk.
        free_bytes: u64,
    },
    /// The work was stopped because another part of it failed.
    #[error("given up")]
    GivenUp,
}

impl Error {
    /// For `map_err` of errors that concern a file.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn explained(status: u16, message: &str) -> String {
    let hint = match status {
        401 => ": there is no such model, or it needs a token: set HF_TOKEN",
        403 => ": the token has no access, or the model's terms have to be accepted on its page",
        404 => ": there is no such model, revision or file",
        429 => ": too many requests",
        _ => "",
    };
    if message.is_empty() { hint.to_owned() } else { format!("{hint} ({message})") }
}

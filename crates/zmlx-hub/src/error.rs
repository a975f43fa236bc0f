//! What goes wrong with the hub and its cache.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that names no model.
    #[error("{name}: expected the name of a model on the hub, org/name or org/name@revision")]
    Name {
        /// The text.
        name: String,
    },
    /// A text that names no revision.
    #[error("{revision}: expected a revision: a branch, a tag or a commit")]
    Revision {
        /// The text.
        revision: String,
    },
    /// Neither variables nor a home folder say where the cache is.
    #[error("there is no home folder to have a Hugging Face cache in: set HF_HOME")]
    NoCache,
    /// The cache does not hold the model.
    #[error("{name}: not in the Hugging Face cache ({dir})", dir = dir.display())]
    NotCached {
        /// The model.
        name: String,
        /// Where it would be.
        dir: PathBuf,
    },
    /// The cache holds a part of the model.
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
        /// Why.
        source: std::io::Error,
    },
    /// A variable has a value that cannot be used. The value is not told: it may be a secret.
    #[error("{variable}: expected {want}")]
    Variable {
        /// The variable, or the file that it names.
        variable: String,
        /// What it may be.
        want: &'static str,
    },
    /// The network is not to be used.
    #[error("{name}: {why}, so nothing is downloaded")]
    Offline {
        /// The model.
        name: String,
        /// Who says so.
        why: String,
    },
    /// The hub cannot be reached.
    #[error("{host}: cannot be reached: {why}")]
    Unreachable {
        /// The host that was asked.
        host: String,
        /// Why.
        why: String,
    },
    /// The connection broke.
    #[error("{host}: {why}")]
    Network {
        /// The host that was asked.
        host: String,
        /// What the connection met.
        why: String,
    },
    /// The hub refuses.
    #[error("{what}: {host} answers {status}{}", explained(*status, message))]
    Status {
        /// What was asked for.
        what: String,
        /// The host that was asked.
        host: String,
        /// The status of the answer.
        status: u16,
        /// The hub's own words.
        message: String,
        /// How long to wait before asking again, in seconds, if the hub says so.
        retry_after_s: Option<u64>,
    },
    /// The hub's answer makes no sense.
    #[error("{what}: {host} answers with {got}, expected {want}")]
    Answer {
        /// What was asked for.
        what: String,
        /// The host that was asked.
        host: String,
        /// What the answer should be.
        want: &'static str,
        /// What it is.
        got: String,
    },
    /// The body of an answer ended early.
    #[error("{what}: the transfer ended after {got} of {want} bytes")]
    Truncated {
        /// The file.
        what: String,
        /// Bytes that there should be.
        want: u64,
        /// Bytes that there are.
        got: u64,
    },
    /// What came is not what the hub lists, also the second time.
    #[error("{what}: what the hub sends is not the file that it lists: expected {want}, got {got}")]
    Differs {
        /// The file.
        what: String,
        /// Size or hash that the hub names.
        want: String,
        /// Size or hash of what came.
        got: String,
    },
    /// The repository has no model that could be used.
    #[error("{name}: {why}")]
    NoModel {
        /// The model.
        name: String,
        /// What is missing.
        why: String,
    },
    /// The disk has too little space.
    #[error("{dir}: {name} needs {need_bytes} bytes more, but only {free_bytes} are free", dir = dir.display())]
    NoSpace {
        /// The cache.
        dir: PathBuf,
        /// The model.
        name: String,
        /// Bytes to download.
        need_bytes: u64,
        /// Bytes that the disk has.
        free_bytes: u64,
    },
    /// The work was given up because another part of it failed.
    #[error("given up")]
    GivenUp,
}

impl Error {
    /// For `map_err` of what concerns a file.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn explained(status: u16, message: &str) -> String {
    let hint = match status {
        401 => ": there is no such model, or it takes a token: set HF_TOKEN",
        403 => ": the token has no access, or the model's terms have to be accepted on its page",
        404 => ": there is no such model, revision or file",
        429 => ": too many requests",
        _ => "",
    };
    if message.is_empty() { hint.to_owned() } else { format!("{hint} ({message})") }
}

//! Models by their names on the Hugging Face hub: where the local cache holds them, and how they are downloaded.
//!
//! The cache has the layout of Hugging Face's own tools, so that each finds what the other has downloaded:
//!
//! ```text
//! models--org--name/refs/main                   the commit that a branch or tag pointed to
//! models--org--name/snapshots/COMMIT/FILE       a link to the blob
//! models--org--name/blobs/HASH                  the content: SHA-256 of large files, git's SHA-1 of small ones
//! models--org--name/blobs/HASH.incomplete       what has been downloaded so far
//! .locks/models--org--name/HASH.lock            held by the process that downloads the blob
//! ```
//!
//! Three rules hold. A blob gets its name only when it is complete and its hash is right. The links are created when
//! all blobs exist, `config.json` last, and then the reference. A snapshot without `config.json`, or with shards that
//! are missing or too short, is never returned as a model.
#![forbid(unsafe_code)]

mod cache;
#[cfg(feature = "download")]
mod client;
mod complete;
#[cfg(feature = "download")]
mod digest;
mod environment;
mod error;
mod name;
#[cfg(feature = "download")]
mod pull;
#[cfg(feature = "download")]
mod verify;

pub use cache::{Cache, CachedModel, CachedRevision};
pub use environment::Environment;
pub use error::{Error, Result};
pub use name::ModelName;
#[cfg(feature = "download")]
pub use pull::{Hub, Notice, Pulled};
#[cfg(feature = "download")]
pub use verify::Verified;

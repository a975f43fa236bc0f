//! The program that ran: what the build script found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The program and how it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Build {
    /// Its version.
    pub(crate) version: String,
    /// The commit of its sources; null outside a git repository.
    pub(crate) commit: Option<String>,
    /// True if files that the build is made of had changes which that commit lacks.
    pub(crate) dirty: bool,
    /// `release` or `debug`.
    pub(crate) profile: String,
    /// The target triple.
    pub(crate) target: String,
    /// The compiler's version.
    pub(crate) rustc: String,
    /// Flags for the compiler beyond the profile's.
    pub(crate) rustflags: String,
    /// The cargo features of the command.
    pub(crate) features: Vec<String>,
}

impl Build {
    /// Of this program.
    pub(crate) fn this() -> Self {
        let commit = env!("ZMLX_BUILD_COMMIT");
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: (!commit.is_empty()).then(|| commit.to_owned()),
            dirty: !env!("ZMLX_BUILD_DIRTY").is_empty(),
            profile: env!("ZMLX_BUILD_PROFILE").to_owned(),
            target: env!("ZMLX_BUILD_TARGET").to_owned(),
            rustc: env!("ZMLX_BUILD_RUSTC").to_owned(),
            rustflags: env!("ZMLX_BUILD_RUSTFLAGS").to_owned(),
            features: env!("ZMLX_BUILD_FEATURES").split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// The commit's first digits, with `+` if there were changes beyond it.
    pub(crate) fn short_commit(&self) -> String {
        let commit = self.commit.as_deref().map_or("unknown", |c| c.get(..10).unwrap_or(c));
        format!("{commit}{}", if self.dirty { "+" } else { "" })
    }
}

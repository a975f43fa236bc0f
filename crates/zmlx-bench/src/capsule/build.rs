//! The program that ran.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The program, and how it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The commit of its sources; null if they were not in a git repository.
    pub commit: Option<String>,
    /// True if source files of the build had changes that are not in that commit.
    pub dirty: bool,
    /// `release` or `debug`.
    pub profile: String,
    /// The target triple.
    pub target: String,
    /// The compiler's version.
    pub rustc: String,
    /// Compiler flags in addition to the profile's.
    pub rustflags: String,
    /// The cargo features of the command.
    pub features: Vec<String>,
}

impl Build {
    /// The first digits of the commit, followed by `+` if there were uncommitted changes.
    pub fn short_commit(&self) -> String {
        let commit = self.commit.as_deref().map_or("unknown", |c| c.get(..10).unwrap_or(c));
        format!("{commit}{}", if self.dirty { "+" } else { "" })
    }
}

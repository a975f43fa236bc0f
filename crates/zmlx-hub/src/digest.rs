//! The hashes that the hub uses as names of contents.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The hash of a content in lower-case hexadecimal digits. It is the name of the blob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Digest {
    /// SHA-256 of the content, for large files.
    Sha256(String),
    /// SHA-1 of git's header and the content, for small files.
    Git(String),
}

impl Digest {
    /// Parses the hash in an etag, or the name of a blob. The length determines the kind. `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        match text.len() {
            _ if !text.bytes().all(|b| b.is_ascii_hexdigit()) => None,
            64 => Some(Self::Sha256(text)),
            40 => Some(Self::Git(text)),
            _ => None,
        }
    }

    /// The hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        let (Self::Sha256(hex) | Self::Git(hex)) = self;
        hex
    }

    /// A hasher for a content of `n_bytes` bytes.
    pub(crate) fn hasher(&self, n_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Git(_) => Hasher::Git(Sha1::new().chain_update(format!("blob {n_bytes}\0"))),
        }
    }
}

/// The hash of the content so far.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    /// Adds the rest of a file from its present position.
    pub(crate) fn update_from(&mut self, file: &mut File, path: &Path) -> Result<()> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer).map_err(Error::io(path))? {
                0 => return Ok(()),
                n => self.update(&buffer[..n]),
            }
        }
    }

    pub(crate) fn hex(self) -> String {
        let digits = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut hex, byte| {
                // Writing to a string cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
        };
        match self {
            Self::Sha256(hasher) => digits(&hasher.finalize()),
            Self::Git(hasher) => digits(&hasher.finalize()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum_and_git() {
        // printf hello | sha256sum; printf hello | git hash-object --stdin
        for hex in [
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
        ] {
            let digest = Digest::parse(&hex.to_uppercase()).unwrap();
            let mut hasher = digest.hasher(5);
            hasher.update(b"hel");
            hasher.update(b"lo");
            assert_eq!((hasher.hex().as_str(), digest.hex()), (hex, hex));
        }
        for text in
            ["", "abc", "../../../../../../../../../../../../../../x", &"g".repeat(64), &"a".repeat(65)]
        {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }
}

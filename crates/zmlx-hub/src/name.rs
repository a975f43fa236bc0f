//! Names of models: `org/name`, and `org/name@revision`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The revision of a name that does not contain one.
const MAIN: &str = "main";

/// A model on the hub, optionally with a revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    id: String,
    revision: Option<String>,
}

impl ModelName {
    /// The same model at another revision.
    ///
    /// # Errors
    /// If git does not allow it as the name of a revision.
    pub fn at(self, revision: &str) -> Result<Self> {
        if !is_revision(revision) {
            return Err(Error::Revision { revision: revision.to_owned() });
        }
        Ok(Self { revision: Some(revision.to_owned()), ..self })
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The revision, if the name has one.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// The revision; `main` if the name has none.
    pub fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }

    /// The name of the model's folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}", self.id.replace('/', "--"))
    }

    /// The model whose folder has this name.
    pub(crate) fn of_folder(folder: &str) -> Option<Self> {
        folder.strip_prefix("models--")?.replacen("--", "/", 1).parse().ok()
    }
}

impl FromStr for ModelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        if !is_id(id) {
            return Err(Error::Name { name: text.to_owned() });
        }
        let name = Self { id: id.to_owned(), revision: None };
        match revision {
            Some(revision) => name.at(revision),
            None => Ok(name),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

/// True for `org/name` with only the characters that the hub allows.
fn is_id(text: &str) -> bool {
    let is_part = |part: &str| {
        let admitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ends = |c: char| matches!(c, '-' | '.');
        (1..=96).contains(&part.len())
            && part.chars().all(admitted)
            && !part.starts_with(ends)
            && !part.ends_with(ends)
            && !part.contains("--")
            && !part.contains("..")
    };
    text.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name))
}

/// True for names that git allows for a branch or a tag. The name is also used as a path within `refs`.
fn is_revision(text: &str) -> bool {
    let admitted = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '~' | '^' | ':' | '?' | '*' | '[');
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    text.len() <= 200 && text.chars().all(admitted) && !text.contains("..") && text.split('/').all(is_part)
}

/// True for the hash of a commit. It is also the name of a folder, so only letters and digits are allowed.
pub(crate) fn is_commit(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_hub_has() {
        for (text, id, revision) in [
            ("mlx-community/GLM-4.7-Flash-4bit", "mlx-community/GLM-4.7-Flash-4bit", None),
            ("a/b_c.d", "a/b_c.d", None),
            ("a/b@v1.0", "a/b", Some("v1.0")),
            ("a/b@refs/pr/1", "a/b", Some("refs/pr/1")),
        ] {
            let name: ModelName = text.parse().unwrap();
            assert_eq!((name.id(), name.revision()), (id, revision));
            assert_eq!(name.to_string(), text);
        }
        let name: ModelName = "a/b".parse().unwrap();
        assert_eq!((name.revision_or_main(), name.folder().as_str()), ("main", "models--a--b"));
        assert_eq!(ModelName::of_folder("models--a--b-c"), Some("a/b-c".parse().unwrap()));
        assert_eq!(ModelName::of_folder("datasets--a--b"), None);
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_name() {
        for text in [
            "name",
            "/abs",
            "a/b/c",
            "../x",
            "a/..",
            "./a",
            "a/",
            "a b/c",
            "",
            "a/b--c",
            "a/-b",
            "a/b@",
            "a/b@../x",
            "a/b@x/../y",
            "a/b@/x",
            "a/b@x//y",
            "a/b@.x",
            "a/b@x y",
            "a/b@x\u{1b}",
            "a/b@x\\y",
            "a/b@x.lock",
            "ä/b",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        for commit in ["", "a/b", "..", "a-b", "é"] {
            assert!(!is_commit(commit), "{commit:?}");
        }
    }
}

//! The variables of Hugging Face's own tools.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The environment variables and the home folder, which determine where the cache is and how the hub is reached.
#[derive(Clone)]
pub struct Environment {
    variables: HashMap<String, OsString>,
    home: Option<PathBuf>,
}

impl std::fmt::Debug for Environment {
    /// Prints no values, because one of them is a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self { variables: named.collect(), home: std::env::home_dir() }
    }

    /// An environment with only these variables.
    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>, home: Option<PathBuf>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
        Self { variables: variables.collect(), home }
    }

    /// The folder of the cache. `~` and variables in the values are expanded, because the values may come from places
    /// where no shell does this (`.env` files, containers).
    ///
    /// # Errors
    /// If there is neither such a variable nor a home folder.
    pub fn cache_dir(&self) -> Result<PathBuf> {
        self.path("HF_HUB_CACHE")
            .or_else(|| self.path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| self.hf_home().map(|home| home.join("hub")))
            .ok_or(Error::NoCache)
    }

    /// The variable that forbids the use of the network, if one does.
    pub fn forbids_network(&self) -> Option<&'static str> {
        ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| self.is_on(name))
    }

    /// The folder in which Hugging Face's tools keep everything.
    fn hf_home(&self) -> Option<PathBuf> {
        self.path("HF_HOME")
            .or_else(|| self.path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| self.home.as_ref().map(|home| home.join(".cache/huggingface")))
    }

    /// True if a variable is set to one of the words that Hugging Face's tools accept as yes.
    fn is_on(&self, name: &str) -> bool {
        let value = self.variables.get(name).and_then(|value| value.to_str()).unwrap_or_default();
        ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.variables.get(name).filter(|value| !value.is_empty())?;
        Some(match value.to_str() {
            Some(text) => PathBuf::from(self.with_variables(&with_home(text, self.home.as_deref()))),
            None => PathBuf::from(value),
        })
    }

    /// Replaces `$NAME` and `${NAME}` by their values. Variables that are not set stay as they are.
    fn with_variables(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, tail) = rest.split_at(at);
            expanded += before;
            let (name, len) = match tail.strip_prefix("${") {
                Some(inner) => inner.find('}').map_or(("", 1), |end| (&inner[..end], end + 3)),
                None => {
                    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    let end = tail[1..].find(|c| !is_part(c)).map_or(tail.len(), |end| end + 1);
                    (&tail[1..end], end)
                }
            };
            match self.variables.get(name).and_then(|value| value.to_str()) {
                Some(value) => expanded += value,
                None => expanded += &tail[..len],
            }
            rest = &tail[len..];
        }
        expanded + rest
    }
}

#[cfg(feature = "download")]
impl Environment {
    /// The hub's URL without a slash at its end.
    pub(crate) fn endpoint(&self) -> Result<String> {
        let text = self.text("HF_ENDPOINT").unwrap_or("https://huggingface.co");
        Ok(text.trim().trim_end_matches('/').to_owned())
    }

    /// The token: that of the variable, or that in the file in which `hf auth login` stores it.
    pub(crate) fn token(&self) -> Result<Option<String>> {
        let names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
        if let Some((name, token)) = names.iter().find_map(|name| Some((*name, self.text(name)?.trim()))) {
            return checked_token(token, name);
        }
        if self.is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return Ok(None);
        }
        let path = self.path("HF_TOKEN_PATH").or_else(|| self.hf_home().map(|home| home.join("token")));
        let Some(path) = path else { return Ok(None) };
        match std::fs::read_to_string(&path) {
            Ok(text) => checked_token(text.trim(), &path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// How long the hub may be silent. Hugging Face's own tools wait ten seconds, which is too short for a busy store.
    pub(crate) fn timeout(&self) -> Result<std::time::Duration> {
        const NAME: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
        let Some(text) = self.text(NAME) else { return Ok(std::time::Duration::from_secs(30)) };
        let seconds = text.trim().parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
        let want = "seconds, from 1 to 86400";
        seconds
            .map(std::time::Duration::from_secs)
            .ok_or_else(|| Error::Variable { variable: NAME.to_owned(), want })
    }

    /// The file with certificate authorities, if the environment names one.
    pub(crate) fn authorities(&self) -> Option<PathBuf> {
        ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"].into_iter().find_map(|name| self.path(name))
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.to_str().filter(|text| !text.trim().is_empty())
    }
}

/// A token goes into a header, so it must not contain anything that could end the header.
#[cfg(feature = "download")]
fn checked_token(token: &str, origin: &str) -> Result<Option<String>> {
    if token.is_empty() {
        return Ok(None);
    }
    if token.len() > 8192 || !token.bytes().all(|b| b.is_ascii_graphic()) {
        let want = "a token of letters, digits and signs in one line";
        return Err(Error::Variable { variable: origin.to_owned(), want });
    }
    Ok(Some(token.to_owned()))
}

/// Replaces a `~` at the start of a path by the home folder. Home folders of other users stay as they are written.
fn with_home(text: &str, home: Option<&Path>) -> String {
    match (text.strip_prefix('~'), home.and_then(Path::to_str)) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn environment(set: &[(&str, &str)]) -> Environment {
        Environment::new(set.iter().copied(), Some("/h".into()))
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        for (set, want) in [
            (&[][..], "/h/.cache/huggingface/hub"),
            (&[("HF_HOME", "/x")], "/x/hub"),
            (&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y")], "/y"),
            (&[("HF_HOME", ""), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HOME", "/x")], "/o"),
            (&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/y")], "/y"),
        ] {
            assert_eq!(environment(set).cache_dir().unwrap(), Path::new(want), "{set:?}");
        }
        assert!(matches!(Environment::new([], None).cache_dir(), Err(Error::NoCache)));
    }

    #[test]
    fn tildes_and_variables_are_expanded() {
        for (value, want) in [
            ("~", "/h"),
            ("~/hf", "/h/hf"),
            ("~other/hf", "~other/hf"),
            ("/a/~/b", "/a/~/b"),
            ("$DATA/hub", "/data/hub"),
            ("${DATA}x/${N_1}$N_1", "/datax/oneone"),
            ("$NOT_SET/${NOT_SET}/$", "$NOT_SET/${NOT_SET}/$"),
            ("${DATA", "${DATA"),
            ("a$$DATA", "a$/data"),
        ] {
            let set = [("HF_HUB_CACHE", value), ("DATA", "/data"), ("N_1", "one")];
            assert_eq!(environment(&set).cache_dir().unwrap(), Path::new(want), "{value}");
        }
    }

    #[test]
    fn offline_is_a_yes() {
        for (value, want) in
            [("1", true), ("true", true), ("ON", true), ("0", false), ("", false), ("no", false)]
        {
            assert_eq!(
                environment(&[("HF_HUB_OFFLINE", value)]).forbids_network().is_some(),
                want,
                "{value}"
            );
        }
        assert_eq!(
            environment(&[("TRANSFORMERS_OFFLINE", "1")]).forbids_network(),
            Some("TRANSFORMERS_OFFLINE")
        );
    }

    #[test]
    #[cfg(feature = "download")]
    fn tokens_come_from_variables_before_files() {
        let dir = tempfile::tempdir().unwrap();
        let (home, file) = (dir.path().to_str().unwrap(), dir.path().join("other"));
        std::fs::write(dir.path().join("token"), "of-home\n").unwrap();
        std::fs::write(&file, "  of-file\n").unwrap();
        let file = file.to_str().unwrap();
        for (set, want) in [
            (&[("HF_HOME", home)][..], Some("of-home")),
            (&[("HF_HOME", home), ("HF_TOKEN_PATH", file)], Some("of-file")),
            (&[("HF_HOME", home), ("HF_TOKEN_PATH", file), ("HF_TOKEN", " t ")], Some("t")),
            (&[("HF_HOME", home), ("HF_TOKEN", "")], Some("of-home")),
            (&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")], None),
            (&[("HF_HOME", "/nowhere")], None),
        ] {
            assert_eq!(environment(set).token().unwrap().as_deref(), want, "{set:?}");
        }
        let error = environment(&[("HF_TOKEN", "a\r\nHost: b")]).token().unwrap_err().to_string();
        assert!(error.starts_with("HF_TOKEN: expected") && !error.contains("Host"), "{error}");
        assert!(!format!("{:?}", environment(&[("HF_TOKEN", "secret")])).contains("secret"));
    }
}

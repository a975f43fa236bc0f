//! Where a checkpoint comes from: a folder, the local Hugging Face cache, or the binary itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use zmlx_models::{ChatTemplate, Checkpoint, Tokenizer};
#[cfg(feature = "proof")]
use zmlx_oracle::checkpoint as oracle;

use crate::args::ModelArgs;
use crate::embedded;

/// A place with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The model that is built in.
    Embedded,
    /// A folder.
    Dir(PathBuf),
}

impl Source {
    /// What `--model` names: an existing folder, or else an id in the Hugging Face cache.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        match &args.model {
            None if embedded::IS_BUILT_IN => Ok(Self::Embedded),
            None => bail!("this build has no model built in: say which one with --model"),
            Some(path) if path.is_dir() => Ok(Self::Dir(path.clone())),
            Some(path) if path.exists() => bail!("{}: not a folder", path.display()),
            Some(path) => match path.to_str().filter(|id| is_hub_id(id)) {
                Some(id) => in_hub_cache(id).map(Self::Dir),
                None => bail!("{}: no such folder, and no id (org/name) of a model", path.display()),
            },
        }
    }

    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Embedded => embedded::checkpoint(),
            Self::Dir(dir) => Ok(Checkpoint::open(dir)?),
        }
    }

    /// The tokenizer; none if the checkpoint comes without one.
    pub(crate) fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match self {
            Self::Embedded => embedded::tokenizer().map(Some),
            Self::Dir(dir) => match Tokenizer::open(dir) {
                Ok(tokenizer) => Ok(Some(tokenizer)),
                Err(zmlx_models::Error::MissingFile { .. }) => Ok(None),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// The tokenizer, without which there is no way on.
    pub(crate) fn need_tokenizer(&self) -> Result<Tokenizer> {
        self.tokenizer()?.with_context(|| {
            let Self::Dir(dir) = self else { return "no tokenizer".to_owned() };
            format!("{}: there is no tokenizer.json (nor vocab.json with merges.txt), so text cannot become tokens", dir.display())
        })
    }

    pub(crate) fn chat_template(&self) -> Result<ChatTemplate> {
        match self {
            Self::Embedded => embedded::chat_template(),
            Self::Dir(dir) => Ok(ChatTemplate::open(dir)?),
        }
    }

    /// The files of the checkpoint, which no output may replace.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let Self::Dir(dir) = self else { return Vec::new() };
        let entries = dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_file()).collect()
    }

    /// The same files as the reference implementation reads them.
    #[cfg(feature = "proof")]
    pub(crate) fn oracle_checkpoint(&self) -> Result<oracle::Checkpoint> {
        match self {
            Self::Embedded => embedded::oracle_checkpoint(),
            Self::Dir(dir) => Ok(oracle::Checkpoint::open(dir)?),
        }
    }
}

/// The text of a file. Pipes and devices are refused: they may never end.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    zmlx_kernels::read_text(path).with_context(|| path.display().to_string())
}

/// `org/name` in the letters that the hub admits.
fn is_hub_id(text: &str) -> bool {
    let is_part = |part: &str| {
        let admitted = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(admitted)
    };
    text.split_once('/').is_some_and(|(org, name)| is_part(org) && is_part(name))
}

/// The snapshot of the model `id` that the local cache holds; nothing is downloaded.
fn in_hub_cache(id: &str) -> Result<PathBuf> {
    let root = hub_cache_dir(|name| std::env::var_os(name), std::env::home_dir());
    let root =
        root.ok_or_else(|| anyhow!("{id}: no such folder, and no home to have a Hugging Face cache in"))?;
    let config = hf_hub::Cache::new(root.clone()).model(id.to_owned()).get("config.json");
    config.as_deref().and_then(Path::parent).map(Path::to_owned).ok_or_else(|| {
        let (cache, id_dir) = (root.display(), id.replace('/', "--"));
        anyhow!(
            "{id}: found neither a folder of that name nor a downloaded model in the Hugging Face cache \
             ({cache}/models--{id_dir})"
        )
    })
}

/// Where the cache lies, by the rules of Hugging Face's own tools: `~` and variables in the values are expanded, as they come
/// where no shell does it (`.env` files, containers).
fn hub_cache_dir(env: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| {
        let value = env(name).filter(|v| !v.is_empty())?;
        Some(match value.to_str() {
            Some(text) => PathBuf::from(with_variables(&with_home(text, home.as_deref()), &env)),
            None => PathBuf::from(value),
        })
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| set("HF_HOME").map(|d| d.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("huggingface/hub")))
        .or_else(|| home.clone().map(|d| d.join(".cache/huggingface/hub")))
}

/// The path with the home folder for a `~` at its start. Other people's homes stay as they are written.
fn with_home(text: &str, home: Option<&Path>) -> String {
    match (text.strip_prefix('~'), home.and_then(Path::to_str)) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => text.to_owned(),
    }
}

/// The text with the values of `$NAME` and `${NAME}`. Variables that are not set stay as they are written.
fn with_variables(text: &str, env: impl Fn(&str) -> Option<OsString>) -> String {
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
        match env(name).filter(|_| !name.is_empty()).and_then(|v| v.into_string().ok()) {
            Some(value) => expanded += &value,
            None => expanded += &tail[..len],
        }
        rest = &tail[len..];
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        for id in ["mlx-community/GLM-4.7-Flash-4bit", "a/b_c.d"] {
            assert!(is_hub_id(id), "{id}");
        }
        for path in ["name", "/abs", "a/b/c", "../x", "a/..", "./a", "a/", "a b/c", ""] {
            assert!(!is_hub_id(path), "{path}");
        }
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let dir = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            hub_cache_dir(find, Some("/h".into()))
        };
        assert_eq!(dir(&[]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(dir(&[("HF_HOME", "/x")]), Some("/x/hub".into()));
        assert_eq!(dir(&[("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y")]), Some("/y".into()));
        assert_eq!(dir(&[("HF_HOME", ""), ("XDG_CACHE_HOME", "/c")]), Some("/c/huggingface/hub".into()));
        assert_eq!(dir(&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HOME", "/x")]), Some("/o".into()));
        assert_eq!(dir(&[("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HUB_CACHE", "/y")]), Some("/y".into()));
    }

    #[test]
    fn tildes_and_variables_are_expanded() {
        let dir = |value: &str| {
            let find = |name: &str| match name {
                "HF_HUB_CACHE" => Some(OsString::from(value)),
                "DATA" => Some("/data".into()),
                "N_1" => Some("one".into()),
                _ => None,
            };
            hub_cache_dir(find, Some("/h".into())).unwrap().to_str().unwrap().to_owned()
        };
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
            assert_eq!(dir(value), want, "{value}");
        }
    }
}

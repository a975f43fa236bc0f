//! Where a checkpoint comes from: a folder, the Hugging Face hub through its cache, or the binary itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zmlx_hub::ModelName;
use zmlx_models::{ChatTemplate, Checkpoint, Tokenizer};
#[cfg(feature = "proof")]
use zmlx_oracle::checkpoint as oracle;

use crate::args::ModelArgs;
use crate::embedded;
use crate::hub::{self, Network};

/// The location of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The built-in model.
    Embedded,
    /// A folder.
    Dir(PathBuf),
}

impl Source {
    /// The source that the arguments name: an existing folder, otherwise a model of the hub, from the cache or
    /// downloaded.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        if args.revision.is_some() && args.named().is_none_or(|path| path.exists()) {
            bail!("--revision is for models of the hub: org/name");
        }
        match args.named() {
            None if embedded::IS_BUILT_IN => Ok(Self::Embedded),
            None => bail!("this build has no built-in model: name one, a folder or an id (org/name)"),
            Some(path) if path.is_dir() => Ok(Self::Dir(path.clone())),
            Some(path) if path.exists() => bail!("{}: not a folder", path.display()),
            Some(path) => {
                let name = path.to_str().and_then(|text| text.parse::<ModelName>().ok());
                let name = name.with_context(|| {
                    format!(
                        "{}: no such folder, and not the id of a model (org/name or org/name@revision)",
                        path.display()
                    )
                })?;
                let name = match &args.revision {
                    Some(_) if name.revision().is_some() => bail!("{name}: the revision is given twice"),
                    Some(revision) => name.at(revision)?,
                    None => name,
                };
                let network = if args.offline { Network::Forbidden } else { Network::Allowed };
                hub::find(&name, network).map(Self::Dir)
            }
        }
    }

    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        match self {
            Self::Embedded => embedded::checkpoint(),
            Self::Dir(dir) => Ok(Checkpoint::open(dir)?),
        }
    }

    /// The tokenizer; `None` if the checkpoint has none.
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

    /// The tokenizer, for commands that cannot work without one.
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

    /// The files of the checkpoint. No output may replace them.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let Self::Dir(dir) = self else { return Vec::new() };
        let entries = dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.is_file()).collect()
    }

    /// The same checkpoint for the reference implementation, which has its own reader.
    #[cfg(feature = "proof")]
    pub(crate) fn oracle_checkpoint(&self) -> Result<oracle::Checkpoint> {
        match self {
            Self::Embedded => embedded::oracle_checkpoint(),
            Self::Dir(dir) => Ok(oracle::Checkpoint::open(dir)?),
        }
    }
}

/// Reads a text file. Pipes and devices are refused, because they may never end.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    zmlx_kernels::read_text(path).with_context(|| path.display().to_string())
}

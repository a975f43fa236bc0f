//! A model folder: its config and the headers of its shards, whose tensors are used where they lie.

mod index;
mod kv_b_proj;
mod reader;
mod root;
mod shard;
mod synthetic;

pub use kv_b_proj::KvBDims;
pub use reader::TensorReader;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use zmlx_kernels::HostWeight;

use crate::architecture::Architecture;
use crate::config::{ConfigFile, QuantConfig};
use crate::{Error, Result, end_tokens};
use root::Root;
use shard::Entry;

/// An opened checkpoint: everything but the weights has been read, and every tensor located.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    dir: Option<PathBuf>,
    config: ConfigFile,
    shards: Vec<String>,
    /// The files of these names.
    contents: Vec<Bytes>,
    tensors: BTreeMap<String, Entry>,
    /// What stands in the names of the text model beside those that the architecture has.
    root: Root,
    /// The seed of random weights instead of tensors.
    synthetic: Option<u64>,
    /// The sizes of the random weights that were made.
    made: Mutex<BTreeMap<String, u64>>,
}

/// What a shard's header says of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// Its name, as `model.norm.weight`.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its size.
    pub n_bytes: usize,
    /// The file that holds it.
    pub shard: &'a str,
}

impl Checkpoint {
    /// Opens the folder `dir`: reads `config.json` and maps the shards.
    ///
    /// These are the files that `model.safetensors.index.json` names if they are all there and hold what it says. In
    /// converted checkpoints the index is often stale: then, and without one, every `model*.safetensors` is a shard. In
    /// either case the shards' own headers say what they hold.
    ///
    /// # Errors
    /// If a file is missing or unsound, or the config names something that is not implemented.
    pub fn open(dir: &Path) -> Result<Self> {
        let config_path = dir.join("config.json");
        let Some(config_json) = read_optional(&config_path)? else {
            return Err(Error::MissingFile { dir: dir.display().to_string(), file: "config.json" });
        };
        let generation = end_tokens::generation_config(dir);
        let mut config =
            ConfigFile::parse(&config_path.display().to_string(), &config_json, generation.as_deref())?;
        end_tokens::add_of_tokenizer(dir, config.architecture.vocab_size, &mut config.eos_token_ids);
        let shards = index::shards(dir)?;
        // The folder's own name also where the path is `.` or ends in `..`.
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let folder = || {
            full.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned())
        };
        let name = name_in_hub(&full).unwrap_or_else(folder);
        Self::build(name, Some(dir.to_owned()), config, shards)
    }

    /// A checkpoint whose files are in memory: `shards` are names and contents of safetensors files.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_parts(
        name: &str,
        config_json: &str,
        generation_config: Option<&str>,
        shards: Vec<(String, Bytes)>,
    ) -> Result<Self> {
        let config = ConfigFile::parse(&format!("{name}/config.json"), config_json, generation_config)?;
        Self::build(name.to_owned(), None, config, shards)
    }

    /// The model as its config describes it.
    pub fn architecture(&self) -> &Architecture {
        &self.config.architecture
    }

    /// A tensor's name (or path) as the [architecture](Self::architecture) has it: without what a wrapper puts into the
    /// names of its text model. `None` if it is another model's: a wrapper's for images, say.
    pub fn name_in_model<'n>(&self, name: &'n str) -> Option<Cow<'n, str>> {
        self.root.in_model(name)
    }

    /// What MLX's files call the tensor or path that the architecture calls `name`.
    pub(crate) fn written(&self, name: &str) -> String {
        self.root.written(name)
    }

    /// How the config says that the weights are quantised.
    pub fn quantization(&self) -> &QuantConfig {
        &self.config.quantization
    }

    /// The tokens that end a text, ascending.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.config.eos_token_ids
    }

    /// The type that the config says the model was trained in; the tensors' own types decide.
    pub fn declared_dtype(&self) -> Option<&str> {
        self.config.dtype.as_deref()
    }

    /// The folder's name, or the name that the embedded checkpoint was given. A snapshot in a Hugging Face cache, whose folder
    /// is named by a hash, has the model's id and the commit: `org/name@0123456789abcdef0123456789abcdef01234567`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder; `None` for an embedded checkpoint.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The text of `config.json`; of random weights, the one that they were made by.
    pub fn config_json(&self) -> &str {
        &self.config.text
    }

    /// The names of the weight files, sorted; empty for random weights.
    pub fn shards(&self) -> &[String] {
        &self.shards
    }

    /// The contents of the weight files, in the order of [`Self::shards`]. Files of a folder are mapped: reading them takes
    /// memory that the system can take back.
    pub fn shard_contents(&self) -> impl Iterator<Item = &[u8]> {
        self.contents.iter().map(|file| &file[..])
    }

    /// The seed of random weights; `None` for a checkpoint that has files.
    pub fn seed(&self) -> Option<u64> {
        self.synthetic
    }

    /// Name and bytes of each random weight that was made so far: all, once the model is loaded. None if there are
    /// files.
    pub fn random_weights(&self) -> Vec<(String, u64)> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.iter().map(|(name, n_bytes)| (name.clone(), *n_bytes)).collect()
    }

    fn note_random(&self, name: &str, weight: &HostWeight) {
        let n_bytes = (weight.n_mats() * weight.mat_bytes()) as u64;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(format!("{name}.weight"), n_bytes);
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, e)| TensorInfo {
            name,
            dtype: e.dtype,
            shape: &e.shape,
            n_bytes: e.bytes.len(),
            shard: &self.shards[e.shard_idx],
        })
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.bytes.len() as u64).sum()
    }

    /// A hash of the config and of each tensor's name, type, shape and first bytes: other checkpoints have another, and it is not
    /// as slow as reading all. Random weights are described by their config and seed.
    pub fn fingerprint(&self) -> [u8; 32] {
        /// Bytes of each tensor.
        const FIRST: usize = 64;
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}\n", self.synthetic, self.config_json()));
        for (name, entry) in &self.tensors {
            hash.update(format!("{name:?} {:?} {:?}\n", entry.dtype, entry.shape));
            hash.update(&entry.bytes[..entry.bytes.len().min(FIRST)]);
        }
        hash.finalize().into()
    }

    /// A reader that takes the model's tensors and at the end tells all that did not fit.
    pub fn reader(&self) -> TensorReader<'_> {
        TensorReader::new(self)
    }

    fn build(
        name: String,
        dir: Option<PathBuf>,
        config: ConfigFile,
        shards: Vec<(String, Bytes)>,
    ) -> Result<Self> {
        if shards.is_empty() {
            let dir = dir.map_or_else(|| name.clone(), |d| d.display().to_string());
            return Err(Error::MissingFile { dir, file: "model*.safetensors" });
        }
        let mut tensors = BTreeMap::new();
        let (mut names, mut contents) = (Vec::with_capacity(shards.len()), Vec::new());
        for (shard, bytes) in shards {
            shard::read(&shard, names.len(), &bytes, &names, &mut tensors)?;
            names.push(shard);
            contents.push(bytes);
        }
        let embed = format!("{}.weight", config.architecture.embed.path);
        let root = Root::find(&embed, |name| tensors.contains_key(name));
        let made = Mutex::default();
        Ok(Self { name, dir, config, shards: names, contents, tensors, root, synthetic: None, made })
    }
}

/// `org/name@revision` for a folder `models--org--name/snapshots/revision`.
fn name_in_hub(dir: &Path) -> Option<String> {
    let mut parts = dir.components().rev().map(|part| part.as_os_str().to_str());
    let (revision, snapshots, model) = (parts.next()??, parts.next()??, parts.next()??);
    let id = model.strip_prefix("models--")?.replacen("--", "/", 1);
    (snapshots == "snapshots").then(|| format!("{id}@{revision}"))
}

/// The text of a file; `None` if it does not exist.
pub(crate) fn read_optional(path: &Path) -> Result<Option<String>> {
    match zmlx_kernels::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { file: path.display().to_string(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_the_hub_are_named_by_model_and_revision() {
        let name = |path: &str| name_in_hub(Path::new(path));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let path = format!("/home/u/.cache/huggingface/hub/models--org--a--b/snapshots/{commit}");
        assert_eq!(name(&path).as_deref(), Some(format!("org/a--b@{commit}").as_str()));
        for path in ["/models/qwen", "/", "snapshots/x", "/models--org--a/other/x"] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}

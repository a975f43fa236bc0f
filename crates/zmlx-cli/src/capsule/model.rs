//! Which model it was: its name, its config, and hashes by which it is known again.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zmlx_models::Checkpoint;

use crate::commands::inspect::cost::Cost;
use crate::embedded;
use crate::progress::Progress;

/// What identifies a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ModelFacts {
    /// The folder's name; of random weights, the architecture's.
    pub(crate) name: String,
    /// The architecture.
    pub(crate) model_type: String,
    /// Decoder layers.
    pub(crate) n_layers: usize,
    /// SHA-256 of `config.json`; of random weights, of the config that they were made by.
    pub(crate) config_sha256: String,
    /// SHA-256 of the weight files, one after the other by name; null for random weights.
    pub(crate) weights_sha256: Option<String>,
    /// What random weights were made from; null for a real model.
    pub(crate) synthetic: Option<Synthetic>,
    /// Weights that the decoder uses.
    pub(crate) weight_bytes: u64,
    /// The config's quantisation block; null if there is none.
    pub(crate) quantization: Value,
}

/// Random weights: the same two give the same weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Synthetic {
    /// The architecture and changes to it.
    pub(crate) spec: String,
    /// The seed.
    pub(crate) seed: u64,
}

impl ModelFacts {
    /// Of a checkpoint. Reads all weights once, to hash them.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let config: Value = serde_json::from_str(checkpoint.config_json()).context("config.json")?;
        let block = ["quantization", "quantization_config"].into_iter().find_map(|key| config.get(key));
        let name = checkpoint.name().to_owned();
        let synthetic = checkpoint.seed().map(|seed| Synthetic { spec: name.clone(), seed });
        Ok(Self {
            model_type: checkpoint.architecture().model_type.to_owned(),
            n_layers: checkpoint.architecture().layers.len(),
            config_sha256: config_sha256(checkpoint),
            weights_sha256: weights_sha256(checkpoint)?,
            weight_bytes: Cost::new(checkpoint).weight_bytes,
            quantization: block.cloned().unwrap_or(Value::Null),
            name,
            synthetic,
        })
    }
}

/// SHA-256 of the text of `config.json`, in hexadecimal digits.
pub(crate) fn config_sha256(checkpoint: &Checkpoint) -> String {
    format!("{:x}", Sha256::digest(checkpoint.config_json()))
}

/// SHA-256 of the weight files, one after the other in the order of their names; none for random weights.
pub(crate) fn weights_sha256(checkpoint: &Checkpoint) -> Result<Option<String>> {
    if checkpoint.seed().is_some() {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    match checkpoint.dir() {
        None => hash.update(embedded::weights()?),
        Some(dir) => {
            let paths: Vec<_> = checkpoint.shards().iter().map(|name| dir.join(name)).collect();
            let sizes = paths.iter().map(|path| path.metadata().map_or(0, |m| m.len()));
            let total = sizes.sum::<u64>() as usize;
            let mut progress = Progress::new("Hashing");
            let mut done = 0;
            let mut buffer = vec![0; 1 << 20];
            for path in &paths {
                let what = || path.display().to_string();
                let mut file = File::open(path).with_context(what)?;
                loop {
                    let n = file.read(&mut buffer).with_context(what)?;
                    if n == 0 {
                        break;
                    }
                    hash.update(&buffer[..n]);
                    done += n;
                    progress.update(done, total);
                }
            }
        }
    }
    Ok(Some(format!("{:x}", hash.finalize())))
}

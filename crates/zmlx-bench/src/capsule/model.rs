//! The identity of a model: its name, its config, and hashes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zmlx_models::{Checkpoint, Cost};

use crate::{OnProgress, Result, Work};

/// The identity of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelFacts {
    /// The folder's name, or for random weights the architecture's.
    pub name: String,
    /// The architecture.
    pub model_type: String,
    /// Number of decoder layers.
    pub n_layers: usize,
    /// SHA-256 of `config.json`, or for random weights of the config from which they were made.
    pub config_sha256: String,
    /// SHA-256 of the weight files, concatenated in the order of their names; null for random weights.
    pub weights_sha256: Option<String>,
    /// The description of random weights; null for a real model.
    pub synthetic: Option<Synthetic>,
    /// Bytes of the weights that the decoder uses.
    pub weight_bytes: u64,
    /// The config's quantisation table; null if there is none.
    pub quantization: Value,
}

/// The description of random weights. Equal descriptions give equal weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Synthetic {
    /// The architecture, with changes to it.
    pub spec: String,
    /// The seed.
    pub seed: u64,
}

impl ModelFacts {
    /// The facts about a checkpoint. Reads all weights once, to compute their hash.
    ///
    /// # Errors
    /// If the config is not JSON.
    pub fn of(checkpoint: &Checkpoint, on_progress: OnProgress<'_>) -> Result<Self> {
        let config: Value = serde_json::from_str(checkpoint.config_json())?;
        let block = ["quantization", "quantization_config"].into_iter().find_map(|key| config.get(key));
        let name = checkpoint.name().to_owned();
        let synthetic = checkpoint.seed().map(|seed| Synthetic { spec: name.clone(), seed });
        Ok(Self {
            model_type: checkpoint.architecture().model_type.to_owned(),
            n_layers: checkpoint.architecture().layers.len(),
            config_sha256: config_sha256(checkpoint),
            weights_sha256: weights_sha256(checkpoint, on_progress),
            weight_bytes: Cost::new(checkpoint).weight_bytes,
            quantization: block.cloned().unwrap_or(Value::Null),
            name,
            synthetic,
        })
    }
}

/// SHA-256 of the text of `config.json`, in hexadecimal digits.
pub fn config_sha256(checkpoint: &Checkpoint) -> String {
    format!("{:x}", Sha256::digest(checkpoint.config_json()))
}

/// SHA-256 of the weight files, concatenated in the order of their names; `None` for random weights.
pub fn weights_sha256(checkpoint: &Checkpoint, on_progress: OnProgress<'_>) -> Option<String> {
    const PIECE_BYTES: usize = 1 << 20;
    if checkpoint.seed().is_some() {
        return None;
    }
    let n_bytes = checkpoint.shard_contents().map(<[u8]>::len).sum();
    let mut n_done = 0;
    let mut hash = Sha256::new();
    for piece in checkpoint.shard_contents().flat_map(|file| file.chunks(PIECE_BYTES)) {
        hash.update(piece);
        n_done += piece.len();
        on_progress(Work::Hashing, n_done, n_bytes);
    }
    Some(format!("{:x}", hash.finalize()))
}

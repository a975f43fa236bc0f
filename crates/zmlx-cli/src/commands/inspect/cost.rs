//! What decoding reads and what a context needs, from the config and the tensors.

use serde::Serialize;
use zmlx_models::Checkpoint;
use zmlx_models::architecture::{Part, ReadPerToken, WeightUse, WeightUses};

/// Bytes that a checkpoint costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cost {
    /// Weights of the decoder; layers beyond the last (multi-token prediction) are not loaded.
    pub(crate) weight_bytes: u64,
    /// Weights that one decoded token reads: the dense ones, the experts it chooses, one row of the embedding.
    pub(crate) weight_bytes_per_token: u64,
    /// What a token leaves in the caches: 16 bits a value on every backend (the scales of the CPU's rows aside).
    pub(crate) kv_bytes_per_token: u64,
    /// Parts of `weight_bytes_per_token`.
    #[serde(skip)]
    pub(crate) parts: PartBytes,
}

/// Weights that one decoded token reads in parts of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartBytes {
    pub(crate) router: u64,
    pub(crate) gate_up: u64,
    pub(crate) down: u64,
    pub(crate) attention: u64,
    pub(crate) head: u64,
}

impl PartBytes {
    /// Where the bytes of a part are counted; `None` for norms and the embedding.
    fn of(&mut self, part: Part) -> Option<&mut u64> {
        match part {
            Part::Head => Some(&mut self.head),
            Part::Attention => Some(&mut self.attention),
            Part::Router => Some(&mut self.router),
            Part::GateUp => Some(&mut self.gate_up),
            Part::Down => Some(&mut self.down),
            Part::Embedding | Part::Norm => None,
        }
    }
}

impl Cost {
    /// Of random weights, whose tensors are made as they are loaded, once the model is loaded.
    pub(crate) fn new(checkpoint: &Checkpoint) -> Self {
        let architecture = checkpoint.architecture();
        let uses = architecture.weight_uses();
        let (mut weight_bytes, mut per_token) = (0u64, 0u64);
        let mut parts = PartBytes::default();
        let stored = checkpoint.tensors().map(|t| (t.name.to_owned(), t.n_bytes as u64));
        for (name, n_bytes) in stored.chain(checkpoint.random_weights()) {
            let in_model = checkpoint.name_in_model(&name);
            let Some(weight) = in_model.and_then(|name| weight_of(&uses, name)) else { continue };
            let read = match weight.read {
                ReadPerToken::Whole => n_bytes,
                ReadPerToken::RowOf(n_rows) => n_bytes / (n_rows as u64).max(1),
                ReadPerToken::Chosen { top_k, n_experts } => {
                    let chosen = u128::from(n_bytes) * top_k as u128 / (n_experts as u128).max(1);
                    u64::try_from(chosen).unwrap_or(u64::MAX)
                }
            };
            weight_bytes += n_bytes;
            per_token += read;
            if let Some(part) = parts.of(weight.part) {
                *part += read;
            }
        }
        Self {
            weight_bytes,
            weight_bytes_per_token: per_token,
            kv_bytes_per_token: architecture.cached_values_per_token().saturating_mul(2),
            parts,
        }
    }

    /// Weights and the caches of one sequence of `n_tokens`.
    pub(crate) fn memory_bytes(&self, n_tokens: usize) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes_per_token.saturating_mul(n_tokens as u64))
    }

    /// What decoding one token reads when `n_cached` tokens are in the caches.
    pub(crate) fn bytes_per_token(&self, n_cached: f64) -> f64 {
        self.weight_bytes_per_token as f64 + self.kv_bytes_per_token as f64 * n_cached
    }
}

/// The weight that a tensor is a part of.
fn weight_of(uses: &WeightUses, name: &str) -> Option<WeightUse> {
    const PARTS: [&str; 6] = [".weight", ".scales", ".biases", "_scales", "_biases", ""];
    PARTS.iter().find_map(|part| uses.get(name.strip_suffix(part)?))
}

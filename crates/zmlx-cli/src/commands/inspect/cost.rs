//! What decoding reads and what a context needs, from the config and the tensors.

use serde::Serialize;
use zmlx_models::{Checkpoint, ModelConfig};

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
    /// The part that the tensor `name` belongs to; none for norms and the embedding.
    fn of(&mut self, name: &str) -> Option<&mut u64> {
        if name.starts_with("lm_head.") {
            Some(&mut self.head)
        } else if name.contains(".self_attn.") {
            Some(&mut self.attention)
        } else if name.contains(".mlp.gate.") {
            Some(&mut self.router)
        } else if name.contains(".gate_proj.") || name.contains(".up_proj.") {
            Some(&mut self.gate_up)
        } else if name.contains(".down_proj.") {
            Some(&mut self.down)
        } else {
            None
        }
    }
}

impl Cost {
    /// Of random weights, whose tensors are made as they are loaded, once the model is loaded.
    pub(crate) fn new(checkpoint: &Checkpoint) -> Self {
        let config = checkpoint.config();
        let (mut weight_bytes, mut per_token) = (0u64, 0u64);
        let mut parts = PartBytes::default();
        let (top_k, n_experts) = experts(config);
        let chosen = |n_bytes: u64| {
            let chosen = u128::from(n_bytes) * u128::from(top_k) / u128::from(n_experts.max(1));
            u64::try_from(chosen).unwrap_or(u64::MAX)
        };
        let stored = checkpoint.tensors().map(|t| (t.name.to_owned(), t.n_bytes as u64));
        for (name, n_bytes) in stored.chain(checkpoint.random_weights()) {
            let read = match Part::of(&name, config) {
                Part::Unused => continue,
                Part::Expert => chosen(n_bytes),
                Part::Embedding if config.tie_word_embeddings() => {
                    parts.head += n_bytes;
                    n_bytes
                }
                Part::Embedding => n_bytes / (config.vocab_size() as u64).max(1),
                Part::Dense => n_bytes,
            };
            weight_bytes += n_bytes;
            per_token += read;
            if let Some(part) = parts.of(&name) {
                *part += read;
            }
        }
        Self {
            weight_bytes,
            weight_bytes_per_token: per_token,
            kv_bytes_per_token: kv_bytes_per_token(config),
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

/// Which part of the model a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Read for every token.
    Dense,
    /// Of a routed expert.
    Expert,
    Embedding,
    Unused,
}

impl Part {
    fn of(name: &str, config: &ModelConfig) -> Self {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let beyond =
            layer.and_then(|l| l.parse::<usize>().ok()).is_some_and(|l| l >= config.num_hidden_layers());
        let is_head = name.starts_with("lm_head.");
        if beyond || name.ends_with(".rotary_emb.inv_freq") || is_head && config.tie_word_embeddings() {
            Self::Unused
        } else if name.contains(".mlp.switch_mlp.") || name.contains(".mlp.experts.") {
            Self::Expert
        } else if name.starts_with("model.embed_tokens.") {
            Self::Embedding
        } else {
            Self::Dense
        }
    }
}

/// Experts per token, and of a layer.
fn experts(config: &ModelConfig) -> (u64, u64) {
    match config {
        ModelConfig::Glm4MoeLite(c) => (c.num_experts_per_tok as u64, c.n_routed_experts as u64),
        ModelConfig::Qwen3Moe(c) => (c.num_experts_per_tok as u64, c.num_experts as u64),
        _ => (1, 1),
    }
}

fn kv_bytes_per_token(config: &ModelConfig) -> u64 {
    let values = match config {
        ModelConfig::Glm4MoeLite(c) => (c.kv_lora_rank as u64).saturating_add(c.qk_rope_head_dim as u64),
        ModelConfig::Qwen3Moe(c) => (c.num_key_value_heads as u64).saturating_mul(c.head_dim as u64 * 2),
        _ => 0,
    };
    values.saturating_mul(2).saturating_mul(config.num_hidden_layers() as u64)
}

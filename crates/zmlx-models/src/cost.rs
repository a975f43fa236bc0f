//! How many bytes decoding reads and a context needs, computed from the config and the tensors.

use serde::Serialize;

use crate::Checkpoint;
use crate::architecture::{Part, ReadPerToken, WeightUse, WeightUses};

/// Bytes that a checkpoint costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Bytes of the decoder's weights. Layers after the last one (multi-token prediction) are not loaded.
    pub weight_bytes: u64,
    /// Bytes of the weights that one decoded token reads: the dense ones, the experts that it chooses, and one row of
    /// the embedding.
    pub weight_bytes_per_token: u64,
    /// Bytes that a token adds to the caches: 16 bits for each value on every backend, without the scales of the CPU's
    /// rows.
    pub kv_bytes_per_token: u64,
    /// Bytes of the state that layers keep for a sequence of any length, in f32. Each token reads and writes it.
    #[serde(skip_serializing_if = "is_zero")]
    pub state_bytes: u64,
    /// Of `weight_bytes` the gate and up projections of routed experts: what a backend that copies them for the concatenated path
    /// holds twice there.
    #[serde(skip)]
    pub gate_up_bank_bytes: u64,
    /// `weight_bytes_per_token`, divided into parts of the model.
    #[serde(skip)]
    pub parts: PartBytes,
}

/// Bytes of the weights that one decoded token reads, for each part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartBytes {
    /// The routers.
    pub router: u64,
    /// Gate and up projections.
    pub gate_up: u64,
    /// Down projections.
    pub down: u64,
    /// All projections of attention.
    pub attention: u64,
    /// The output matrix.
    pub head: u64,
}

impl PartBytes {
    /// The counter for a part; `None` for norms and the embedding.
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
    /// The cost of the checkpoint. Random weights are made when they are loaded, so call this after the model was
    /// loaded.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let architecture = checkpoint.architecture();
        let uses = architecture.weight_uses();
        let (mut weight_bytes, mut per_token, mut gate_up_bank_bytes) = (0u64, 0u64, 0u64);
        let mut parts = PartBytes::default();
        let stored = checkpoint.tensors().map(|t| (t.name.to_owned(), t.n_bytes as u64));
        for (name, n_bytes) in stored.chain(checkpoint.random_weights()) {
            let in_model = checkpoint.name_in_model(&name);
            let Some(weight) = in_model.and_then(|name| weight_of(&uses, &name)) else { continue };
            let read = match weight.read {
                ReadPerToken::Whole => n_bytes,
                ReadPerToken::RowOf(n_rows) => n_bytes / (n_rows as u64).max(1),
                ReadPerToken::Chosen { top_k, n_experts } => {
                    let chosen = u128::from(n_bytes) * top_k as u128 / (n_experts as u128).max(1);
                    u64::try_from(chosen).unwrap_or(u64::MAX)
                }
            };
            weight_bytes += n_bytes;
            if weight.part == Part::GateUp && matches!(weight.read, ReadPerToken::Chosen { .. }) {
                gate_up_bank_bytes += n_bytes;
            }
            per_token += read;
            if let Some(part) = parts.of(weight.part) {
                *part += read;
            }
        }
        Self {
            weight_bytes,
            weight_bytes_per_token: per_token,
            kv_bytes_per_token: architecture.cached_values_per_token().saturating_mul(2),
            state_bytes: architecture.state_values().saturating_mul(4),
            gate_up_bank_bytes,
            parts,
        }
    }

    /// Bytes of the weights and of the caches of one sequence of `n_tokens` tokens.
    pub fn memory_bytes(&self, n_tokens: usize) -> u64 {
        // The new state is written beside the old one.
        let states = self.state_bytes.saturating_mul(2);
        let cached = self.kv_bytes_per_token.saturating_mul(n_tokens as u64);
        self.weight_bytes.saturating_add(states).saturating_add(cached)
    }

    /// Bytes that decoding one token moves if `n_cached` tokens are in the caches. It reads weights and caches, and it
    /// reads and writes states.
    pub fn bytes_per_token(&self, n_cached: f64) -> f64 {
        let states = 2.0 * self.state_bytes as f64;
        self.weight_bytes_per_token as f64 + states + self.kv_bytes_per_token as f64 * n_cached
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// The weight that a tensor belongs to.
fn weight_of(uses: &WeightUses, name: &str) -> Option<WeightUse> {
    const PARTS: [&str; 6] = [".weight", ".scales", ".biases", "_scales", "_biases", ""];
    PARTS.iter().find_map(|part| uses.get(name.strip_suffix(part)?))
}

/// Formats a number of bytes in decimal units: `12.3 MB`.
pub fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if value < 10.0 { format!("{value:.2} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::human_bytes;

    #[test]
    fn bytes() {
        for (n, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (999_999, "1.00 MB")]
        {
            assert_eq!(human_bytes(n), text);
        }
        assert_eq!(human_bytes(u64::MAX), "18446744.1 TB");
    }
}

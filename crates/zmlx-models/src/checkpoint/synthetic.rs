//! Random weights for a known architecture, made in memory: for measuring without a download.

mod random;

use bytes::Bytes;
use half::bf16;
use serde_json::{Value, json};
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat, ensure_memory};

use super::Checkpoint;
use super::reader::WeightShape;
use super::root::Root;
use crate::architecture::Storage;
use crate::config::{ConfigFile, QuantOverride, mlx_defaults};
use crate::{Error, Result};
use random::Random;

/// The architectures that can be made, and their `config.json`. What shares an architecture shares its speed: the
/// Thinking, Instruct and Coder variants of Qwen3-30B-A3B are one entry.
const CONFIGS: &[(&str, &str)] = &[
    ("glm-4.5-air", include_str!("configs/glm-4.5-air.json")),
    ("glm-4.7-flash", include_str!("configs/glm-4.7-flash.json")),
    ("lfm2-8b-a1b", include_str!("configs/lfm2-8b-a1b.json")),
    ("qwen3-0.6b", include_str!("configs/qwen3-0.6b.json")),
    ("qwen3-30b-a3b", include_str!("configs/qwen3-30b-a3b.json")),
    ("qwen3-235b-a22b", include_str!("configs/qwen3-235b-a22b.json")),
    ("qwen3-coder-next", include_str!("configs/qwen3-coder-next.json")),
    ("qwen3.6-35b-a3b", include_str!("configs/qwen3.6-35b-a3b.json")),
];

impl Checkpoint {
    /// A checkpoint of random weights: `spec` is the name of an architecture (`qwen3-30b-a3b`, `glm-4.7-flash` and the
    /// others that the error of an unknown one lists), perhaps followed by changes to its config: `layers=N`, `vocab=N`, `bits=N`, `group=N` and
    /// `mode=affine|mxfp4|mxfp8|nvfp4`, as in `qwen3-30b-a3b,layers=12,bits=8`.
    ///
    /// Quantised weights have the spread of a trained model's at their width, so that activations stay in range.
    /// The tensors are made as they are loaded; the same spec and seed give the same weights.
    ///
    /// # Errors
    /// If the name or a change is unknown, or the changed config is not sound.
    pub fn synthetic(spec: &str, seed: u64) -> Result<Self> {
        let unknown = || {
            let names: Vec<_> = CONFIGS.iter().map(|(name, _)| *name).collect();
            Error::Synthetic { got: spec.to_owned(), known: names.join(", ") }
        };
        let mut parts = spec.split(',');
        let name = parts.next().unwrap_or_default();
        let (_, config) = CONFIGS.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
        let file = format!("config.json of {name}");
        let mut config: Value =
            serde_json::from_str(config).map_err(|source| Error::Json { file: file.clone(), source })?;
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(unknown)?;
            let number = || value.parse::<u32>().map(Value::from).map_err(|_| unknown());
            match key {
                "layers" => config["num_hidden_layers"] = number()?,
                "vocab" => {
                    config["vocab_size"] = number()?;
                    config["eos_token_id"] = 0.into(); // the real ids may lie outside
                }
                "bits" => config["quantization"]["bits"] = number()?,
                "group" => config["quantization"]["group_size"] = number()?,
                "mode" => config["quantization"] = default_format(value).ok_or_else(unknown)?,
                _ => return Err(unknown()),
            }
        }
        let config = ConfigFile::parse(&file, &config.to_string(), None)?;
        Ok(Self {
            name: spec.to_owned(),
            dir: None,
            config,
            shards: Vec::new(),
            contents: Vec::new(),
            tensors: std::collections::BTreeMap::new(),
            root: Root::Plain,
            synthetic: Some(seed),
            made: std::sync::Mutex::default(),
        })
    }

    /// The random weight called `path`.
    pub(super) fn random_weight(
        &self,
        seed: u64,
        path: &str,
        shape: WeightShape,
    ) -> zmlx_kernels::Result<HostWeight> {
        const OP: &str = "random weights";
        let dims = [shape.n_mats.unwrap_or(1), shape.n_out, shape.n_in];
        let n = dims.iter().product::<usize>();
        let random = Random::new(seed, path);
        // Products of unit activations then have unit variance.
        let std_dev = (shape.n_in as f32).sqrt().recip();
        let Some(spec) = self.random_format(path, shape.n_in, shape.storage) else {
            ensure_memory(OP, 2 * n)?;
            let data = random.bf16(n, std_dev);
            let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
            return HostWeight::new(WeightFormat::Dense(DType::BF16), dims, bytes);
        };
        // Random bytes of mxfp8 hold NaN codes: there the exponent's highest bit is cleared.
        let mask = if spec.mode() == QuantMode::Mxfp8 { 0xbf } else { 0xff };
        ensure_memory(OP, spec.packed_bytes(n) + 4 * (n / spec.group_size()))?;
        let data = random.bytes(spec.packed_bytes(n), mask);
        let n_groups = n / spec.group_size();
        let (scale_dtype, scales, biases) = if spec.mode() == QuantMode::Affine {
            // Uniform codes 0..=max spread as max / sqrt(12) times the scale.
            let max = ((1u32 << spec.bits()) - 1) as f32;
            let scale = std_dev * 12f32.sqrt() / max;
            let repeat = |v: f32| Bytes::from(bf16::from_f32(v).to_le_bytes().repeat(n_groups));
            (DType::BF16, repeat(scale), repeat(-0.5 * max * scale))
        } else {
            // Codes of the float modes spread by a few units; e8m0 127 and e4m3 0x38 are 1.
            let exponent = std_dev.log2().round() - 1.0;
            let code = match spec.mode() {
                QuantMode::Nvfp4 => 0x38u8.saturating_add_signed(8 * exponent.max(-6.0) as i8),
                QuantMode::Mxfp8 => 127u8.saturating_add_signed(exponent as i8 - 6),
                _ => 127u8.saturating_add_signed(exponent as i8),
            };
            (DType::U8, Bytes::from(vec![code; n_groups]), Bytes::new())
        };
        let bytes = WeightBytes { data, scales, biases };
        HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, dims, bytes)
    }

    /// The random vector called `name`: norms are ones, biases small.
    pub(super) fn random_vector(&self, seed: u64, name: &str, len: usize) -> Vec<f32> {
        if name.ends_with("bias") || name.ends_with("sinks") {
            DType::BF16.to_f32_vec(&Random::new(seed, name).bf16(len, 0.05))
        } else {
            vec![1.0; len]
        }
    }

    /// As converters quantise: what the config says, else what the architecture says, where its groups divide the rows.
    pub(super) fn random_format(&self, path: &str, n_in: usize, storage: Storage) -> Option<QuantSpec> {
        let spec = match (self.quantization().get(path), storage) {
            (Some(QuantOverride::Spec(spec)), _) => Some(spec),
            (Some(QuantOverride::Dense), _) | (None, Storage::Dense) => None,
            (None, Storage::EightBit) => QuantSpec::new(QuantMode::Affine, 8, 64).ok(),
            (None, Storage::Model) => self.quantization().global(),
        };
        spec.filter(|spec| n_in.is_multiple_of(spec.group_size()))
    }
}

/// A mode with the sizes that MLX's converter gives it.
fn default_format(mode: &str) -> Option<Value> {
    let (bits, group_size) = mlx_defaults(QuantMode::from_name(mode)?);
    Some(json!({ "group_size": group_size, "bits": bits, "mode": mode }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions' bytes are the models' published ones, at 16 bits a value.
    #[test]
    fn architectures_are_those_of_their_names() {
        for (name, n_layers, n_moe_layers, cached_bytes) in [
            ("glm-4.5-air", 46, 45, 46 * 8 * 128 * 2 * 2),
            ("glm-4.7-flash", 47, 46, 47 * (512 + 64) * 2),
            ("lfm2-8b-a1b", 24, 22, 6 * 8 * 64 * 2 * 2),
            ("qwen3-0.6b", 28, 0, 28 * 8 * 128 * 2 * 2),
            ("qwen3-30b-a3b", 48, 48, 48 * 4 * 128 * 2 * 2),
            ("qwen3-235b-a22b", 94, 94, 94 * 4 * 128 * 2 * 2),
            ("qwen3-coder-next", 48, 48, 12 * 2 * 256 * 2 * 2),
            ("qwen3.6-35b-a3b", 40, 40, 10 * 2 * 256 * 2 * 2),
        ] {
            let checkpoint = Checkpoint::synthetic(name, 1).expect("a known name");
            let a = checkpoint.architecture();
            assert_eq!((a.layers.len(), a.moe_layers().count()), (n_layers, n_moe_layers), "{name}");
            assert_eq!(a.cached_values_per_token() * 2, cached_bytes, "{name}");
        }
        assert_eq!(CONFIGS.len(), 8);
    }
}

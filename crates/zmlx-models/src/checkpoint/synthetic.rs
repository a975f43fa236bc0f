//! Random weights for a known architecture, made in memory: for measuring without a download.

use bytes::Bytes;
use half::bf16;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zmlx_kernels::{DType, HostWeight, QuantMode, QuantSpec, WeightBytes, WeightFormat};

use super::Checkpoint;
use super::reader::WeightShape;
use crate::config::{ConfigFile, ModelConfig, QuantOverride};
use crate::{Error, Result};

/// The architectures that can be made, and their `config.json`.
const CONFIGS: &[(&str, &str)] = &[
    ("glm-4.7-flash", include_str!("configs/glm-4.7-flash.json")),
    ("qwen3-30b-a3b", include_str!("configs/qwen3-30b-a3b.json")),
];

impl Checkpoint {
    /// A checkpoint of random weights: `spec` is the name of an architecture (`qwen3-30b-a3b`, `glm-4.7-flash`),
    /// perhaps followed by changes to its config: `layers=N` and `vocab=N`, as in `qwen3-30b-a3b,layers=12`.
    ///
    /// Quantised weights have the spread of a trained model's at their width, so that activations stay in range.
    /// The tensors are made as they are loaded; the same spec and seed give the same weights.
    ///
    /// # Errors
    /// If the name or a change is unknown, or the changed config is not sound.
    pub fn synthetic(spec: &str, seed: u64) -> Result<Self> {
        let unknown = || {
            let names: Vec<_> = CONFIGS.iter().map(|(name, _)| *name).collect();
            Error::Synthetic { got: spec.to_owned(), known: names.join(" or ") }
        };
        let mut parts = spec.split(',');
        let name = parts.next().unwrap_or_default();
        let (_, config) = CONFIGS.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
        let file = format!("config.json of {name}");
        let mut config: serde_json::Value =
            serde_json::from_str(config).map_err(|source| Error::Json { file: file.clone(), source })?;
        for part in parts {
            let key = match part.split_once('=').ok_or_else(unknown)? {
                ("layers", _) => "num_hidden_layers",
                ("vocab", _) => "vocab_size",
                _ => return Err(unknown()),
            };
            let value: u32 = part.split_once('=').and_then(|(_, v)| v.parse().ok()).ok_or_else(unknown)?;
            config[key] = value.into();
            if key == "vocab_size" {
                config["eos_token_id"] = 0.into(); // the real ids may lie outside
            }
        }
        let config = ConfigFile::parse(&file, &config.to_string(), None)?;
        Ok(Self {
            name: spec.to_owned(),
            dir: None,
            config,
            shards: Vec::new(),
            tensors: std::collections::BTreeMap::new(),
            synthetic: Some(seed),
        })
    }

    /// The random weight called `path`.
    pub(super) fn random_weight(
        &self,
        seed: u64,
        path: &str,
        shape: WeightShape,
    ) -> zmlx_kernels::Result<HostWeight> {
        let dims = [shape.n_mats.unwrap_or(1), shape.n_out, shape.n_in];
        let n = dims.iter().product::<usize>();
        let mut rng = rng(seed, path);
        // Products of unit activations then have unit variance.
        let std_dev = (shape.n_in as f32).sqrt().recip();
        let Some(spec) = self.random_format(path).filter(|s| shape.n_in.is_multiple_of(s.group_size()))
        else {
            let data = random_bf16(&mut rng, n, std_dev);
            let bytes = WeightBytes { data, scales: Bytes::new(), biases: Bytes::new() };
            return HostWeight::new(WeightFormat::Dense(DType::BF16), dims, bytes);
        };
        let mut data = vec![0; n * spec.bits() / 8];
        rng.fill_bytes(&mut data);
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
            if spec.mode() == QuantMode::Mxfp8 {
                // Random bytes hold NaN codes: the exponent's highest bit is cleared.
                data.iter_mut().for_each(|b| *b &= 0xbf);
            }
            (DType::U8, Bytes::from(vec![code; n_groups]), Bytes::new())
        };
        let bytes = WeightBytes { data: data.into(), scales, biases };
        HostWeight::new(WeightFormat::Quantized { spec, scale_dtype }, dims, bytes)
    }

    /// The random vector called `name`: norms are ones, correction biases small.
    pub(super) fn random_vector(&self, seed: u64, name: &str, len: usize) -> Vec<f32> {
        if name.ends_with("e_score_correction_bias") {
            DType::BF16.to_f32_vec(&random_bf16(&mut rng(seed, name), len, 0.05))
        } else {
            vec![1.0; len]
        }
    }

    /// As converters quantise: what the config says; GLM's router stays dense, Qwen's has 8 bits.
    fn random_format(&self, path: &str) -> Option<QuantSpec> {
        let (config, is_router) = (self.quantization(), path.ends_with(".mlp.gate"));
        match (config.get(path), self.config()) {
            (Some(QuantOverride::Spec(spec)), _) => Some(spec),
            (Some(QuantOverride::Dense), _) => None,
            (None, ModelConfig::Glm4MoeLite(_)) if is_router => None,
            (None, ModelConfig::Qwen3Moe(_)) if is_router => QuantSpec::new(QuantMode::Affine, 8, 64).ok(),
            (None, _) => config.global(),
        }
    }
}

fn rng(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a: every tensor has a stream of its own, the same on every machine.
    let hash = name
        .bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    ChaCha8Rng::seed_from_u64(hash)
}

/// Uniform values of that standard deviation.
fn random_bf16(rng: &mut ChaCha8Rng, n: usize, std_dev: f32) -> Bytes {
    let unit = |r: u32| (r >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
    let value = |_| bf16::from_f32(unit(rng.next_u32()) * std_dev * 3f32.sqrt()).to_le_bytes();
    Bytes::from((0..n).flat_map(value).collect::<Vec<u8>>())
}

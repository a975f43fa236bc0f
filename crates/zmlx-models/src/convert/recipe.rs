//! Chooses the format of each weight.

use serde_json::{Map, Value, json};
use zmlx_kernels::{QuantMode, QuantSpec};

use super::{Quantize, wrong_parameter};
use crate::architecture::Storage;
use crate::config::mlx_defaults;
use crate::{Error, Result};

/// More bits for the weights that are most sensitive to rounding, with mlx-lm's names and rules: the head, and the
/// value and down projections of the first and last eighth of the layers and of every third layer between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// 2 bits; 6 for these weights.
    Mixed2_6,
    /// 3 bits; 4 for these weights.
    Mixed3_4,
    /// 3 bits; 6 for these weights.
    Mixed3_6,
    /// 4 bits; 6 for these weights.
    Mixed4_6,
}

impl Recipe {
    /// All recipes.
    pub const ALL: [Self; 4] = [Self::Mixed2_6, Self::Mixed3_4, Self::Mixed3_6, Self::Mixed4_6];

    /// The name that mlx-lm gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixed2_6 => "mixed_2_6",
            Self::Mixed3_4 => "mixed_3_4",
            Self::Mixed3_6 => "mixed_3_6",
            Self::Mixed4_6 => "mixed_4_6",
        }
    }

    /// The recipe of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    /// The smaller and the larger number of bits.
    const fn bits(self) -> (usize, usize) {
        match self {
            Self::Mixed2_6 => (2, 6),
            Self::Mixed3_4 => (3, 4),
            Self::Mixed3_6 => (3, 6),
            Self::Mixed4_6 => (4, 6),
        }
    }

    /// The bits of the weight at `path`. `layer_at` is the index of the layer's number among the segments of a path.
    fn bits_of(self, path: &str, layer_at: usize, n_layers: usize) -> usize {
        let (fewer, more) = self.bits();
        let layer_idx = path.split('.').nth(layer_at).and_then(|s| s.parse::<usize>().ok()).unwrap_or(0);
        let eighth = n_layers / 8;
        let is_sensitive_layer =
            layer_idx < eighth || layer_idx >= 7 * n_layers / 8 || (layer_idx + 3 * eighth - eighth) % 3 == 2;
        let is_value = ["v_proj", "v_a_proj", "v_b_proj"].iter().any(|name| path.contains(name));
        let wants_more = (is_value || path.contains("down_proj")) && is_sensitive_layer;
        if wants_more || path.contains("lm_head") { more } else { fewer }
    }
}

/// Chooses formats, and records those that the config must name.
pub(super) struct Chooser {
    global: QuantSpec,
    recipe: Option<Recipe>,
    layer_at: usize,
    n_layers: usize,
    /// Whether every quantised weight needs an entry, because the files already held quantised weights.
    names_all: bool,
    /// Entries by path, as `config.json` gets them.
    pub(super) entries: Map<String, Value>,
}

impl Chooser {
    /// # Errors
    /// If there is no such format, or if a recipe is used with a mode other than affine.
    pub(super) fn new(
        quantize: Quantize,
        layers_path: &str,
        n_layers: usize,
        names_all: bool,
    ) -> Result<Self> {
        let Quantize { mode, bits, group_size, recipe } = quantize;
        let (default_bits, default_group) = mlx_defaults(mode);
        let (bits, group_size) = (bits.unwrap_or(default_bits), group_size.unwrap_or(default_group));
        let global = QuantSpec::new(mode, bits, group_size).map_err(|_| {
            let got = format!("{} with {bits} bits in groups of {group_size}", mode.name());
            let want = "affine with 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128; mxfp4 with 4 in 32; mxfp8 with 8 in \
                        32; nvfp4 with 4 in 16";
            wrong_parameter("quantisation", want, got)
        })?;
        if recipe.is_some() && mode != QuantMode::Affine {
            return Err(wrong_parameter("mode of a recipe", "affine", mode.name()));
        }
        let layer_at = layers_path.split('.').count();
        Ok(Self { global, recipe, layer_at, n_layers, names_all, entries: Map::new() })
    }

    /// The format of the weight at `path` with rows of `n_in` values; `None` if it stays dense.
    pub(super) fn choose(&mut self, path: &str, n_in: usize, storage: Storage) -> Result<Option<QuantSpec>> {
        if storage == Storage::Dense || !n_in.is_multiple_of(self.global.group_size()) {
            return Ok(None);
        }
        let (mode, group_size) = (self.global.mode(), self.global.group_size());
        let spec = match (self.recipe, storage) {
            (Some(recipe), _) => {
                let bits = recipe.bits_of(path, self.layer_at, self.n_layers);
                let spec = QuantSpec::new(mode, bits, group_size)?;
                self.entries.insert(path.to_owned(), entry(spec));
                spec
            }
            (None, Storage::EightBit) => {
                let spec = QuantSpec::new(QuantMode::Affine, 8, 64)?;
                let mut entry = entry(spec);
                // As mlx-lm writes it: an entry without a mode is affine.
                if let Some(entry) = entry.as_object_mut() {
                    entry.remove("mode");
                }
                self.entries.insert(path.to_owned(), entry);
                spec
            }
            (None, _) => {
                if self.names_all {
                    self.entries.insert(path.to_owned(), entry(self.global));
                }
                self.global
            }
        };
        if n_in.is_multiple_of(spec.group_size()) {
            return Ok(Some(spec));
        }
        let want = format!("rows of a multiple of {} for {spec}", spec.group_size());
        Err(Error::Unconvertible { name: path.to_owned(), want, got: n_in.to_string() })
    }

    /// The global format for `config.json`.
    pub(super) fn global_entry(&self) -> Value {
        entry(self.global)
    }
}

fn entry(spec: QuantSpec) -> Value {
    json!({ "group_size": spec.group_size(), "bits": spec.bits(), "mode": spec.mode().name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for recipe in Recipe::ALL {
            assert_eq!(Recipe::from_name(recipe.name()), Some(recipe));
        }
        assert_eq!(Recipe::from_name("mixed_2_4"), None);
    }

    #[test]
    fn more_bits_go_to_values_and_down_projections_of_some_layers() {
        let bits = |path: &str, n_layers| Recipe::Mixed3_6.bits_of(path, 2, n_layers);
        let of = |layer: usize, name: &str| bits(&format!("model.layers.{layer}.{name}"), 16);
        // The first two and the last two of sixteen layers, and layers 4, 7, 10 and 13.
        let more: Vec<usize> = (0..16).filter(|&l| of(l, "mlp.switch_mlp.down_proj") == 6).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        for (name, want) in [
            ("self_attn.v_proj", 6),
            ("self_attn.kv_a_proj_with_mqa", 6),
            ("self_attn.k_proj", 3),
            ("mlp.up_proj", 3),
            ("mlp.gate", 3),
        ] {
            assert_eq!(of(0, name), want, "{name}");
            assert_eq!(of(2, name), 3, "{name}");
        }
        assert_eq!((bits("lm_head", 16), bits("model.embed_tokens", 16)), (6, 3));
    }

    #[test]
    fn formats_that_do_not_exist_are_refused() {
        let quantize = Quantize { mode: QuantMode::Affine, bits: Some(7), group_size: None, recipe: None };
        let error = Chooser::new(quantize, "model.layers", 1, false).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("7 bits in groups of 64")));
        let mixed =
            Quantize { mode: QuantMode::Mxfp4, bits: None, recipe: Some(Recipe::Mixed2_6), ..quantize };
        assert!(Chooser::new(mixed, "model.layers", 1, false).is_err());
    }
}

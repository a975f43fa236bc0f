//! The `quantization` table of `config.json`: one global format, and exceptions by module path.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use zmlx_kernels::{QuantMode, QuantSpec};

use crate::Result;
use crate::fields::{Fields, short};

/// An exception for one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantOverride {
    /// `false`: the module is not quantised.
    Dense,
    /// The module has a format of its own.
    Spec(QuantSpec),
}

/// How the weights of a checkpoint are quantised.
///
/// The tensors themselves show which of them are quantised, and how. The table must agree with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantConfig {
    global: Option<QuantSpec>,
    overrides: BTreeMap<String, QuantOverride>,
    /// Modules whose exception says `"global_scale": true`.
    global_scales: BTreeSet<String>,
}

impl QuantConfig {
    /// The format of every module without an exception; `None` if the checkpoint is not quantised.
    pub fn global(&self) -> Option<QuantSpec> {
        self.global
    }

    /// The exception for the module at `path`, for example `model.layers.0.mlp.gate`.
    pub fn get(&self, path: &str) -> Option<QuantOverride> {
        self.overrides.get(path).copied()
    }

    /// True if the exception for the module at `path` says that it has nvfp4's second scale.
    pub fn has_global_scale(&self, path: &str) -> bool {
        self.global_scales.contains(path)
    }

    /// All exceptions, by path.
    pub fn overrides(&self) -> impl Iterator<Item = (&str, QuantOverride)> {
        self.overrides.iter().map(|(path, o)| (path.as_str(), *o))
    }

    /// Reads `quantization`, or its copy `quantization_config` if only that is present.
    ///
    /// A text model inside another model has the table in the outer object or in its own.
    pub(super) fn parse(whole: &Fields<'_>, text_model: &Fields<'_>) -> Result<Self> {
        let places = [whole, text_model].map(|f| f.object(f.named(&["quantization", "quantization_config"])));
        let [outside, inside] = places;
        let Some(table) = outside?.or(inside?) else { return Ok(Self::default()) };
        // Other tools name their formats (AWQ, GPTQ, FP8 blocks) in this key. MLX writes no such key.
        if let Some(method) = table.get("quant_method") {
            return Err(table.unsupported("quant_method", "MLX's own quantisation", short(method)));
        }
        let (mut overrides, mut global_scales) = (BTreeMap::new(), BTreeSet::new());
        for (key, value) in table.iter() {
            match value {
                // This is a setting of the global format. The tensors decide.
                _ if key == GLOBAL_SCALE => {}
                Value::Bool(false) => {
                    overrides.insert(key.clone(), QuantOverride::Dense);
                }
                Value::Object(_) => {
                    let Some(entry) = table.object(key)? else { continue };
                    overrides.insert(key.clone(), QuantOverride::Spec(spec(&entry)?));
                    if entry.bool_or(GLOBAL_SCALE, false)? {
                        global_scales.insert(key.clone());
                    }
                }
                // `true` adds nothing to the global format. Numbers and strings are the global format itself.
                _ => {}
            }
        }
        Ok(Self { global: Some(spec(&table)?), overrides, global_scales })
    }
}

/// The key that says that nvfp4's second scale is present.
const GLOBAL_SCALE: &str = "global_scale";

/// The format in an object. Older files have no `mode`, and neither do exceptions that are affine. Bits and group size
/// may be missing too; then they are MLX's defaults for the mode.
fn spec(fields: &Fields<'_>) -> Result<QuantSpec> {
    let mode = match fields.get("mode") {
        None => QuantMode::Affine,
        Some(v) => v.as_str().and_then(QuantMode::from_name).ok_or_else(|| {
            let known = QuantMode::ALL.map(QuantMode::name).join(", ");
            fields.unsupported("mode", known, short(v))
        })?,
    };
    let (bits, group_size) = mlx_defaults(mode);
    let (bits, group_size) = (fields.dim_or("bits", bits)?, fields.dim_or("group_size", group_size)?);
    QuantSpec::new(mode, bits, group_size).map_err(|_| {
        let want = match mode {
            QuantMode::Affine => "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
            QuantMode::Mxfp4 => "4 bits in groups of 32",
            QuantMode::Mxfp8 => "8 bits in groups of 32",
            QuantMode::Nvfp4 => "4 bits in groups of 16",
        };
        let got = format!("{bits} bits in groups of {group_size}");
        fields.unsupported("bits and group_size", format!("{} of {want}", mode.name()), got)
    })
}

/// The bits and the group size that MLX's converter uses for a mode by default.
pub(crate) fn mlx_defaults(mode: QuantMode) -> (usize, usize) {
    match mode {
        QuantMode::Affine => (4, 64),
        QuantMode::Mxfp4 => (4, 32),
        QuantMode::Mxfp8 => (8, 32),
        QuantMode::Nvfp4 => (4, 16),
    }
}

//! The `quantization` entry of config.json.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::TEXT_PREFIX;
use crate::quant::{Format, Mode};
use crate::{Error, Result};

/// Formats by module path. The general format is not kept: the shapes of a tensor determine its format, and converters
/// write formats other than the general one without naming them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuantizationConfig {
    overrides: BTreeMap<String, Option<Format>>,
}

impl QuantizationConfig {
    /// Reads `quantization`, or its copy `quantization_config` if that is MLX's (it has `bits`).
    ///
    /// # Errors
    /// Fields of the wrong type or an unknown mode.
    pub fn from_json(config: &Value) -> Result<Self> {
        let entry = ["quantization", "quantization_config"]
            .into_iter()
            .filter_map(|key| config.get(key)?.as_object())
            .find(|entry| entry.contains_key("bits") || entry.contains_key("mode"));
        let Some(entry) = entry else { return Ok(Self::default()) };
        format_of(entry, "quantization")?;
        let mut overrides = BTreeMap::new();
        for (path, value) in entry {
            let format = match value {
                Value::Object(fields) => Some(format_of(fields, path)?),
                Value::Bool(false) => None,
                // `true` stands for the general format. All other entries are the general format's own fields.
                _ => continue,
            };
            let path = path.strip_prefix(TEXT_PREFIX).unwrap_or(path);
            overrides.insert(path.to_owned(), format);
        }
        Ok(Self { overrides })
    }

    /// The format that config.json names for a module; `None` if it names none, or says that the module is not
    /// quantised. For a single expert, `..experts.E.proj`, the entry may also be at the path of the stacked module,
    /// `..switch_mlp.proj`.
    #[must_use]
    pub fn format(&self, path: &str) -> Option<Format> {
        let entry = |path: &str| self.overrides.get(path).copied();
        entry(path).or_else(|| entry(&stacked_path(path)?)).flatten()
    }
}

/// `a.mlp.switch_mlp.proj` for `a.mlp.experts.3.proj`.
fn stacked_path(path: &str) -> Option<String> {
    let (module, expert) = path.split_once(".experts.")?;
    let (_, proj) = expert.split_once('.')?;
    Some(format!("{module}.switch_mlp.{proj}"))
}

/// A missing mode means affine, even in an override of a general format with another mode. Missing numbers are MLX's
/// defaults for the mode.
fn format_of(fields: &Map<String, Value>, path: &str) -> Result<Format> {
    let fail = |field: &str, why: String| Error::Config { field: format!("{path}.{field}"), why };
    let mode = match fields.get("mode") {
        None | Some(Value::Null) => Mode::Affine,
        Some(Value::String(name)) => {
            Mode::from_name(name).ok_or_else(|| fail("mode", format!("{name:?} is not a known mode")))?
        }
        Some(other) => return Err(fail("mode", format!("{other} is not a string"))),
    };
    let default = Format::of_mode(mode);
    let number = |field: &str, default: usize| match fields.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .ok_or_else(|| fail(field, format!("{value} is not a size"))),
    };
    Ok(Format {
        mode,
        bits: number("bits", default.bits)?,
        group_size: number("group_size", default.group_size)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> QuantizationConfig {
        QuantizationConfig::from_json(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn overrides_and_defaults() {
        let q = parse(
            r#"{"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4",
                "a": {"group_size": 64, "bits": 8}, "b": false, "c": {"mode": "nvfp4"}, "d": true}}"#,
        );
        assert_eq!(q.format("a"), Some(Format::affine(8, 64)), "no mode means affine");
        assert_eq!(q.format("b"), None);
        assert_eq!(q.format("c"), Some(Format::of_mode(Mode::Nvfp4)));
        assert_eq!((q.format("d"), q.format("elsewhere")), (None, None));
    }

    #[test]
    fn experts_of_their_own_take_the_stacked_entry() {
        let q = parse(
            r#"{"quantization": {"bits": 4, "group_size": 64, "m.mlp.experts.1.up_proj": {"bits": 3},
                "m.mlp.switch_mlp.up_proj": {"bits": 8}}}"#,
        );
        assert_eq!(q.format("m.mlp.experts.0.up_proj"), Some(Format::affine(8, 64)));
        assert_eq!(q.format("m.mlp.experts.1.up_proj"), Some(Format::affine(3, 64)));
        assert_eq!(q.format("m.mlp.experts.0.gate_proj"), None);
        assert_eq!(q.format("m.mlp.shared_experts.up_proj"), None);
    }

    #[test]
    fn legacy_foreign_and_absent_entries() {
        let q = parse(r#"{"quantization_config": {"group_size": 128, "bits": 3, "a": {"bits": 8}}}"#);
        assert_eq!(q.format("a"), Some(Format::affine(8, 64)), "MLX's group, not the general one");
        let foreign = r#"{"quantization_config": {"quant_method": "fp8", "a": {"bits": 8}}}"#;
        assert_eq!(parse(foreign).format("a"), None);
        assert_eq!(parse("{}").format("a"), None);
    }

    #[test]
    fn an_unknown_mode_is_an_error() {
        let value = serde_json::from_str(r#"{"quantization": {"bits": 4, "mode": "q4_k"}}"#).unwrap();
        assert!(matches!(QuantizationConfig::from_json(&value), Err(Error::Config { .. })));
    }
}

//! Which layers have a sliding window.

use serde::Serialize;
use serde_json::Value;

use crate::Result;
use crate::fields::{Fields, short};

/// Which tokens a token of a layer attends to, as named in `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::families) enum LayerType {
    /// Only the last tokens (a sliding window).
    #[serde(rename = "sliding_attention")]
    Sliding,
    /// All earlier tokens.
    #[serde(rename = "full_attention")]
    Full,
}

/// Reads `layer_types`, with one entry for each layer. Without the key, `default` gives the entries.
pub(in crate::families) fn layer_types(
    f: &Fields<'_>,
    n_layers: usize,
    default: impl Fn(usize) -> LayerType,
) -> Result<Vec<LayerType>> {
    const KEY: &str = "layer_types";
    let Some(value) = f.get(KEY) else { return Ok((0..n_layers).map(default).collect()) };
    let of = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Some(LayerType::Sliding),
        Some("full_attention") => Some(LayerType::Full),
        _ => None,
    };
    let types = value.as_array().and_then(|list| list.iter().map(of).collect::<Option<Vec<_>>>());
    let types = types.ok_or_else(|| {
        f.wrong(KEY, "a list of \"sliding_attention\" and \"full_attention\"", short(value))
    })?;
    f.ensure(types.len() == n_layers, KEY, format!("one for each of {n_layers} layers"), types.len())?;
    Ok(types)
}

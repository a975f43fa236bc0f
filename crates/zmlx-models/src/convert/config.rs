//! `config.json` and the index, written as Python's `json.dump(…, indent=4)` writes them.

use serde_json::{Map, Value, json};
use zmlx_kernels::DType;

use super::recipe::Chooser;
use crate::fields::{parse_json, tagged_odd_numbers};
use crate::jinja::float_repr;
use crate::{Checkpoint, Result, end_tokens};

/// The source's config while it is turned into the result's.
pub(super) struct Config(Map<String, Value>);

impl Config {
    /// The config of a checkpoint. If `generation_config.json` has tokens that end a text, these are used.
    pub(super) fn read(source: &Checkpoint) -> Result<Self> {
        let file = || {
            source
                .dir()
                .map_or_else(|| "config.json".to_owned(), |d| d.join("config.json").display().to_string())
        };
        let text = source.config_json();
        let value = match tagged_odd_numbers(text) {
            Some(tagged) => parse_json(&file(), &tagged)?,
            None => parse_json(&file(), text)?,
        };
        // The checkpoint was read from this file, so it is an object.
        let mut config = match value {
            Value::Object(config) => config,
            _ => Map::new(),
        };
        if let Some(ids) = source.dir().and_then(eos_of_generation) {
            config.insert("eos_token_id".to_owned(), ids);
        }
        for unused in ["_name_or_path", "vision_config"] {
            config.shift_remove(unused);
        }
        Ok(Self(config))
    }

    /// The type of floats according to the config, where the reference looks for it.
    pub(super) fn dtype(&self) -> Option<DType> {
        let outside = self.0.get("torch_dtype").filter(|v| !v.is_null());
        let name = outside.or_else(|| self.0.get("text_config")?.get("dtype"))?;
        match name.as_str()? {
            "float32" => Some(DType::F32),
            "float16" => Some(DType::F16),
            "bfloat16" => Some(DType::BF16),
            _ => None,
        }
    }

    /// True if it has a table of formats.
    pub(super) fn is_quantized(&self) -> bool {
        self.0.contains_key(TABLE)
    }

    /// Writes the chosen formats into the table.
    pub(super) fn quantized(&mut self, chosen: &Chooser) {
        let table = self.0.entry(TABLE).or_insert_with(|| chosen.global_entry());
        if let Some(table) = table.as_object_mut() {
            table.extend(chosen.entries.iter().map(|(path, entry)| (path.clone(), entry.clone())));
        }
    }

    /// Removes all tables of formats.
    pub(super) fn dequantized(&mut self) {
        let remove =
            |map: &mut Map<String, Value>| [TABLE, TWIN].iter().for_each(|key| drop(map.shift_remove(*key)));
        remove(&mut self.0);
        if let Some(text_model) = self.0.get_mut("text_config").and_then(Value::as_object_mut) {
            remove(text_model);
        }
    }

    /// The text, with its keys sorted.
    pub(super) fn text(mut self) -> String {
        if let Some(table) = self.0.get(TABLE).cloned() {
            self.0.insert(TWIN.to_owned(), table);
        }
        python_json(&Value::Object(sorted(self.0)))
    }
}

/// The key under which MLX's files keep the formats of weights, and the key where Hugging Face's tools look for them.
const TABLE: &str = "quantization";
const TWIN: &str = "quantization_config";

/// The tokens that end a text according to `generation_config.json`. A value that Python treats as false is ignored.
fn eos_of_generation(dir: &std::path::Path) -> Option<Value> {
    let text = end_tokens::generation_config(dir)?;
    let ids = serde_json::from_str::<Value>(&text).ok()?.get("eos_token_id")?.clone();
    let is_false =
        ids.is_null() || ids == json!(0) || ids == json!([]) || ids == json!("") || ids == json!(false);
    (!is_false).then_some(ids)
}

/// The map with its keys in order.
pub(super) fn sorted(map: Map<String, Value>) -> Map<String, Value> {
    let mut pairs: Vec<_> = map.into_iter().collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs.into_iter().collect()
}

/// The text that Python's `json.dump` with an indent of 4 writes.
pub(super) fn python_json(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out
}

fn write(value: &Value, level: usize, out: &mut String) {
    let new_line = |level: usize, out: &mut String| {
        out.push('\n');
        out.push_str(&" ".repeat(4 * level));
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, value)) in map.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                new_line(level + 1, out);
                write_text(key, out);
                out.push_str(": ");
                write(value, level + 1, out);
            }
            new_line(level, out);
            out.push('}');
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                new_line(level + 1, out);
                write(item, level + 1, out);
            }
            new_line(level, out);
            out.push(']');
        }
        Value::String(text) => write_text(text, out),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(x) => out.push_str(&float_repr(x)),
            None => out.push_str(&number.to_string()),
        },
        // null, true, false, and empty values.
        other => out.push_str(&other.to_string()),
    }
}

/// Writes a text in ASCII.
fn write_text(text: &str, out: &mut String) {
    let quoted = Value::from(text).to_string();
    for c in quoted.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_python() {
        let value = json!({
            "a": [], "b": {}, "c": [1, -2, 1e-6, 10000.0, 1e16, 0.1, true, null], "d": { "e": "é\n\"🦀\u{1}" }
        });
        let want = r#"{
    "a": [],
    "b": {},
    "c": [
        1,
        -2,
        1e-06,
        10000.0,
        1e+16,
        0.1,
        true,
        null
    ],
    "d": {
        "e": "\u00e9\n\"\ud83e\udd80\u0001"
    }
}"#;
        assert_eq!(python_json(&value), want);
    }
}

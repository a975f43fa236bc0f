//! Reads single keys of a JSON object. Errors name the file and the key.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A larger width or count means a broken file. Products of two of these are far from overflow.
const MAX_DIM: u64 = 1 << 24;

/// Keys of a text model that may be outside of its `text_config`.
const OUTER_KEYS: &[&str] = &["tie_word_embeddings", "vocab_size", "torch_dtype", "dtype"];

/// A JSON object of a named file.
pub(crate) struct Fields<'a> {
    file: &'a str,
    /// The path of a nested object. Errors print it before the key.
    prefix: String,
    map: &'a Map<String, Value>,
    /// The object around the one of a text model.
    outer: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::Field {
            file: file.into(),
            key: "the file".into(),
            want: "a JSON object".into(),
            got: short(value),
        })?;
        Ok(Self { file, prefix: String::new(), map, outer: None })
    }

    /// The keys of the text model: those in `text_config` if the model has several kinds of input, else all.
    pub(crate) fn text_model(&self) -> Result<Self> {
        Ok(match self.object("text_config")? {
            Some(text) => Self { outer: Some(self.map), ..text },
            None => Self { file: self.file, prefix: self.prefix.clone(), map: self.map, outer: None },
        })
    }

    /// The object under `key`; `None` if it is missing or null.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, "an object", short(value)))?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(Some(Self { file: self.file, prefix, map, outer: None }))
    }

    /// The value of `key`; `None` if it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.raw(key).filter(|v| !v.is_null())
    }

    fn raw(&self, key: &str) -> Option<&'a Value> {
        let outside = || self.outer.filter(|_| OUTER_KEYS.contains(&key))?.get(key);
        let inside = self.map.get(key);
        inside.filter(|v| !v.is_null()).or_else(outside).or(inside)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(crate) fn str(&self, key: &str) -> Result<&'a str> {
        self.required(key, "a string", Value::as_str)
    }

    /// A width or count: at least 1.
    pub(crate) fn dim(&self, key: &str) -> Result<usize> {
        let in_range = |v: &Value| v.as_u64().filter(|n| (1..=MAX_DIM).contains(n)).map(|n| n as usize);
        self.required(key, "a whole number from 1 to 16777216", in_range)
    }

    /// A width or count that may be missing.
    pub(crate) fn dim_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.dim(key) } else { Ok(default) }
    }

    /// A count that may be 0.
    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        let in_range = |v: &Value| v.as_u64().filter(|&n| n <= MAX_DIM).map(|n| n as usize);
        self.required(key, "a whole number from 0 to 16777216", in_range)
    }

    pub(crate) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    /// A positive number that a float can hold.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        let in_range = |v: &Value| v.as_f64().filter(|&x| x > 0.0 && x <= f64::from(f32::MAX));
        self.required(key, "a positive number", in_range)
    }

    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() { self.positive(key) } else { Ok(default) }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<bool> {
        self.required(key, "true or false", Value::as_bool)
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_some() { self.bool(key) } else { Ok(default) }
    }

    /// A list of counts.
    pub(crate) fn counts(&self, key: &str) -> Result<Vec<usize>> {
        let list = |v: &Value| {
            let each = v.as_array()?.iter().map(|v| v.as_u64().filter(|&n| n <= MAX_DIM).map(|n| n as usize));
            each.collect::<Option<Vec<_>>>()
        };
        self.required(key, "a list of whole numbers", list)
    }

    /// Refuses a string other than `want`. A missing key is accepted.
    pub(crate) fn only(&self, key: &str, want: &str) -> Result<()> {
        match self.get(key) {
            Some(v) if v.as_str() != Some(want) => Err(self.unsupported(key, want, short(v))),
            _ => Ok(()),
        }
    }

    /// Refuses a switch that is on.
    pub(crate) fn off(&self, key: &str) -> Result<()> {
        if self.bool_or(key, false)? { Err(self.unsupported(key, "false", "true")) } else { Ok(()) }
    }

    /// The first of these keys that is present, or else the first one. They are names of the same setting from
    /// different times.
    pub(crate) fn named<'k>(&self, keys: &[&'k str]) -> &'k str {
        let first = keys.iter().find(|key| self.get(key).is_some()).or(keys.first());
        first.copied().unwrap_or_default()
    }

    /// A number that is positive or 0.
    pub(crate) fn non_negative_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            Some(v) if v.as_f64() == Some(0.0) => Ok(0.0),
            _ => self.positive_or(key, default),
        }
    }

    /// A list of positive numbers.
    pub(crate) fn positives(&self, key: &str) -> Result<Vec<f64>> {
        let in_range = |v: &Value| v.as_f64().filter(|&x| x > 0.0 && x <= f64::from(f32::MAX));
        let list = |v: &Value| v.as_array()?.iter().map(in_range).collect::<Option<Vec<_>>>();
        self.required(key, "a list of positive numbers", list)
    }

    /// Returns an error unless `ok`.
    pub(crate) fn ensure(&self, ok: bool, key: &str, want: impl Into<String>, got: usize) -> Result<()> {
        if ok { Ok(()) } else { Err(self.wrong(key, want, got)) }
    }

    pub(crate) fn wrong(&self, key: &str, want: impl Into<String>, got: impl ToString) -> Error {
        let key = format!("{}{key}", self.prefix);
        Error::Field { file: self.file.into(), key, want: want.into(), got: got.to_string() }
    }

    pub(crate) fn unsupported(&self, key: &str, want: impl Into<String>, got: impl ToString) -> Error {
        let key = format!("{}{key}", self.prefix);
        Error::UnsupportedSetting { file: self.file.into(), key, want: want.into(), got: got.to_string() }
    }

    fn required<T>(&self, key: &str, want: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        match self.raw(key) {
            Some(v) => read(v).ok_or_else(|| self.wrong(key, want, short(v))),
            None => Err(self.wrong(key, want, "nothing: the key is missing")),
        }
    }
}

/// The start of a value's JSON, because a whole nested object would make the message too long.
pub(crate) fn short(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(80) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Parses the text of `file` as JSON.
pub(crate) fn parse_json(file: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).or_else(|source| {
        // Python's writers use numbers that JSON lacks.
        let rewritten = with_odd_numbers(text, |_| "null".to_owned());
        let rewritten = rewritten.and_then(|text| serde_json::from_str(&text).ok());
        rewritten.ok_or_else(|| Error::Json { file: file.into(), source })
    })
}

/// The text with objects in place of `NaN` and infinities, which Hugging Face's and MLX's tools write:
/// `{"__float__": "NaN"}`. `None` if there are none.
pub(crate) fn tagged_odd_numbers(text: &str) -> Option<String> {
    with_odd_numbers(text, |odd| format!("{{\"__float__\": \"{odd}\"}}"))
}

/// The text with replacements for `NaN` and infinities outside of strings; `None` if there are none.
fn with_odd_numbers(text: &str, instead: impl Fn(&str) -> String) -> Option<String> {
    const ODD: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let (mut out, mut rest, mut n_found) = (String::with_capacity(text.len()), text, 0);
    while let Some(at) = rest.find(['"', '-', 'I', 'N']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(odd) = ODD.into_iter().find(|odd| from.starts_with(odd)) {
            out.push_str(&instead(odd));
            n_found += 1;
            rest = &from[odd.len()..];
            continue;
        }
        let len = if from.starts_with('"') { string_len(from)? } else { 1 };
        out.push_str(&from[..len]);
        rest = &from[len..];
    }
    out.push_str(rest);
    (n_found > 0).then_some(out)
}

/// Length in bytes of the JSON string at the beginning of the text, including its quotes; `None` if it does not end.
fn string_len(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_python_become_null() {
        let parse = |text: &str| parse_json("f", text).map(|v| v.to_string()).ok();
        let text = r#"{"a": Infinity, "b": [-Infinity, NaN, -1], "c\"d NaN": "Infinity"}"#;
        assert_eq!(parse(text).unwrap(), r#"{"a":null,"b":[null,null,-1],"c\"d NaN":"Infinity"}"#);
        for text in [r#"{"a": Infinit}"#, r#"{"a": "NaN"#, "NaN,", "Infinity5", "[-I]"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

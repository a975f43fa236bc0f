//! Reading single keys of a JSON object, with errors that name file and key.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Above this, a width or count is not a model but a broken file; products of two stay far below overflow.
const MAX_DIM: u64 = 1 << 24;

/// A JSON object of a named file.
pub(super) struct Fields<'a> {
    file: &'a str,
    /// Put before the key in errors: the path of a nested object.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a str, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::Field {
            file: file.into(),
            key: "the file".into(),
            want: "a JSON object".into(),
            got: short(value),
        })?;
        Ok(Self { file, prefix: String::new(), map })
    }

    /// The object under `key`; absent and null are none.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(key, "an object", short(value)))?;
        Ok(Some(Self { file: self.file, prefix: format!("{}{key}.", self.prefix), map }))
    }

    /// The value of `key`; absent and null are none.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(super) fn str(&self, key: &str) -> Result<&'a str> {
        self.required(key, "a string", Value::as_str)
    }

    /// A width or count: at least 1.
    pub(super) fn dim(&self, key: &str) -> Result<usize> {
        let in_range = |v: &Value| v.as_u64().filter(|n| (1..=MAX_DIM).contains(n)).map(|n| n as usize);
        self.required(key, "a whole number from 1 to 16777216", in_range)
    }

    /// A width or count that may be absent.
    pub(super) fn dim_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.dim(key) } else { Ok(default) }
    }

    /// A count that may be 0.
    pub(super) fn count(&self, key: &str) -> Result<usize> {
        let in_range = |v: &Value| v.as_u64().filter(|&n| n <= MAX_DIM).map(|n| n as usize);
        self.required(key, "a whole number from 0 to 16777216", in_range)
    }

    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    /// A positive number that a float holds.
    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        let in_range = |v: &Value| v.as_f64().filter(|&x| x > 0.0 && x <= f64::from(f32::MAX));
        self.required(key, "a positive number", in_range)
    }

    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_some() { self.positive(key) } else { Ok(default) }
    }

    pub(super) fn bool(&self, key: &str) -> Result<bool> {
        self.required(key, "true or false", Value::as_bool)
    }

    pub(super) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        if self.get(key).is_some() { self.bool(key) } else { Ok(default) }
    }

    /// A list of counts.
    pub(super) fn counts(&self, key: &str) -> Result<Vec<usize>> {
        let list = |v: &Value| {
            let each = v.as_array()?.iter().map(|v| v.as_u64().filter(|&n| n <= MAX_DIM).map(|n| n as usize));
            each.collect::<Option<Vec<_>>>()
        };
        self.required(key, "a list of whole numbers", list)
    }

    /// Refuses a setting of a string key other than `want`; absent is accepted.
    pub(super) fn only(&self, key: &str, want: &str) -> Result<()> {
        match self.get(key) {
            Some(v) if v.as_str() != Some(want) => Err(self.unsupported(key, want, short(v))),
            _ => Ok(()),
        }
    }

    /// Refuses a switch that is on.
    pub(super) fn off(&self, key: &str) -> Result<()> {
        if self.bool_or(key, false)? { Err(self.unsupported(key, "false", "true")) } else { Ok(()) }
    }

    /// `rope_theta`, written at the top level or, by newer files, in `rope_parameters`.
    pub(super) fn rope_theta(&self) -> Result<Option<f64>> {
        if self.get("rope_theta").is_some() {
            return self.positive("rope_theta").map(Some);
        }
        match self.object("rope_parameters")? {
            Some(p) if p.get("rope_theta").is_some() => p.positive("rope_theta").map(Some),
            _ => Ok(None),
        }
    }

    /// Refuses every kind of RoPE but the plain one, in `rope_scaling` and in `rope_parameters`.
    pub(super) fn plain_rope(&self) -> Result<()> {
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(scaling) = self.object(key)? else { continue };
            scaling.only("type", "default")?;
            scaling.only("rope_type", "default")?;
        }
        for fields in [Some(self), self.object("rope_parameters")?.as_ref()].into_iter().flatten() {
            let part = fields.positive_or("partial_rotary_factor", 1.0)?;
            if part != 1.0 {
                return Err(fields.unsupported("partial_rotary_factor", "1", part.to_string()));
            }
        }
        Ok(())
    }

    /// Refuses unless `ok`.
    pub(super) fn ensure(&self, ok: bool, key: &str, want: impl Into<String>, got: usize) -> Result<()> {
        if ok { Ok(()) } else { Err(self.wrong(key, want, got)) }
    }

    pub(super) fn wrong(&self, key: &str, want: impl Into<String>, got: impl ToString) -> Error {
        let key = format!("{}{key}", self.prefix);
        Error::Field { file: self.file.into(), key, want: want.into(), got: got.to_string() }
    }

    pub(super) fn unsupported(&self, key: &str, want: impl Into<String>, got: impl ToString) -> Error {
        let key = format!("{}{key}", self.prefix);
        Error::UnsupportedSetting { file: self.file.into(), key, want: want.into(), got: got.to_string() }
    }

    fn required<T>(&self, key: &str, want: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        match self.map.get(key) {
            Some(v) => read(v).ok_or_else(|| self.wrong(key, want, short(v))),
            None => Err(self.wrong(key, want, "nothing: the key is missing")),
        }
    }
}

/// The start of a value's JSON: a whole nested object would drown the message.
pub(crate) fn short(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(80) {
        text.truncate(end);
        text.push('…');
    }
    text
}

//! Reads requests. A field of the wrong type or range causes an error with its name. `null` is treated as a missing
//! field.

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of a JSON object.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// The path of the object: empty at the top, otherwise with a dot at its end.
    prefix: String,
}

impl<'a> Fields<'a> {
    /// The fields of a request's body.
    pub(crate) fn of_body(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self { map, prefix: String::new() }),
            other => {
                Err(ApiError::bad_request(format!("the body: expected a JSON object, got {}", short(other))))
            }
        }
    }

    /// The fields of the value at `path`.
    pub(crate) fn of(value: &'a Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, prefix: format!("{path}.") }),
            other => Err(wrong(path, "an object", other)),
        }
    }

    /// The full name of a field.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error about a field.
    pub(crate) fn error(&self, key: &str, message: impl AsRef<str>) -> ApiError {
        ApiError::field(self.path(key), message)
    }

    pub(crate) fn wrong(&self, key: &str, want: &str, got: &Value) -> ApiError {
        wrong(&self.path(key), want, got)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(key, "a string", Value::as_str)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, ApiError> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>, ApiError> {
        self.read(key, "a list", Value::as_array)
    }

    pub(crate) fn map(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, ApiError> {
        self.read(key, "an object", Value::as_object)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        let path = self.path(key);
        self.get(key).map(|value| Fields::of(value, &path)).transpose()
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn integer(&self, key: &str, low: i64, high: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some clients write whole numbers as floats.
        let whole = |n: f64| (n.fract() == 0.0 && n.abs() < 9e15).then_some(n as i64);
        let n = value
            .as_i64()
            .or_else(|| value.as_u64().map(|_| i64::MAX))
            .or_else(|| value.as_f64().and_then(whole));
        match n {
            Some(n) if (low..=high).contains(&n) => Ok(Some(n)),
            _ if high == i64::MAX => Err(self.wrong(key, &format!("a whole number, at least {low}"), value)),
            _ => Err(self.wrong(key, &format!("a whole number from {low} to {high}"), value)),
        }
    }

    /// A count of at least `low`.
    pub(crate) fn count(&self, key: &str, low: i64) -> Result<Option<usize>, ApiError> {
        let n = self.integer(key, low, i64::MAX)?;
        Ok(n.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    }

    /// A number for which `is_good` is true.
    pub(crate) fn number(
        &self,
        key: &str,
        want: &str,
        is_good: impl Fn(f64) -> bool,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|n| is_good(*n)) {
            Some(n) => Ok(Some(n as f32)),
            None => Err(self.wrong(key, want, value)),
        }
    }

    fn read<T>(
        &self,
        key: &str,
        want: &str,
        as_type: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        as_type(value).map(Some).ok_or_else(|| self.wrong(key, want, value))
    }
}

/// The error for a value of the wrong kind.
pub(crate) fn wrong(path: &str, want: &str, got: &Value) -> ApiError {
    ApiError::field(path, format!("expected {want}, got {}", short(got)))
}

/// A value, shortened for an error message.
pub(crate) fn short(value: &Value) -> String {
    const SHOWN: usize = 80;
    match value {
        Value::Object(_) => return "an object".to_owned(),
        Value::Array(_) => return "a list".to_owned(),
        _ => {}
    }
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

//! `tojson`, which is Python's `json.dumps`.

use super::budget::{Budget, Out};
use super::fault::{Fault, Res};
use super::ops;
use super::text::{float_repr, to_text};
use super::value::{Dict, Value};

/// Options of `json.dumps`.
#[derive(Debug)]
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The JSON of a value. `options` are `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn to_json(budget: &Budget, value: &Value, options: [Option<Value>; 4]) -> Res<Value> {
    let [ensure_ascii, indent, separators, sort_keys] = options;
    let is_true = |option: Option<Value>| option.map_or(Ok(false), |v| ops::truth(budget, &v));
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.as_str().to_owned()),
        Some(other) => match other.as_int() {
            Some(n) => {
                let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
                budget.room(n)?;
                Some(" ".repeat(n))
            }
            None => return Fault::failed(format!("indent: expected a number, got {}", other.type_name())),
        },
    };
    let (item, key) = match separators {
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair = super::iter::vec_of(budget, &pair)?;
            match pair.as_slice() {
                [Value::Str(item), Value::Str(key)] => (item.as_str().to_owned(), key.as_str().to_owned()),
                _ => return Fault::failed("separators: expected two strings"),
            }
        }
    };
    let style = Style {
        ensure_ascii: is_true(ensure_ascii)?,
        indent,
        item_separator: item,
        key_separator: key,
        sort_keys: is_true(sort_keys)?,
    };
    let mut out = Out::new(budget);
    style.write(&mut out, value, 0)?;
    budget.written(out)
}

impl Style {
    fn write(&self, out: &mut Out<'_>, value: &Value, level: usize) -> Res<()> {
        out.budget().step()?;
        match value {
            Value::Str(text) => self.string(out, text.as_str()),
            Value::List(seq) | Value::Tuple(seq) => {
                if seq.items().is_empty() {
                    return out.push("[]");
                }
                out.push("[")?;
                for (i, item) in seq.items().iter().enumerate() {
                    self.separate(out, i == 0, level + 1)?;
                    self.write(out, item, level + 1)?;
                }
                self.new_line(out, level)?;
                out.push("]")
            }
            Value::Dict(dict) => self.dict(out, dict, level),
            other => match scalar(other) {
                Some(text) => out.push(&text),
                None => {
                    Fault::failed(format!("Object of type {} is not JSON serializable", other.type_name()))
                }
            },
        }
    }

    fn dict(&self, out: &mut Out<'_>, dict: &Dict, level: usize) -> Res<()> {
        if dict.len() == 0 {
            return out.push("{}");
        }
        let budget = out.budget();
        let mut pairs: Vec<_> = dict.iter().collect();
        if self.sort_keys {
            pairs = ops::sorted(budget, pairs, |a, b| ops::less(budget, a.0, b.0))?;
        }
        out.push("{")?;
        for (i, (key, value)) in pairs.into_iter().enumerate() {
            self.separate(out, i == 0, level + 1)?;
            match (key, scalar(key)) {
                (Value::Str(text), _) => self.string(out, text.as_str())?,
                (_, Some(text)) => self.string(out, &text)?,
                _ => {
                    return Fault::failed(format!(
                        "keys must be str, int, float, bool or None, not {}",
                        key.type_name()
                    ));
                }
            }
            out.push(&self.key_separator)?;
            self.write(out, value, level + 1)?;
        }
        self.new_line(out, level)?;
        out.push("}")
    }

    fn separate(&self, out: &mut Out<'_>, first: bool, level: usize) -> Res<()> {
        if !first {
            out.push(&self.item_separator)?;
        }
        self.new_line(out, level)
    }

    fn new_line(&self, out: &mut Out<'_>, level: usize) -> Res<()> {
        match &self.indent {
            Some(indent) => {
                out.push("\n")?;
                out.repeat(indent, level)
            }
            None => Ok(()),
        }
    }

    fn string(&self, out: &mut Out<'_>, text: &str) -> Res<()> {
        out.push("\"")?;
        let mut plain = 0;
        for (i, c) in text.char_indices() {
            let escaped = match c {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\u{8}' => "\\b".to_owned(),
                '\u{c}' => "\\f".to_owned(),
                '\0'..='\u{1f}' => format!("\\u{:04x}", u32::from(c)),
                ' '..='~' => continue,
                _ if !self.ensure_ascii => continue,
                _ => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
            };
            out.push(&text[plain..i])?;
            out.push(&escaped)?;
            plain = i + c.len_utf8();
        }
        out.push(&text[plain..])?;
        out.push("\"")
    }
}

/// The JSON of a value that is neither a text nor has parts.
fn scalar(value: &Value) -> Option<String> {
    Some(match value {
        Value::None => "null".to_owned(),
        Value::Bool(true) => "true".to_owned(),
        Value::Bool(false) => "false".to_owned(),
        Value::Int(i) => i.to_string(),
        Value::Float(x) if x.is_nan() => "NaN".to_owned(),
        Value::Float(x) if x.is_infinite() => if *x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Value::Float(x) => float_repr(*x),
        _ => return None,
    })
}

/// A description of a value in at most one line, for errors.
pub(super) fn brief(budget: &Budget, value: &Value) -> Res<String> {
    Ok(to_text(budget, value)?.as_str().chars().take(200).collect())
}

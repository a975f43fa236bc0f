//! Methods of texts, lists and mappings.

pub(super) mod strings;

use super::budget::Items;
use super::calls::{Args, int_of};
use super::fault::{Fault, Res};
use super::ops;
use super::run::Run;
use super::value::{Value, View};

/// The result of `getattr`.
pub(super) enum Access {
    /// A method that may be called.
    Method(&'static str),
    /// A method that changes its object. The sandbox hides it.
    Unsafe,
    Nothing,
}

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const DICT: &[&str] = &["copy", "get", "items", "keys", "values"];
const DICT_UNSAFE: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const LIST: &[&str] = &["copy", "count", "index"];
const LIST_UNSAFE: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const TUPLE: &[&str] = &["count", "index"];

/// Looks up `getattr(object, name)`.
pub(super) fn access(object: &Value, name: &str) -> Access {
    let (methods, hidden): (&[&'static str], &[&str]) = match object {
        Value::Str(_) => (STR, &[]),
        Value::Dict(_) => (DICT, DICT_UNSAFE),
        Value::List(_) => (LIST, LIST_UNSAFE),
        Value::Tuple(_) | Value::Range(_) => (TUPLE, &[]),
        Value::Float(_) => (&["is_integer"], &[]),
        Value::Cycler(_) => (&["next", "reset"], &[]),
        _ => (&[], &[]),
    };
    if let Some(method) = methods.iter().find(|m| **m == name) {
        return Access::Method(method);
    }
    if hidden.contains(&name) { Access::Unsafe } else { Access::Nothing }
}

impl Run<'_> {
    /// Calls a method.
    pub(super) fn method(&self, object: &Value, name: &str, args: Args) -> Res<Value> {
        match object {
            Value::Str(text) => {
                let result = strings::call(self, text.as_str(), name, args)?;
                Ok(if text.is_markup { result.into_markup() } else { result })
            }
            Value::Dict(dict) => match name {
                "get" => {
                    let [key, default] = args.bind("get", ["key", "default"])?;
                    let Some(key) = key else {
                        return Fault::failed("get expected at least 1 argument, got 0");
                    };
                    let found = dict.get(self.budget, &key)?.cloned();
                    Ok(found.unwrap_or_else(|| default.unwrap_or(Value::None)))
                }
                _ => {
                    let [] = args.bind(name, [])?;
                    Ok(match name {
                        "items" => Value::View(View::Items, dict.clone()),
                        "keys" => Value::View(View::Keys, dict.clone()),
                        "values" => Value::View(View::Values, dict.clone()),
                        _ => object.clone(),
                    })
                }
            },
            Value::Float(x) => Ok(Value::Bool(x.fract() == 0.0)),
            Value::List(_) | Value::Tuple(_) | Value::Range(_) if name == "copy" => {
                let [] = args.bind(name, [])?;
                Ok(object.clone())
            }
            _ => self.sequence_method(object, name, args),
        }
    }

    fn sequence_method(&self, object: &Value, name: &str, args: Args) -> Res<Value> {
        let [item, start, stop] = args.bind(name, ["value", "start", "stop"])?;
        let Some(item) = item else {
            return Fault::failed(format!("{name}() takes at least 1 argument (0 given)"));
        };
        let mut items = super::iter::Iter::over(object)?;
        let len = ops::length(self.budget, object)?.unwrap_or(0);
        let bound = |value: Option<Value>, default: usize| -> Res<usize> {
            let Some(value) = value else { return Ok(default) };
            let at = int_of(name, &value)?;
            let at = if at < 0 { at.saturating_add(len as i128).max(0) } else { at };
            Ok(usize::try_from(at).unwrap_or(usize::MAX))
        };
        let (start, stop) = (bound(start, 0)?, bound(stop, usize::MAX)?);
        let (mut at, mut n) = (0, 0);
        while let Some(candidate) = items.next(self.budget)? {
            if ops::equal(self.budget, &candidate, &item)? && (start..stop).contains(&at) {
                if name == "index" {
                    return Ok(Value::Int(at as i128));
                }
                n += 1;
            }
            at += 1;
        }
        if name == "index" {
            let item = super::json::brief(self.budget, &item)?;
            return Fault::failed(format!("{item} is not in list"));
        }
        Ok(Value::Int(n))
    }

    /// A list of texts.
    pub(super) fn texts<'t>(&self, texts: impl IntoIterator<Item = &'t str>) -> Res<Value> {
        let mut items = Items::new(self.budget);
        texts.into_iter().try_for_each(|text| items.push(self.budget.str(text)?))?;
        self.budget.list(items)
    }
}

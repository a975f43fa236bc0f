//! Jinja2's tests: the words after `is`.

use super::ast::CompareOp;
use super::calls::Args;
use super::fault::{Fault, Res};
use super::filters;
use super::ops;
use super::run::Run;
use super::text::to_text;
use super::value::{Key, Value};

/// The names of all tests.
const TESTS: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "==",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    ">=",
    "greaterthan",
    "gt",
    ">",
    "in",
    "integer",
    "iterable",
    "le",
    "<=",
    "lessthan",
    "lower",
    "lt",
    "<",
    "mapping",
    "ne",
    "!=",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

impl Run<'_> {
    /// Whether a test is true for a value.
    pub(super) fn check(&self, name: &str, value: &Value, args: Args) -> Res<bool> {
        self.budget.step()?;
        let operator = match name {
            "eq" | "equalto" | "==" => Some(CompareOp::Eq),
            "ne" | "!=" => Some(CompareOp::Ne),
            "lt" | "lessthan" | "<" => Some(CompareOp::Lt),
            "le" | "<=" => Some(CompareOp::Le),
            "gt" | "greaterthan" | ">" => Some(CompareOp::Gt),
            "ge" | ">=" => Some(CompareOp::Ge),
            "in" => Some(CompareOp::In),
            _ => None,
        };
        let one = |args: Args| -> Res<Value> {
            match args.bind(name, ["other"])? {
                [Some(other)] => Ok(other),
                [None] => Fault::failed(format!("test '{name}' is missing its argument")),
            }
        };
        if let Some(op) = operator {
            return self.compare(op, value, &one(args)?);
        }
        match name {
            "sameas" => return Ok(ops::is_same(value, &one(args)?)),
            "divisibleby" => {
                let rest = ops::binary(self.budget, super::ast::BinaryOp::Mod, value, &one(args)?)?;
                return ops::equal(self.budget, &rest, &Value::Int(0));
            }
            _ => {}
        }
        if !TESTS.contains(&name) {
            return Fault::failed(format!("No test named '{name}'."));
        }
        let [] = args.bind(name, [])?;
        self.plain_check(name, value)
    }

    fn plain_check(&self, name: &str, value: &Value) -> Res<bool> {
        let remainder = || {
            let two = Value::Int(2);
            ops::binary(self.budget, super::ast::BinaryOp::Mod, value, &two)
        };
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" => matches!(
                value,
                Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Range(_)
                    | Value::Undefined(_)
            ),
            "iterable" => !matches!(
                value,
                Value::None
                    | Value::Bool(_)
                    | Value::Int(_)
                    | Value::Float(_)
                    | Value::Function(_)
                    | Value::Method(_)
                    | Value::Macro(_)
                    | Value::Namespace(_)
                    | Value::Joiner(_)
                    | Value::Cycler(_)
            ),
            "callable" => matches!(
                value,
                Value::Function(_)
                    | Value::Method(_)
                    | Value::Macro(_)
                    | Value::Joiner(_)
                    | Value::Loop(_)
                    | Value::Undefined(_)
            ),
            "even" => ops::equal(self.budget, &remainder()?, &Value::Int(0))?,
            "odd" => ops::equal(self.budget, &remainder()?, &Value::Int(1))?,
            "lower" => self.has_case(value, char::is_lowercase, char::is_uppercase)?,
            "upper" => self.has_case(value, char::is_uppercase, char::is_lowercase)?,
            "filter" | "test" => {
                // The environment looks up the value in a dict, so it must be usable as a key.
                Key::of(self.budget, value)?;
                let names = if name == "filter" { filters::FILTERS } else { TESTS };
                value.as_str().is_some_and(|name| names.contains(&name))
            }
            _ => value.is_markup(),
        })
    }

    fn has_case(&self, value: &Value, of: fn(char) -> bool, not: fn(char) -> bool) -> Res<bool> {
        let text = to_text(self.budget, value)?;
        self.budget.pass(text.as_str().len())?;
        Ok(text.as_str().chars().any(of) && !text.as_str().chars().any(not))
    }
}

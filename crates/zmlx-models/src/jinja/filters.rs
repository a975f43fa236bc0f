//! Jinja2's filters.

mod lists;
mod numeric;
mod texts;

use super::calls::Args;
use super::fault::{Fault, Res};
use super::json::to_json;
use super::ops;
use super::run::Run;
use super::text::to_text;
use super::value::{Text, Value};

/// The names of all filters.
pub(super) const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
];

impl Run<'_> {
    /// `value | name(args)`.
    pub(super) fn filter(&self, name: &str, value: Value, args: Args) -> Res<Value> {
        self.budget.step()?;
        match name {
            "default" | "d" => {
                let [default, boolean] = args.bind("default", ["default_value", "boolean"])?;
                let boolean = boolean.map_or(Ok(false), |b| ops::truth(self.budget, &b))?;
                if value.is_undefined() || (boolean && !ops::truth(self.budget, &value)?) {
                    return default.map_or_else(|| self.budget.str(""), Ok);
                }
                Ok(value)
            }
            "attr" => {
                let [attr] = args.bind(name, ["name"])?;
                let attr = to_text(self.budget, &attr.unwrap_or(Value::None))?;
                // This finds only attributes, not items.
                Ok(match self.python_attribute(&value, attr.as_str())? {
                    Some(attribute) => attribute,
                    None => Value::Undefined(format!("no attribute '{}'", attr.as_str()).into()),
                })
            }
            "tojson" => {
                let options = args.bind(name, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
                to_json(self.budget, &value, options)
            }
            "length" | "count" => {
                let [] = args.bind(name, [])?;
                match ops::length(self.budget, &value)? {
                    Some(n) => Ok(Value::Int(n as i128)),
                    None => Fault::failed(format!("object of type '{}' has no len()", value.type_name())),
                }
            }
            "string" | "safe" | "pprint" => {
                let [] = args.bind(name, [])?;
                if name == "pprint" {
                    let mut out = super::budget::Out::new(self.budget);
                    super::text::write_repr(&mut out, &value)?;
                    return self.budget.written(out);
                }
                let text = Value::Str(self.text_of(&value)?);
                Ok(if name == "safe" { text.into_markup() } else { text })
            }
            "abs" | "float" | "int" | "round" | "filesizeformat" => self.numeric_filter(name, value, args),
            "batch" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "list" | "map"
            | "max" | "min" | "reject" | "rejectattr" | "reverse" | "select" | "selectattr" | "slice"
            | "sort" | "sum" | "unique" => self.list_filter(name, value, args),
            _ if FILTERS.contains(&name) => {
                // Filters that are methods of a text keep whether it is markup.
                let keeps = matches!(name, "upper" | "lower" | "capitalize" | "trim" | "center" | "indent");
                let is_markup = keeps && value.is_markup();
                let text = self.text_filter(name, value, args)?;
                Ok(if is_markup { text.into_markup() } else { text })
            }
            _ => Fault::failed(format!("No filter named '{name}'.")),
        }
    }

    /// `str(value)`.
    fn text_of(&self, value: &Value) -> Res<Text> {
        to_text(self.budget, value)
    }

    /// The truth of an optional argument.
    fn flag(&self, value: Option<Value>) -> Res<bool> {
        value.map_or(Ok(false), |value| ops::truth(self.budget, &value))
    }
}

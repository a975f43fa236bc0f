//! Attributes and items of values.

use std::rc::Rc;

use super::super::fault::Res;
use super::super::iter::LoopState;
use super::super::methods::{self, Access};
use super::super::ops;
use super::super::value::Value;
use super::Run;

impl Run<'_> {
    /// `object.name`: a method or attribute, or otherwise the item of that name.
    pub(in super::super) fn attribute(&self, object: &Value, name: &str) -> Res<Value> {
        if let Value::Undefined(what) = object {
            return ops::undefined(what);
        }
        if let Some(value) = self.python_attribute(object, name)? {
            return Ok(value);
        }
        if let Value::Dict(dict) = object
            && let Some(value) = dict.get_str(name)
        {
            return Ok(value.clone());
        }
        Ok(no_attribute(object, name))
    }

    /// `object[key]`: the item, or otherwise the attribute of that name.
    pub(in super::super) fn item(&self, object: &Value, key: &Value) -> Res<Value> {
        let found = match object {
            Value::Undefined(what) => return ops::undefined(what),
            Value::Dict(dict) => match key {
                // A list used as a key is not an error here; it finds nothing.
                Value::List(_) | Value::Dict(_) => None,
                _ => dict.get(self.budget, key)?.cloned(),
            },
            _ => match key.as_int() {
                Some(index) => ops::indexed(self.budget, object, index)?,
                None => None,
            },
        };
        if let Some(value) = found {
            return Ok(value);
        }
        if let Some(name) = key.as_str() {
            if let Some(value) = self.python_attribute(object, name)? {
                return Ok(value);
            }
            return Ok(no_attribute(object, name));
        }
        let key = super::super::json::brief(self.budget, key)?;
        Ok(Value::Undefined(format!("{} has no element {key}", type_text(object)).into()))
    }

    /// The result of Python's `getattr`.
    pub(in super::super) fn python_attribute(&self, object: &Value, name: &str) -> Res<Option<Value>> {
        Ok(match object {
            Value::Namespace(namespace) => namespace.get(name),
            Value::Loop(state) => self.loop_attribute(state, name)?,
            Value::Tuple(seq) if seq.is_group && matches!(name, "grouper" | "list") => {
                seq.items().get(usize::from(name == "list")).cloned()
            }
            Value::Macro(callee) if name == "name" => Some(self.budget.str(&callee.def.name)?),
            Value::Cycler(cycler) if name == "current" => {
                ops::indexed(self.budget, &Value::List(cycler.items.clone()), cycler.at.get() as i128)?
            }
            _ => match methods::access(object, name) {
                Access::Method(method) => Some(Value::Method(Rc::new((object.clone(), method)))),
                Access::Unsafe => {
                    let what =
                        format!("access to attribute '{name}' of '{}' object is unsafe.", object.type_name());
                    Some(Value::Undefined(what.into()))
                }
                Access::Nothing => None,
            },
        })
    }

    fn loop_attribute(&self, state: &Rc<LoopState>, name: &str) -> Res<Option<Value>> {
        let idx = state.idx.get();
        let method = |name| Some(Value::Method(Rc::new((Value::Loop(Rc::clone(state)), name))));
        let int = |i: usize| Some(Value::Int(i as i128));
        let nothing = |what: &str| Value::Undefined(what.into());
        Ok(match name {
            "index" => int(idx + 1),
            "index0" => int(idx),
            "first" => Some(Value::Bool(idx == 0)),
            "last" => Some(Value::Bool(state.peek(self.budget)?.is_none())),
            "length" => int(state.len(self.budget)?),
            "revindex" => int(state.len(self.budget)? - idx),
            "revindex0" => int(state.len(self.budget)? - idx - 1),
            "previtem" => {
                let previous = state.previous.borrow().clone();
                Some(previous.unwrap_or_else(|| nothing("there is no previous item")))
            }
            "nextitem" => Some(state.peek(self.budget)?.unwrap_or_else(|| nothing("there is no next item"))),
            "depth" => int(state.depth0 + 1),
            "depth0" => int(state.depth0),
            "cycle" => method("cycle"),
            "changed" => method("changed"),
            _ => None,
        })
    }
}

fn type_text(object: &Value) -> String {
    match object {
        Value::None => "None".to_owned(),
        other => format!("'{} object'", other.type_name()),
    }
}

fn no_attribute(object: &Value, name: &str) -> Value {
    let name: String = name.chars().take(100).collect();
    Value::Undefined(format!("{} has no attribute '{name}'", type_text(object)).into())
}

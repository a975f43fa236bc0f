//! Python's values. All except namespaces are immutable, as in Hugging Face's sandbox.

mod dict;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use super::ast::MacroDef;
use super::budget::{Budget, Charge, Items, Out};
use super::fault::{Fault, Res};
use super::iter::LoopState;
use super::scope::Scope;
pub(super) use dict::{Dict, Key};

/// The largest depth of nested lists and dicts. JSON input has at most 128 levels.
const MAX_VALUE_DEPTH: u32 = 160;

/// A value of a template.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// The value of a name or attribute that does not exist. The text names it.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    /// `dict.keys()`, `.values()`, `.items()`.
    View(View, Rc<Dict>),
    Range(Range),
    /// The result of filters such as `map`. It can be iterated once and has no length.
    Stream(Rc<Stream>),
    Namespace(Rc<Namespace>),
    Loop(Rc<LoopState>),
    /// A function of the environment.
    Function(&'static str),
    /// A method bound to a value.
    Method(Rc<(Value, &'static str)>),
    Macro(Rc<Macro>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
}

/// A text and the charge for its bytes.
#[derive(Clone, Debug)]
pub(super) struct Text {
    text: Rc<(String, Charge)>,
    /// True for the results of `safe` and `escape` (Python's `Markup`). Texts that are joined to them are escaped.
    pub(super) is_markup: bool,
}

impl Text {
    pub(super) fn as_str(&self) -> &str {
        &self.text.0
    }

    /// The same text as markup.
    pub(super) fn as_markup(&self) -> Self {
        Self { text: Rc::clone(&self.text), is_markup: true }
    }

    /// True if both are the same object.
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.text, &other.text)
    }
}

/// The items of a list or tuple.
#[derive(Debug)]
pub(super) struct Seq {
    items: Vec<Value>,
    depth: u32,
    /// True for a group of `groupby`, whose two items have names.
    pub(super) is_group: bool,
    _charge: Charge,
}

impl Seq {
    pub(super) fn items(&self) -> &[Value] {
        &self.items
    }
}

/// The part of a dict that a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

/// `range(start, stop, step)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i128,
    pub(super) step: i128,
    pub(super) len: usize,
}

impl Range {
    pub(super) fn get(self, i: usize) -> Value {
        Value::Int(self.start + self.step * i as i128)
    }
}

/// Items that can be iterated once, and the error that may come after them.
#[derive(Debug)]
pub(super) struct Stream {
    items: RefCell<VecDeque<Value>>,
    end: RefCell<Option<Box<Fault>>>,
    depth: u32,
    _charge: Charge,
}

impl Stream {
    pub(super) fn next(&self) -> Res<Option<Value>> {
        if let Some(item) = self.items.borrow_mut().pop_front() {
            return Ok(Some(item));
        }
        self.end.borrow_mut().take().map_or(Ok(None), Err)
    }
}

/// `namespace()`, the only value that can change.
#[derive(Debug)]
pub(super) struct Namespace {
    attrs: RefCell<Vec<(Rc<str>, Value, Charge)>>,
}

impl Namespace {
    pub(super) fn empty() -> Self {
        Self { attrs: RefCell::default() }
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        self.attrs.borrow().iter().find(|(n, ..)| &**n == name).map(|(_, v, _)| v.clone())
    }

    /// The present names and values.
    pub(super) fn list(&self) -> Vec<(Rc<str>, Value)> {
        self.attrs.borrow().iter().map(|(n, v, _)| (Rc::clone(n), v.clone())).collect()
    }

    /// Drops all values, including those that hold this namespace.
    pub(super) fn clear(&self) {
        let attrs = std::mem::take(&mut *self.attrs.borrow_mut());
        drop(attrs);
    }

    pub(super) fn set(&self, budget: &Budget, name: &str, value: Value) -> Res<()> {
        const MAX_ATTRS: usize = 1000;
        if name.starts_with('_') {
            return Fault::failed(format!(
                "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'."
            ));
        }
        let mut attrs = self.attrs.borrow_mut();
        if let Some(slot) = attrs.iter_mut().find(|(n, ..)| &**n == name) {
            // The old value may hold this namespace, so it is dropped when nothing is borrowed.
            let old = std::mem::replace(&mut slot.1, value);
            drop(attrs);
            drop(old);
            return Ok(());
        }
        if attrs.len() >= MAX_ATTRS {
            return Fault::too_large("attributes of a namespace", MAX_ATTRS as u64);
        }
        let charge = budget.charge(name.len() + 100)?;
        attrs.push((name.into(), value, charge));
        Ok(())
    }
}

/// A macro with the scope in which it was defined.
#[derive(Debug)]
pub(super) struct Macro {
    pub(super) def: Arc<MacroDef>,
    pub(super) scope: Rc<Scope>,
}

/// `cycler(…)`.
#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Rc<Seq>,
    pub(super) at: Cell<usize>,
}

/// `joiner(…)`.
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) sep: Text,
    pub(super) used: Cell<bool>,
}

impl Value {
    /// The name of the type in Python's messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Stream(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
            Self::Macro(_) => "Macro",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text.as_str()),
            _ => None,
        }
    }

    pub(super) fn is_markup(&self) -> bool {
        matches!(self, Self::Str(text) if text.is_markup)
    }

    /// The same value, as markup if it is a text.
    pub(super) fn into_markup(self) -> Self {
        match self {
            Self::Str(text) => Self::Str(text.as_markup()),
            other => other,
        }
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The whole number for an index or a count. `True` is 1.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// The number as a float.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            _ => self.as_int().map(|i| i as f64),
        }
    }

    fn depth(&self) -> u32 {
        match self {
            Self::List(seq) | Self::Tuple(seq) => seq.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth(),
            Self::Method(bound) => bound.0.depth() + 1,
            Self::Stream(stream) => stream.depth,
            Self::Cycler(cycler) => cycler.items.depth + 1,
            // A loop drops its items at its end, and the interpreter empties namespaces and the scopes of macros.
            _ => 0,
        }
    }
}

/// One level more than the deepest of the items.
fn depth_above<'v>(items: impl Iterator<Item = &'v Value>) -> Res<u32> {
    let depth = items.map(Value::depth).max().unwrap_or(0) + 1;
    if depth > MAX_VALUE_DEPTH {
        return Fault::too_large("levels of lists within lists", MAX_VALUE_DEPTH.into());
    }
    Ok(depth)
}

/// Creates values within the budget.
impl Budget {
    pub(super) fn text(&self, text: String) -> Res<Text> {
        self.pass(text.len())?;
        let charge = self.charge(text.len() + size_of::<(String, Charge)>())?;
        Ok(Text { text: Rc::new((text, charge)), is_markup: false })
    }

    pub(super) fn str(&self, text: &str) -> Res<Value> {
        self.room(text.len())?;
        Ok(Value::Str(self.text(text.to_owned())?))
    }

    pub(super) fn string(&self, text: String) -> Res<Value> {
        Ok(Value::Str(self.text(text)?))
    }

    /// The text that was written, as a value.
    pub(super) fn written(&self, out: Out<'_>) -> Res<Value> {
        let (text, charge) = out.finish();
        Ok(Value::Str(Text { text: Rc::new((text, charge)), is_markup: false }))
    }

    pub(super) fn seq(&self, items: Vec<Value>) -> Res<Rc<Seq>> {
        let mut paid = Items::new(self);
        items.into_iter().try_for_each(|item| paid.push(item))?;
        self.paid_seq(paid, false)
    }

    fn paid_seq(&self, items: Items<'_, Value>, is_group: bool) -> Res<Rc<Seq>> {
        let (items, charge) = items.finish();
        let depth = depth_above(items.iter())?;
        Ok(Rc::new(Seq { items, depth, is_group, _charge: charge }))
    }

    pub(super) fn list(&self, items: Items<'_, Value>) -> Res<Value> {
        Ok(Value::List(self.paid_seq(items, false)?))
    }

    pub(super) fn tuple(&self, items: Vec<Value>) -> Res<Value> {
        Ok(Value::Tuple(self.seq(items)?))
    }

    /// Makes a group of `groupby`.
    pub(super) fn group(&self, grouper: Value, list: Value) -> Res<Value> {
        let mut items = Items::new(self);
        items.push(grouper)?;
        items.push(list)?;
        Ok(Value::Tuple(self.paid_seq(items, true)?))
    }

    /// Makes a stream of items that can be iterated once, with the error that may come after them.
    pub(super) fn stream(&self, items: Items<'_, Value>, end: Res<()>) -> Res<Value> {
        let (items, charge) = items.finish();
        let depth = depth_above(items.iter())?;
        let (items, end) = (RefCell::new(items.into()), RefCell::new(end.err()));
        Ok(Value::Stream(Rc::new(Stream { items, end, depth, _charge: charge })))
    }

    /// Converts a value of the request.
    pub(super) fn json(&self, json: &Json) -> Res<Value> {
        Ok(match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::String(text) => self.str(text)?,
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Value::Int(i.into()),
                (None, Some(u)) => Value::Int(u.into()),
                (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::Array(list) => {
                let mut items = Items::new(self);
                list.iter().try_for_each(|item| items.push(self.json(item)?))?;
                self.list(items)?
            }
            Json::Object(map) => {
                let mut dict = Dict::builder(self);
                map.iter().try_for_each(|(key, value)| dict.insert(self.str(key)?, self.json(value)?))?;
                dict.finish()?
            }
        })
    }
}

//! Calls: their arguments, the functions of the environment, and other callable values.

use std::cell::Cell;
use std::rc::Rc;

use super::budget::{Budget, Out};
use super::fault::{Fault, Res};
use super::iter::{Iter, vec_of};
use super::ops;
use super::run::Run;
use super::text::to_text;
use super::value::{Cycler, Dict, Joiner, Range, Value};

/// The functions that are defined for every template.
pub(super) const FUNCTIONS: &[&str] =
    &["range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"];

/// The longest range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    /// Matches the arguments to the parameters of a function. Parameters without an argument are `None`.
    pub(super) fn bind<const N: usize>(self, callee: &str, names: [&str; N]) -> Res<[Option<Value>; N]> {
        let n_given = self.positional.len();
        if n_given > N {
            return Fault::failed(format!("{callee}() takes at most {N} arguments ({n_given} given)"));
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|n| *n == name) else {
                return Fault::failed(format!("{callee}() got an unexpected keyword argument '{name}'"));
            };
            if bound[at].replace(value).is_some() {
                return Fault::failed(format!("{callee}() got multiple values for argument '{name}'"));
            }
        }
        Ok(bound)
    }

    /// Removes a named argument and returns it.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(n, _)| n == name)?;
        Some(self.named.remove(at).1)
    }
}

/// The whole number in an argument that must be one.
pub(super) fn int_of(callee: &str, value: &Value) -> Res<i128> {
    if let Value::Undefined(what) = value {
        return ops::undefined(what);
    }
    value.as_int().map_or_else(
        || {
            Fault::failed(format!(
                "{callee}: '{}' object cannot be interpreted as an integer",
                value.type_name()
            ))
        },
        Ok,
    )
}

/// The count in an argument that must be one. Negative numbers count as 0.
pub(super) fn count_of(callee: &str, value: &Value) -> Res<usize> {
    Ok(usize::try_from(int_of(callee, value)?.max(0)).unwrap_or(usize::MAX))
}

/// The text in an argument that must be one.
pub(super) fn str_of<'v>(callee: &str, value: &'v Value) -> Res<&'v str> {
    if let Value::Undefined(what) = value {
        return ops::undefined(what);
    }
    value
        .as_str()
        .map_or_else(|| Fault::failed(format!("{callee}: expected str, got {}", value.type_name())), Ok)
}

impl Run<'_> {
    /// Calls a value.
    pub(super) fn call(&self, callee: &Value, args: Args) -> Res<Value> {
        self.budget.step()?;
        match callee {
            Value::Function(name) => self.function(name, args),
            Value::Method(bound) => match &bound.0 {
                Value::Loop(_) | Value::Cycler(_) => self.stateful(&bound.0, bound.1, args),
                object => self.method(object, bound.1, args),
            },
            Value::Macro(callee) => self.call_macro(callee, args),
            Value::Loop(state) => {
                let Some((for_loop, scope)) = &state.recurse else {
                    return Fault::failed(
                        "The loop must have the 'recursive' marker to be called recursively.",
                    );
                };
                let [items] = args.bind("loop", ["iterable"])?;
                let items = items.unwrap_or(Value::None);
                let mut out = Out::new(self.budget);
                self.nested(|| self.for_loop(for_loop, &items, state.depth0 + 1, scope, &mut out))?;
                self.budget.written(out)
            }
            Value::Joiner(joiner) => {
                if joiner.used.replace(true) {
                    Ok(Value::Str(joiner.sep.clone()))
                } else {
                    self.budget.str("")
                }
            }
            Value::Undefined(what) => ops::undefined(what),
            other => Fault::failed(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn function(&self, name: &str, args: Args) -> Res<Value> {
        let budget = self.budget;
        match name {
            "range" => range(args),
            "dict" => dict(budget, args).and_then(|pairs| self.dict_of(pairs)),
            "namespace" => {
                let namespace = self.namespace()?;
                for (key, value) in dict(budget, args)? {
                    namespace.set(budget, str_of("namespace", &key)?, value)?;
                }
                Ok(Value::Namespace(namespace))
            }
            "cycler" => {
                if args.positional.is_empty() {
                    return Fault::failed("at least one item has to be provided");
                }
                let items = budget.seq(args.positional)?;
                Ok(Value::Cycler(Rc::new(Cycler { items, at: Cell::new(0) })))
            }
            "joiner" => {
                let [sep] = args.bind(name, ["sep"])?;
                let sep = match sep {
                    Some(sep) => to_text(budget, &sep)?,
                    None => budget.text(", ".to_owned())?,
                };
                Ok(Value::Joiner(Rc::new(Joiner { sep, used: Cell::new(false) })))
            }
            "raise_exception" => {
                let [message] = args.bind(name, ["message"])?;
                let Some(message) = message else {
                    return Fault::failed("raise_exception() missing argument 'message'");
                };
                Fault::raised(to_text(budget, &message)?.as_str().to_owned())
            }
            "strftime_now" => {
                let [format] = args.bind(name, ["format"])?;
                let format = format.unwrap_or(Value::None);
                let format = str_of(name, &format)?;
                budget.pass(format.len().saturating_mul(64))?;
                match jiff::fmt::strtime::format(format, &jiff::Zoned::now()) {
                    Ok(text) => budget.string(text),
                    Err(e) => Fault::failed(format!("strftime_now: {e}")),
                }
            }
            _ => Fault::failed(format!("'{name}' is undefined")),
        }
    }

    fn dict_of(&self, pairs: Vec<(Value, Value)>) -> Res<Value> {
        let mut dict = Dict::builder(self.budget);
        pairs.into_iter().try_for_each(|(key, value)| dict.insert(key, value))?;
        dict.finish()
    }

    /// Calls a method of a value that has a state.
    fn stateful(&self, object: &Value, method: &str, args: Args) -> Res<Value> {
        match (object, method) {
            (Value::Loop(state), "cycle") => {
                let n = args.positional.len();
                if n == 0 {
                    return Fault::failed("no items for cycling given");
                }
                let at = state.idx.get() % n;
                Ok(args.positional.into_iter().nth(at).unwrap_or(Value::None))
            }
            (Value::Loop(state), "changed") => {
                let last = state.last_changed.replace(None);
                let mut changed = last.as_ref().is_none_or(|last| last.len() != args.positional.len());
                for (a, b) in last.iter().flatten().zip(&args.positional) {
                    changed = changed || !ops::equal(self.budget, a, b)?;
                }
                state.last_changed.replace(Some(args.positional));
                Ok(Value::Bool(changed))
            }
            (Value::Cycler(cycler), "next") => {
                let n = cycler.items.items().len();
                let item = cycler.items.items().get(cycler.at.get()).cloned();
                cycler.at.set((cycler.at.get() + 1) % n.max(1));
                Ok(item.unwrap_or(Value::None))
            }
            (Value::Cycler(cycler), "reset") => {
                cycler.at.set(0);
                Ok(Value::None)
            }
            _ => Fault::failed(format!("'{}' object has no method '{method}'", object.type_name())),
        }
    }
}

/// The pairs of the dict that `dict(…)` makes.
fn dict(budget: &Budget, args: Args) -> Res<Vec<(Value, Value)>> {
    let mut pairs = Vec::new();
    if args.positional.len() > 1 {
        return Fault::failed(format!("dict expected at most 1 argument, got {}", args.positional.len()));
    }
    match args.positional.first() {
        None => {}
        Some(Value::Dict(dict)) => {
            for (key, value) in dict.iter() {
                budget.step()?;
                pairs.push((key.clone(), value.clone()));
            }
        }
        Some(other) => {
            let mut items = Iter::over(other)?;
            while let Some(item) = items.next(budget)? {
                let pair = vec_of(budget, &item)?;
                let [key, value] = pair.as_slice() else {
                    return Fault::failed(format!(
                        "dictionary update sequence element has length {}; 2 is required",
                        pair.len()
                    ));
                };
                pairs.push((key.clone(), value.clone()));
            }
        }
    }
    for (name, value) in args.named {
        pairs.push((budget.string(name)?, value));
    }
    Ok(pairs)
}

fn range(args: Args) -> Res<Value> {
    if !args.named.is_empty() {
        return Fault::failed("range() takes no keyword arguments");
    }
    let numbers: Vec<i128> =
        args.positional.iter().map(|value| int_of("range", value)).collect::<Res<_>>()?;
    let (start, stop, step) = match *numbers.as_slice() {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Fault::failed(format!("range expected 1 to 3 arguments, got {}", numbers.len())),
    };
    const WIDEST: i128 = 1 << 100;
    if step == 0 {
        return Fault::failed("range() arg 3 must not be zero");
    }
    if [start, stop, step].iter().any(|n| n.abs() > WIDEST) {
        return super::numbers::too_wide();
    }
    let span = if step > 0 { stop - start } else { start - stop };
    let len = if span <= 0 { 0 } else { (span - 1) / step.abs() + 1 };
    match usize::try_from(len) {
        Ok(len) if len <= MAX_RANGE => Ok(Value::Range(Range { start, step, len })),
        _ => Fault::failed(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )),
    }
}

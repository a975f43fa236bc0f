//! Python's operators: truth, equality, order, membership, arithmetic, indices and slices.

use std::rc::Rc;

use super::ast::BinaryOp;
use super::budget::{Budget, Items, Out};
use super::fault::{Fault, Res};
use super::format;
use super::iter::Iter;
use super::numbers::{self, Number};
use super::text::write_escaped;
use super::value::{Range, Seq, Value, View};

/// The error for an operation on an undefined value.
pub(super) fn undefined<T>(what: &str) -> Res<T> {
    Fault::failed(what)
}

/// `bool(value)`.
pub(super) fn truth(budget: &Budget, value: &Value) -> Res<bool> {
    budget.step()?;
    Ok(match value {
        Value::Undefined(_) | Value::None => false,
        Value::Bool(b) => *b,
        Value::Int(i) => *i != 0,
        Value::Float(x) => *x != 0.0,
        Value::Str(text) => !text.as_str().is_empty(),
        Value::List(seq) | Value::Tuple(seq) => !seq.items().is_empty(),
        Value::Dict(dict) | Value::View(_, dict) => dict.len() > 0,
        Value::Range(range) => range.len > 0,
        Value::Loop(state) => state.len(budget)? > 0,
        _ => true,
    })
}

/// `len(value)`, for values that have one.
pub(super) fn length(budget: &Budget, value: &Value) -> Res<Option<usize>> {
    Ok(Some(match value {
        Value::Undefined(_) => 0,
        Value::Str(text) => {
            budget.pass(text.as_str().len())?;
            text.as_str().chars().count()
        }
        Value::List(seq) | Value::Tuple(seq) => seq.items().len(),
        Value::Dict(dict) | Value::View(_, dict) => dict.len(),
        Value::Range(range) => range.len,
        Value::Loop(state) => state.len(budget)?,
        _ => return Ok(None),
    }))
}

/// `a == b`.
pub(super) fn equal(budget: &Budget, a: &Value, b: &Value) -> Res<bool> {
    budget.step()?;
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(match (a, b) {
            (Number::Int(a), Number::Int(b)) => a == b,
            (Number::Float(a), Number::Float(b)) => a == b,
            (Number::Int(i), Number::Float(x)) | (Number::Float(x), Number::Int(i)) => {
                x.fract() == 0.0 && x.abs() < 1e38 && x as i128 == i
            }
        });
    }
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            budget.pass(a.as_str().len())?;
            a.is(b) || a.as_str() == b.as_str()
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => seqs_equal(budget, a, b)?,
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b) || a.equals(budget, b)?,
        (Value::Range(a), Value::Range(b)) => a == b || (a.len == 0 && b.len == 0),
        (Value::View(View::Keys, _), Value::View(View::Keys, _)) => {
            let (mut keys, mut same) = (Iter::over(a)?, length(budget, a)? == length(budget, b)?);
            while same && let Some(key) = keys.next(budget)? {
                same = contains(budget, b, &key)?;
            }
            same
        }
        _ => is_same(a, b),
    })
}

fn seqs_equal(budget: &Budget, a: &Rc<Seq>, b: &Rc<Seq>) -> Res<bool> {
    if Rc::ptr_eq(a, b) {
        return Ok(true);
    }
    if a.items().len() != b.items().len() {
        return Ok(false);
    }
    for (a, b) in a.items().iter().zip(b.items()) {
        if !equal(budget, a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `a is b`, as far as this is known.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Str(a), Value::Str(b)) => a.is(b) || a.as_str() == b.as_str(),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Stream(a), Value::Stream(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => false,
    }
}

/// `a < b`.
pub(super) fn less(budget: &Budget, a: &Value, b: &Value) -> Res<bool> {
    ordered(budget, a, b, "<")
}

/// `a op b` for `<`, `<=`, `>`, `>=`.
pub(super) fn ordered(budget: &Budget, a: &Value, b: &Value, op: &str) -> Res<bool> {
    budget.step()?;
    let decide = |ordering: Option<std::cmp::Ordering>| match (ordering, op) {
        (None, _) => false,
        (Some(o), "<") => o.is_lt(),
        (Some(o), "<=") => o.is_le(),
        (Some(o), ">") => o.is_gt(),
        (Some(o), _) => o.is_ge(),
    };
    if let (Some(x), Some(y)) = (Number::of(a), Number::of(b)) {
        return Ok(decide(match (x, y) {
            (Number::Int(x), Number::Int(y)) => Some(x.cmp(&y)),
            (Number::Float(x), Number::Float(y)) => x.partial_cmp(&y),
            (Number::Int(x), Number::Float(y)) => (x as f64).partial_cmp(&y),
            (Number::Float(x), Number::Int(y)) => x.partial_cmp(&(y as f64)),
        }));
    }
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            budget.pass(a.as_str().len().min(b.as_str().len()))?;
            Ok(decide(Some(a.as_str().cmp(b.as_str()))))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (x, y) in x.items().iter().zip(y.items()) {
                if !equal(budget, x, y)? {
                    return ordered(budget, x, y, op);
                }
            }
            Ok(decide(Some(x.items().len().cmp(&y.items().len()))))
        }
        (Value::Undefined(what), _) | (_, Value::Undefined(what)) => undefined(what),
        _ => Fault::failed(format!(
            "'{op}' not supported between instances of '{}' and '{}'",
            a.type_name(),
            b.type_name()
        )),
    }
}

/// Sorts by `less`; the sort is stable. An inconsistent order only gives an unspecified order of the results.
pub(super) fn sorted<T>(budget: &Budget, items: Vec<T>, less: impl Fn(&T, &T) -> Res<bool>) -> Res<Vec<T>> {
    let mut runs: Vec<Vec<T>> = Vec::with_capacity(items.len());
    items.into_iter().for_each(|item| runs.push(vec![item]));
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(left) = pairs.next() {
            let Some(right) = pairs.next() else {
                merged.push(left);
                break;
            };
            let mut both = Vec::with_capacity(left.len() + right.len());
            let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
            while let (Some(l), Some(r)) = (left.peek(), right.peek()) {
                budget.step()?;
                both.extend(if less(r, l)? { right.next() } else { left.next() });
            }
            both.extend(left);
            both.extend(right);
            merged.push(both);
        }
        runs = merged;
    }
    Ok(runs.pop().unwrap_or_default())
}

/// `item in container`.
pub(super) fn contains(budget: &Budget, container: &Value, item: &Value) -> Res<bool> {
    budget.step()?;
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => {
                budget.pass(text.as_str().len() + part.as_str().len())?;
                Ok(text.as_str().contains(part.as_str()))
            }
            other => Fault::failed(format!(
                "'in <string>' requires string as left operand, not {}",
                other.type_name()
            )),
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => Ok(dict.get(budget, item)?.is_some()),
        Value::Undefined(_) => Ok(false),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            Fault::failed(format!("argument of type '{}' is not iterable", container.type_name()))
        }
        other => {
            let mut items = match Iter::over(other) {
                Ok(items) => items,
                Err(_) => {
                    return Fault::failed(format!(
                        "argument of type '{}' is not iterable",
                        other.type_name()
                    ));
                }
            };
            while let Some(candidate) = items.next(budget)? {
                if equal(budget, &candidate, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// `a op b`.
pub(super) fn binary(budget: &Budget, op: BinaryOp, a: &Value, b: &Value) -> Res<Value> {
    if let (Value::Str(template), BinaryOp::Mod) = (a, op) {
        return format::percent(budget, template.as_str(), b);
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return numbers::arithmetic(op, a, b);
    }
    match (op, a, b) {
        (_, Value::Undefined(what), _) | (_, _, Value::Undefined(what)) => undefined(what),
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            let mut out = Out::new(budget);
            if !(a.is_markup || b.is_markup) {
                out.push(a.as_str())?;
                out.push(b.as_str())?;
                return budget.written(out);
            }
            write_escaped(&mut out, &Value::Str(a.clone()))?;
            write_escaped(&mut out, &Value::Str(b.clone()))?;
            Ok(budget.written(out)?.into_markup())
        }
        (BinaryOp::Add, Value::List(x), Value::List(y)) => budget.list(chained(budget, x, y)?),
        (BinaryOp::Add, Value::Tuple(x), Value::Tuple(y)) => budget.tuple(chained(budget, x, y)?.finish().0),
        (BinaryOp::Mul, Value::Str(text), n) | (BinaryOp::Mul, n, Value::Str(text))
            if n.as_int().is_some() =>
        {
            let mut out = Out::new(budget);
            out.repeat(text.as_str(), count(n))?;
            let repeated = budget.written(out)?;
            Ok(if text.is_markup { repeated.into_markup() } else { repeated })
        }
        (BinaryOp::Mul, Value::List(seq), n) | (BinaryOp::Mul, n, Value::List(seq))
            if n.as_int().is_some() =>
        {
            budget.list(repeated(budget, seq, count(n))?)
        }
        (BinaryOp::Mul, Value::Tuple(seq), n) | (BinaryOp::Mul, n, Value::Tuple(seq))
            if n.as_int().is_some() =>
        {
            budget.tuple(repeated(budget, seq, count(n))?.finish().0)
        }
        (BinaryOp::Add, Value::Str(_), other) => {
            Fault::failed(format!("can only concatenate str (not \"{}\") to str", other.type_name()))
        }
        (BinaryOp::Add, Value::List(_), other) => {
            Fault::failed(format!("can only concatenate list (not \"{}\") to list", other.type_name()))
        }
        _ => Fault::failed(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            symbol(op),
            a.type_name(),
            b.type_name()
        )),
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "** or pow()",
    }
}

/// The count of a repetition.
fn count(n: &Value) -> usize {
    usize::try_from(n.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX)
}

fn chained<'b>(budget: &'b Budget, a: &Seq, b: &Seq) -> Res<Items<'b, Value>> {
    let mut items = Items::new(budget);
    a.items().iter().chain(b.items()).try_for_each(|item| items.push(item.clone()))?;
    Ok(items)
}

fn repeated<'b>(budget: &'b Budget, seq: &Seq, n: usize) -> Res<Items<'b, Value>> {
    let mut items = Items::new(budget);
    for _ in 0..if seq.items().is_empty() { 0 } else { n } {
        seq.items().iter().try_for_each(|item| items.push(item.clone()))?;
    }
    Ok(items)
}

/// The position that an index means. Negative indices count from the end.
pub(super) fn place(index: i128, len: usize) -> Option<usize> {
    let at = if index < 0 { index + len as i128 } else { index };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// `value[index]`, for texts and lists.
pub(super) fn indexed(budget: &Budget, value: &Value, index: i128) -> Res<Option<Value>> {
    Ok(match value {
        Value::List(seq) | Value::Tuple(seq) => {
            place(index, seq.items().len()).and_then(|at| seq.items().get(at).cloned())
        }
        Value::Range(range) => place(index, range.len).map(|at| range.get(at)),
        Value::Str(text) => {
            let text = text.as_str();
            budget.pass(text.len())?;
            let len = if text.is_ascii() { text.len() } else { text.chars().count() };
            let c = place(index, len).and_then(|at| text.chars().nth(at));
            let c = c.map(|c| budget.string(c.to_string())).transpose()?;
            if value.is_markup() { c.map(Value::into_markup) } else { c }
        }
        _ => None,
    })
}

/// `value[start:stop:step]`.
pub(super) fn sliced(budget: &Budget, value: &Value, parts: [Option<Value>; 3]) -> Res<Value> {
    let mut bounds = [None; 3];
    for (bound, part) in bounds.iter_mut().zip(parts) {
        *bound = match part {
            None | Some(Value::None) => None,
            Some(Value::Undefined(what)) => return undefined(&what),
            Some(other) => match other.as_int() {
                Some(i) => Some(i),
                None => {
                    return Fault::failed(
                        "slice indices must be integers or None or have an __index__ method",
                    );
                }
            },
        };
    }
    match value {
        Value::Str(text) => {
            let text = text.as_str();
            budget.pass(text.len())?;
            let mut out = Out::new(budget);
            if text.is_ascii() {
                let at = places(bounds, text.len())?;
                if at.step == 1 {
                    let start = at.start as usize;
                    out.push(text.get(start..start + at.len).unwrap_or_default())?;
                } else {
                    let bytes = text.as_bytes();
                    (0..at.len).try_for_each(|i| out.push_char(bytes[at.nth(i)].into()))?;
                }
            } else {
                budget.room(text.len() * 4)?;
                let chars: Vec<char> = text.chars().collect();
                let at = places(bounds, chars.len())?;
                (0..at.len).try_for_each(|i| out.push_char(chars[at.nth(i)]))?;
            }
            let part = budget.written(out)?;
            Ok(if value.is_markup() { part.into_markup() } else { part })
        }
        Value::List(seq) | Value::Tuple(seq) => {
            let at = places(bounds, seq.items().len())?;
            let mut items = Items::new(budget);
            (0..at.len).try_for_each(|i| items.push(seq.items()[at.nth(i)].clone()))?;
            match value {
                Value::Tuple(_) => budget.tuple(items.finish().0),
                _ => budget.list(items),
            }
        }
        Value::Range(range) => {
            let at = places(bounds, range.len)?;
            let start = range.start + range.step * at.start;
            Ok(Value::Range(Range { start, step: range.step * at.step, len: at.len }))
        }
        Value::Undefined(what) => undefined(what),
        other => Fault::failed(format!("'{}' object is not subscriptable", other.type_name())),
    }
}

/// The positions of a slice.
struct Places {
    start: i128,
    step: i128,
    len: usize,
}

impl Places {
    fn nth(&self, i: usize) -> usize {
        (self.start + self.step * i as i128) as usize
    }
}

fn places([start, stop, step]: [Option<i128>; 3], len: usize) -> Res<Places> {
    let n = len as i128;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Fault::failed("slice step cannot be zero");
    }
    let step = step.clamp(-(1 << 62), 1 << 62);
    let (lowest, highest) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clamp = |bound: Option<i128>, default: i128| match bound {
        None => default,
        Some(i) if i < 0 => i.saturating_add(n).max(lowest),
        Some(i) => i.min(highest),
    };
    let (start, stop) = if step > 0 {
        (clamp(start, lowest), clamp(stop, highest))
    } else {
        (clamp(start, highest), clamp(stop, lowest))
    };
    let span = if step > 0 { stop - start } else { start - stop };
    let len = if span <= 0 { 0 } else { (span - 1) / step.abs() + 1 };
    Ok(Places { start, step, len: len as usize })
}

//! Python's two ways to format: `text % values` and `text.format(values)`.

mod spec;

use super::budget::{Budget, Out};
use super::calls::Args;
use super::fault::{Fault, Res};
use super::iter::vec_of;
use super::numbers::Number;
use super::run::Run;
use super::text::{to_text, write_repr};
use super::value::Value;
use spec::{Align, Spec};

/// `template % values`.
pub(super) fn percent(budget: &Budget, template: &str, values: &Value) -> Res<Value> {
    let mut out = Out::new(budget);
    let positional = match values {
        Value::Tuple(_) => vec_of(budget, values)?,
        other => vec![other.clone()],
    };
    let mut n_used = 0;
    let mut next = || -> Res<Value> {
        n_used += 1;
        match positional.get(n_used - 1) {
            Some(value) => Ok(value.clone()),
            None => Fault::failed("not enough arguments for format string"),
        }
    };
    let mut by_name = false;
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some(tail) = rest.strip_prefix('(') {
            let Some(end) = tail.find(')') else { return Fault::failed("incomplete format key") };
            key = Some(&tail[..end]);
            rest = &tail[end + 1..];
        }
        let mut spec = Spec::default();
        while let Some(flag) = rest.chars().next().filter(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some(Align::Left),
                '+' => spec.sign = '+',
                ' ' if spec.sign != '+' => spec.sign = ' ',
                '#' => spec.alternate = true,
                '0' => spec.zeros = true,
                _ => {}
            }
            rest = &rest[1..];
        }
        let mut number = |rest: &mut &str| -> Res<Option<usize>> {
            if let Some(tail) = rest.strip_prefix('*') {
                *rest = tail;
                let n = super::calls::int_of("%", &next()?)?;
                return Ok(Some(usize::try_from(n.max(0)).unwrap_or(usize::MAX)));
            }
            spec::take_number(rest)
        };
        spec.width = number(&mut rest)?.unwrap_or(0);
        if let Some(tail) = rest.strip_prefix('.') {
            rest = tail;
            spec.precision = Some(number(&mut rest)?.unwrap_or(0));
        }
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else { return Fault::failed("incomplete format") };
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let value = match key {
            Some(key) => {
                by_name = true;
                match values {
                    Value::Dict(dict) => match dict.get_str(key) {
                        Some(value) => value.clone(),
                        None => return Fault::failed(format!("'{key}'")),
                    },
                    _ => return Fault::failed("format requires a mapping"),
                }
            }
            None => next()?,
        };
        percent_value(&mut out, spec, kind, &value)?;
    }
    out.push(rest)?;
    let all_used = n_used >= positional.len() || by_name;
    if !all_used && !matches!(values, Value::Dict(_) | Value::List(_)) {
        return Fault::failed("not all arguments converted during string formatting");
    }
    budget.written(out)
}

fn percent_value(out: &mut Out<'_>, mut spec: Spec, kind: char, value: &Value) -> Res<()> {
    let budget = out.budget();
    // A value that is not aligned to the left is aligned to the right.
    spec.align = spec.align.or(if spec.zeros { None } else { Some(Align::Right) });
    match kind {
        's' => {
            spec.zeros = false;
            spec.align = spec.align.or(Some(Align::Right));
            spec.write_text(out, to_text(budget, value)?.as_str())
        }
        'r' | 'a' => {
            spec.zeros = false;
            spec.align = spec.align.or(Some(Align::Right));
            let mut repr = Out::new(budget);
            write_repr(&mut repr, value)?;
            spec.write_text(out, repr.as_str())
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let number = match (Number::of(value), kind) {
                (Some(Number::Int(i)), _) => i,
                (Some(Number::Float(x)), 'd' | 'i' | 'u') if x.is_finite() && x.abs() < 1e38 => {
                    x.trunc() as i128
                }
                _ => {
                    return Fault::failed(format!(
                        "%{kind} format: a real number is required, not {}",
                        value.type_name()
                    ));
                }
            };
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            // A precision is the smallest number of digits.
            let digits = spec.precision.take().unwrap_or(0);
            spec.write_int(out, number, kind, digits)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => match value.as_float() {
            Some(x) => {
                spec.precision = spec.precision.or(Some(6));
                spec.write_float(out, x, Some(kind))
            }
            None => Fault::failed(format!("must be real number, not {}", value.type_name())),
        },
        'c' => match (value.as_str(), value.as_int().and_then(|i| u32::try_from(i).ok())) {
            (Some(text), _) if text.chars().count() == 1 => spec.write_text(out, text),
            (None, Some(code)) if char::from_u32(code).is_some() => {
                let c = char::from_u32(code).unwrap_or_default();
                spec.write_text(out, &c.to_string())
            }
            _ => Fault::failed("%c requires int or char"),
        },
        other => Fault::failed(format!("unsupported format character '{other}'")),
    }
}

/// `template.format(args)`.
pub(super) fn str_format(run: &Run<'_>, template: &str, args: Args) -> Res<Value> {
    let mut out = Out::new(run.budget);
    Fields { run, args: &args, next: Some(0) }.write(&mut out, template, 3)?;
    run.budget.written(out)
}

/// The source of the values of fields.
struct Fields<'r> {
    run: &'r Run<'r>,
    args: &'r Args,
    /// The next automatic number; `None` once a field has given its own number.
    next: Option<usize>,
}

impl Fields<'_> {
    fn write(&mut self, out: &mut Out<'_>, template: &str, depth: u32) -> Res<()> {
        if depth == 0 {
            return Fault::failed("Max string recursion exceeded");
        }
        let mut rest = template;
        while let Some(at) = rest.find(['{', '}']) {
            out.push(&rest[..at])?;
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(tail) = rest.strip_prefix(brace) {
                out.push(brace)?;
                rest = tail;
                continue;
            }
            if brace == "}" {
                return Fault::failed("Single '}' encountered in format string");
            }
            let mut open = 1;
            let end = rest.find(|c: char| {
                open += match c {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                open == 0
            });
            let Some(end) = end else { return Fault::failed("expected '}' before end of string") };
            self.field(out, &rest[..end], depth)?;
            rest = &rest[end + 1..];
        }
        out.push(rest)
    }

    fn field(&mut self, out: &mut Out<'_>, field: &str, depth: u32) -> Res<()> {
        let budget = out.budget();
        let (name, spec) = match field.find([':', '!']) {
            Some(at) => field.split_at(at),
            None => (field, ""),
        };
        let value = self.value(name)?;
        let (conversion, spec) = match spec.strip_prefix('!') {
            Some(tail) => (tail.chars().next(), tail.get(1..).unwrap_or_default()),
            None => (None, spec),
        };
        let spec = spec.strip_prefix(':').unwrap_or(spec);
        let mut nested = Out::new(budget);
        self.write(&mut nested, spec, depth - 1)?;
        let spec = Spec::parse(nested.as_str())?;
        match conversion {
            None => spec.write(out, &value),
            Some('s') => spec.write_text(out, to_text(budget, &value)?.as_str()),
            Some('r' | 'a') => {
                let mut repr = Out::new(budget);
                write_repr(&mut repr, &value)?;
                spec.write_text(out, repr.as_str())
            }
            Some(other) => Fault::failed(format!("Unknown conversion specifier {other}")),
        }
    }

    /// The value of `0.name[key]`.
    fn value(&mut self, name: &str) -> Res<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let place = match (first.parse::<usize>(), self.next) {
            _ if first.is_empty() => match self.next {
                Some(next) => {
                    self.next = Some(next + 1);
                    Some(next)
                }
                None => {
                    return Fault::failed(
                        "cannot switch from manual field specification to automatic field numbering",
                    );
                }
            },
            (Ok(place), Some(next)) if next > 0 => {
                return Fault::failed(format!(
                    "cannot switch from automatic field numbering to manual field specification ({place})"
                ));
            }
            (Ok(place), _) => {
                self.next = None;
                Some(place)
            }
            (Err(_), _) => None,
        };
        let found = match place {
            Some(place) => self.args.positional.get(place),
            None => self.args.named.iter().find(|(n, _)| n == first).map(|(_, value)| value),
        };
        let Some(mut value) = found.cloned() else {
            return Fault::failed(match place {
                Some(_) => "Replacement index out of range for positional args tuple".to_owned(),
                None => format!("'{first}'"),
            });
        };
        while !rest.is_empty() {
            if let Some(tail) = rest.strip_prefix('.') {
                let end = tail.find(['.', '[']).unwrap_or(tail.len());
                value = self.run.attribute(&value, &tail[..end])?;
                rest = &tail[end..];
            } else {
                let Some(end) = rest.find(']') else { return Fault::failed("Missing ']' in format string") };
                let key = &rest[1..end];
                let key = match key.parse::<u32>() {
                    Ok(i) => Value::Int(i.into()),
                    Err(_) => self.run.budget.str(key)?,
                };
                value = self.run.item(&value, &key)?;
                rest = &rest[end + 1..];
            }
        }
        Ok(value)
    }
}

//! Methods of Python's `str`.

mod split;

use super::super::budget::{Budget, Out};
use super::super::calls::{Args, count_of, int_of, str_of};
use super::super::fault::{Fault, Res};
use super::super::format;
use super::super::iter::{Iter, vec_of};
use super::super::lexer::is_space;
use super::super::run::Run;
use super::super::text::is_printable;
use super::super::value::Value;
pub(in super::super) use split::lines;

/// The side of a text in a wider field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Side {
    Left,
    Right,
    Center,
}

/// Calls a method of `text`.
pub(super) fn call(run: &Run<'_>, text: &str, name: &str, args: Args) -> Res<Value> {
    let budget = run.budget;
    budget.pass(text.len())?;
    budget.room(text.len() * 3)?;
    match name {
        "lower" | "upper" | "casefold" | "capitalize" | "title" | "swapcase" => {
            let [] = args.bind(name, [])?;
            budget.string(match name {
                "lower" => text.to_lowercase(),
                "upper" => text.to_uppercase(),
                "casefold" => text.to_lowercase().replace('ß', "ss"),
                "capitalize" => capitalize(text),
                "title" => title(text),
                _ => text.chars().map(swapped).collect(),
            })
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, ["chars"])?;
            let chars = chars.unwrap_or(Value::None);
            budget.str(strip(budget, text, &chars, name != "rstrip", name != "lstrip")?)
        }
        "startswith" | "endswith" => affixed(run, text, name, args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.bind(name, ["affix"])?;
            let affix = affix.unwrap_or(Value::None);
            let affix = str_of(name, &affix)?;
            let rest =
                if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            budget.str(rest.unwrap_or(text))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => found(text, name, args),
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Fault::failed("replace expected at least 2 arguments");
            };
            let count = count.map(|count| int_of(name, &count)).transpose()?;
            replace(budget, text, str_of(name, &old)?, str_of(name, &new)?, count)
        }
        "join" => {
            let [items] = args.bind(name, ["iterable"])?;
            let Some(items) = items else { return Fault::failed("join() takes exactly one argument") };
            if matches!(items, Value::None | Value::Int(_) | Value::Bool(_) | Value::Float(_)) {
                return Fault::failed("can only join an iterable");
            }
            let mut items = Iter::over(&items)?;
            let mut out = Out::new(budget);
            let mut i = 0;
            while let Some(item) = items.next(budget)? {
                if i > 0 {
                    out.push(text)?;
                }
                match item.as_str() {
                    Some(item) => out.push(item)?,
                    None => {
                        return Fault::failed(format!(
                            "sequence item {i}: expected str instance, {} found",
                            item.type_name()
                        ));
                    }
                }
                i += 1;
            }
            budget.written(out)
        }
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => split::call(run, text, name, args),
        "ljust" | "rjust" | "center" => {
            let [width, fill] = args.bind(name, ["width", "fillchar"])?;
            let width = count_of(name, &width.unwrap_or(Value::None))?;
            let fill = fill.as_ref().map_or(Ok(" "), |fill| str_of(name, fill))?;
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Fault::failed("The fill character must be exactly one character long");
            };
            let side = match name {
                "ljust" => Side::Left,
                "rjust" => Side::Right,
                _ => Side::Center,
            };
            justify(budget, text, width, fill, side)
        }
        "zfill" => {
            let [width] = args.bind(name, ["width"])?;
            let width = count_of(name, &width.unwrap_or(Value::None))?;
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => (&text[..1], digits),
                None => ("", text),
            };
            let mut out = Out::new(budget);
            out.push(sign)?;
            out.repeat("0", width.saturating_sub(text.chars().count()))?;
            out.push(digits)?;
            budget.written(out)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"])?;
            let size = size.map_or(Ok(8), |size| count_of(name, &size))?;
            let mut out = Out::new(budget);
            let mut column = 0;
            for c in text.chars() {
                match c {
                    '\t' if size > 0 => {
                        let n = size - column % size;
                        out.repeat(" ", n)?;
                        column += n;
                    }
                    '\t' => {}
                    c => {
                        out.push_char(c)?;
                        column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    }
                }
            }
            budget.written(out)
        }
        "format" => format::str_format(run, text, args),
        "format_map" => {
            let [map] = args.bind(name, ["mapping"])?;
            let Some(Value::Dict(dict)) = map else {
                return Fault::failed("format_map() takes exactly one argument, a mapping");
            };
            let named = dict.iter().filter_map(|(k, v)| Some((k.as_str()?.to_owned(), v.clone())));
            format::str_format(run, text, Args { positional: Vec::new(), named: named.collect() })
        }
        _ => {
            let [] = args.bind(name, [])?;
            Ok(Value::Bool(is_kind(text, name)))
        }
    }
}

fn is_kind(text: &str, name: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(|c| c.is_alphabetic()),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" => all(|c| c.is_ascii_digit() || (c.is_numeric() && !c.is_ascii())),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => text.chars().all(is_printable),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        "istitle" => {
            let cased = |c: char| c.is_uppercase() || c.is_lowercase();
            let (mut within, mut any) = (false, false);
            for c in text.chars() {
                if (c.is_uppercase() && within) || (c.is_lowercase() && !within) {
                    return false;
                }
                within = cased(c);
                any |= within;
            }
            any
        }
        _ => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && chars.all(|c| c.is_alphanumeric() || c == '_')
        }
    }
}

/// The first character in upper case, the others in lower case.
pub(in super::super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(titlecase).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

fn title(text: &str) -> String {
    let mut within = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if within {
            out.extend(c.to_lowercase())
        } else {
            out += &titlecase(c)
        }
        within = c.is_uppercase() || c.is_lowercase();
    }
    out
}

/// A character as it begins a word. If it becomes several capitals, only the first one stays a capital.
fn titlecase(c: char) -> String {
    let mut upper = c.to_uppercase();
    let first: String = upper.next().into_iter().collect();
    upper.fold(first, |mut text, c| {
        text.extend(c.to_lowercase());
        text
    })
}

fn swapped(c: char) -> String {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// `text` without these characters at its ends. `None` stands for white space.
pub(in super::super) fn strip<'t>(
    budget: &Budget,
    text: &'t str,
    chars: &Value,
    left: bool,
    right: bool,
) -> Res<&'t str> {
    let set: Option<Vec<char>> = match chars {
        Value::None => None,
        other => {
            let set = str_of("strip", other)?;
            budget.steps(set.len() as u64 * (1 + text.len() as u64 / 16))?;
            Some(set.chars().collect())
        }
    };
    let is_stripped = |c: char| match &set {
        None => is_space(c),
        Some(set) => set.contains(&c),
    };
    let text = if left { text.trim_start_matches(is_stripped) } else { text };
    Ok(if right { text.trim_end_matches(is_stripped) } else { text })
}

/// Replaces the first `count` occurrences. `None` and negative counts replace all.
pub(in super::super) fn replace(
    budget: &Budget,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i128>,
) -> Res<Value> {
    let limit = match count {
        Some(n) if n >= 0 => usize::try_from(n).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let mut out = Out::new(budget);
    let mut last = 0;
    // An empty text is found before each character and at the end.
    for (at, found) in text.match_indices(old).take(limit) {
        out.push(&text[last..at])?;
        out.push(new)?;
        last = at + found.len();
    }
    out.push(&text[last..])?;
    budget.written(out)
}

/// The text, padded to `width` characters.
pub(in super::super) fn justify(
    budget: &Budget,
    text: &str,
    width: usize,
    fill: char,
    side: Side,
) -> Res<Value> {
    let len = text.chars().count();
    let gap = width.saturating_sub(len);
    let left = match side {
        Side::Left => 0,
        Side::Right => gap,
        // As in CPython: with an odd gap, the odd character goes to the left if the width is odd.
        Side::Center => gap / 2 + (gap & width & 1),
    };
    let fill = fill.to_string();
    let mut out = Out::new(budget);
    out.repeat(&fill, left)?;
    out.push(text)?;
    out.repeat(&fill, gap - left)?;
    budget.written(out)
}

/// The part of a text between two positions, which are counted in characters, and the number of characters before it.
fn part<'t>(
    text: &'t str,
    name: &str,
    start: Option<Value>,
    stop: Option<Value>,
) -> Res<Option<(&'t str, usize)>> {
    let len = text.chars().count();
    let place = |value: Option<Value>, default: usize| -> Res<usize> {
        match value {
            None | Some(Value::None) => Ok(default),
            Some(value) => {
                let at = int_of(name, &value)?;
                let at = if at < 0 { at.saturating_add(len as i128).max(0) } else { at };
                Ok(usize::try_from(at).unwrap_or(usize::MAX))
            }
        }
    };
    let (start, stop) = (place(start, 0)?, place(stop, len)?.min(len));
    if start > stop {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(i, _)| i);
    Ok(Some((&text[byte(start)..byte(stop)], start)))
}

fn affixed(run: &Run<'_>, text: &str, name: &str, args: Args) -> Res<Value> {
    let [affix, start, stop] = args.bind(name, ["prefix", "start", "end"])?;
    let affixes = match affix {
        Some(Value::Tuple(seq)) => vec_of(run.budget, &Value::Tuple(seq))?,
        Some(one) => vec![one],
        None => return Fault::failed(format!("{name} expected at least 1 argument, got 0")),
    };
    let Some((text, _)) = part(text, name, start, stop)? else { return Ok(Value::Bool(false)) };
    for affix in affixes {
        let affix = match &affix {
            Value::Undefined(what) => return super::super::ops::undefined(what),
            Value::Str(affix) => affix.as_str(),
            other => {
                return Fault::failed(format!(
                    "{name} first arg must be str or a tuple of str, not {}",
                    other.type_name()
                ));
            }
        };
        let holds = if name == "startswith" { text.starts_with(affix) } else { text.ends_with(affix) };
        if holds {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn found(text: &str, name: &str, args: Args) -> Res<Value> {
    let [sub, start, stop] = args.bind(name, ["sub", "start", "end"])?;
    let sub = sub.unwrap_or(Value::None);
    let sub = str_of(name, &sub)?;
    let part = part(text, name, start, stop)?;
    if name == "count" {
        let n = match part {
            None => 0,
            Some((text, _)) if sub.is_empty() => text.chars().count() + 1,
            Some((text, _)) => text.matches(sub).count(),
        };
        return Ok(Value::Int(n as i128));
    }
    let at = part.and_then(|(text, before)| {
        let at = if name.starts_with('r') { text.rfind(sub) } else { text.find(sub) }?;
        Some(before + text[..at].chars().count())
    });
    match at {
        Some(at) => Ok(Value::Int(at as i128)),
        None if name.ends_with("index") => Fault::failed("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

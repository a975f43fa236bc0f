//! Splits texts.

use super::super::super::budget::Items;
use super::super::super::calls::{Args, int_of, str_of};
use super::super::super::fault::{Fault, Res};
use super::super::super::lexer::is_space;
use super::super::super::ops;
use super::super::super::run::Run;
use super::super::super::value::Value;

pub(super) fn call(run: &Run<'_>, text: &str, name: &str, args: Args) -> Res<Value> {
    match name {
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"])?;
            let keep = keep.map_or(Ok(false), |keep| ops::truth(run.budget, &keep))?;
            run.texts(lines(text, keep))
        }
        "partition" | "rpartition" => {
            let [sep] = args.bind(name, ["sep"])?;
            let sep = sep.unwrap_or(Value::None);
            let sep = separator(name, &sep)?;
            let from_end = name == "rpartition";
            let parts = if from_end { text.rsplit_once(sep) } else { text.split_once(sep) };
            let parts = match parts {
                Some((head, tail)) => [head, sep, tail],
                None if from_end => ["", "", text],
                None => [text, "", ""],
            };
            let parts: Vec<Value> = parts.iter().map(|part| run.budget.str(part)).collect::<Res<_>>()?;
            run.budget.tuple(parts)
        }
        _ => {
            let [sep, limit] = args.bind(name, ["sep", "maxsplit"])?;
            let limit = limit.map_or(Ok(-1), |limit| int_of(name, &limit))?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let from_end = name == "rsplit";
            let mut parts = Items::new(run.budget);
            match sep {
                None | Some(Value::None) => words(run, text, limit, from_end, &mut parts)?,
                Some(sep) => {
                    let sep = separator(name, &sep)?;
                    let limit = limit.saturating_add(1);
                    if from_end {
                        text.rsplitn(limit, sep).try_for_each(|part| parts.push(run.budget.str(part)?))?;
                    } else {
                        text.splitn(limit, sep).try_for_each(|part| parts.push(run.budget.str(part)?))?;
                    }
                }
            }
            if from_end {
                parts.reverse();
            }
            run.budget.list(parts)
        }
    }
}

fn separator<'v>(name: &str, value: &'v Value) -> Res<&'v str> {
    match str_of(name, value)? {
        "" => Fault::failed("empty separator"),
        sep => Ok(sep),
    }
}

/// Appends the words between white space. After `limit` splits the rest is not split. From the end, the last word comes
/// first.
fn words(run: &Run<'_>, text: &str, limit: usize, from_end: bool, words: &mut Items<'_, Value>) -> Res<()> {
    let mut rest = if from_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) };
    while !rest.is_empty() {
        let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| words.len() < limit) else {
            return words.push(run.budget.str(rest)?);
        };
        if from_end {
            let after = at + rest[at..].chars().next().map_or(1, char::len_utf8);
            words.push(run.budget.str(&rest[after..])?)?;
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            words.push(run.budget.str(&rest[..at])?)?;
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    Ok(())
}

/// The lines of a text. All line ends of Python count.
pub(in super::super::super) fn lines(text: &str, keep_ends: bool) -> impl Iterator<Item = &str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(at) = rest.find(is_end) else { return Some(std::mem::take(&mut rest)) };
        let mut after = at + rest[at..].chars().next().map_or(1, char::len_utf8);
        if rest[at..].starts_with("\r\n") {
            after += 1;
        }
        let line = if keep_ends { &rest[..after] } else { &rest[..at] };
        rest = &rest[after..];
        Some(line)
    })
}

//! Values as text: Python's `str` and `repr`.

use super::budget::{Budget, Out};
use super::fault::{Fault, Res};
use super::value::{Text, Value, View};

/// The largest depth to which a namespace that contains itself is printed.
const MAX_PRINT_DEPTH: u32 = 200;

/// Appends `str(value)`.
pub(super) fn write_str(out: &mut Out<'_>, value: &Value) -> Res<()> {
    match value {
        Value::Str(text) => out.push(text.as_str()),
        Value::Undefined(_) => Ok(()),
        other => write_repr(out, other),
    }
}

/// Appends `str(value)` with HTML's special characters escaped. Markup is already escaped.
pub(super) fn write_escaped(out: &mut Out<'_>, value: &Value) -> Res<()> {
    if value.is_markup() {
        return write_str(out, value);
    }
    for c in to_text(out.budget(), value)?.as_str().chars() {
        match c {
            '&' => out.push("&amp;")?,
            '<' => out.push("&lt;")?,
            '>' => out.push("&gt;")?,
            '"' => out.push("&#34;")?,
            '\'' => out.push("&#39;")?,
            c => out.push_char(c)?,
        }
    }
    Ok(())
}

/// `str(value)`.
pub(super) fn to_text(budget: &Budget, value: &Value) -> Res<Text> {
    if let Value::Str(text) = value {
        return Ok(text.clone());
    }
    let mut out = Out::new(budget);
    write_str(&mut out, value)?;
    match budget.written(out)? {
        Value::Str(text) => Ok(text),
        _ => Fault::failed("not a text"),
    }
}

/// Appends `repr(value)`.
pub(super) fn write_repr(out: &mut Out<'_>, value: &Value) -> Res<()> {
    repr_at(out, value, 0)
}

fn repr_at(out: &mut Out<'_>, value: &Value, depth: u32) -> Res<()> {
    if depth > MAX_PRINT_DEPTH {
        return Fault::too_large("levels of values to print", MAX_PRINT_DEPTH.into());
    }
    out.budget().step()?;
    match value {
        Value::Undefined(_) => out.push("Undefined"),
        Value::None => out.push("None"),
        Value::Bool(true) => out.push("True"),
        Value::Bool(false) => out.push("False"),
        Value::Int(i) => out.push(&i.to_string()),
        Value::Float(x) => out.push(&float_repr(*x)),
        Value::Str(text) if text.is_markup => {
            out.push("Markup(")?;
            quote(out, text.as_str())?;
            out.push(")")
        }
        Value::Str(text) => quote(out, text.as_str()),
        Value::List(seq) => {
            out.push("[")?;
            items(out, seq.items().iter(), depth)?;
            out.push("]")
        }
        Value::Tuple(seq) => {
            out.push("(")?;
            items(out, seq.items().iter(), depth)?;
            out.push(if seq.items().len() == 1 { ",)" } else { ")" })
        }
        Value::Dict(dict) => pairs(out, dict.iter(), depth),
        Value::View(view, dict) => {
            out.push(value.type_name())?;
            out.push("([")?;
            match view {
                View::Keys => items(out, dict.iter().map(|(key, _)| key), depth)?,
                View::Values => items(out, dict.iter().map(|(_, value)| value), depth)?,
                View::Items => {
                    for (i, (key, value)) in dict.iter().enumerate() {
                        out.push(if i == 0 { "(" } else { ", (" })?;
                        items(out, [key, value].into_iter(), depth)?;
                        out.push(")")?;
                    }
                }
            }
            out.push("])")
        }
        Value::Range(range) => {
            let stop = range.start + range.step * range.len as i128;
            let step = if range.step == 1 { String::new() } else { format!(", {}", range.step) };
            out.push(&format!("range({}, {stop}{step})", range.start))
        }
        Value::Namespace(namespace) => {
            out.push("<Namespace ")?;
            let attrs = namespace.list();
            out.push("{")?;
            for (i, (name, value)) in attrs.iter().enumerate() {
                if i > 0 {
                    out.push(", ")?;
                }
                quote(out, name)?;
                out.push(": ")?;
                repr_at(out, value, depth + 1)?;
            }
            out.push("}>")
        }
        Value::Loop(state) => {
            let len = state.len(out.budget())?;
            out.push(&format!("<LoopContext {}/{len}>", state.idx.get() + 1))
        }
        Value::Macro(def) => out.push(&format!("<Macro '{}'>", def.def.name)),
        other => out.push(&format!("<{}>", other.type_name())),
    }
}

fn items<'v>(out: &mut Out<'_>, items: impl Iterator<Item = &'v Value>, depth: u32) -> Res<()> {
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(", ")?;
        }
        repr_at(out, item, depth + 1)?;
    }
    Ok(())
}

fn pairs<'v>(out: &mut Out<'_>, pairs: impl Iterator<Item = (&'v Value, &'v Value)>, depth: u32) -> Res<()> {
    out.push("{")?;
    for (i, (key, value)) in pairs.enumerate() {
        if i > 0 {
            out.push(", ")?;
        }
        repr_at(out, key, depth + 1)?;
        out.push(": ")?;
        repr_at(out, value, depth + 1)?;
    }
    out.push("}")
}

/// Appends the text as a Python literal in single quotes; in double quotes if it contains single but no double ones.
fn quote(out: &mut Out<'_>, text: &str) -> Res<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    let mut plain = 0;
    for (i, c) in text.char_indices() {
        if !c.is_ascii() {
            out.budget().step()?;
        }
        let escaped = match c {
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            c if c == quote => format!("\\{c}"),
            c if is_printable(c) => continue,
            c => match u32::from(c) {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code @ ..=0xffff => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            },
        };
        out.push(&text[plain..i])?;
        out.push(&escaped)?;
        plain = i + c.len_utf8();
    }
    out.push(&text[plain..])?;
    out.push_char(quote)
}

/// Python's `str.isprintable` for one character.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    if c.is_alphanumeric() {
        return true;
    }
    // Combining characters after a letter are not escaped. So after a letter, only unprintable characters are escaped.
    let mut bytes = [0; 8];
    bytes[0] = b'a';
    let n = 1 + c.encode_utf8(&mut bytes[1..]).len();
    std::str::from_utf8(&bytes[..n]).is_ok_and(|text| text.escape_debug().nth(1) != Some('\\'))
}

/// `repr` of a float: the fewest digits that give the same float again, with an exponent below 1e-4 and from 1e16 on.
pub(crate) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(rest) => ('-', rest),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

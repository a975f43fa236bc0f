//! The Jinja environment that chat templates expect.

use std::fmt;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, escape_formatter};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Steps after which a template is stopped: thousands per message of a very long conversation.
const MAX_STEPS: u64 = 50_000_000;

pub(super) fn hugging_face() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(MAX_STEPS));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(python_formatter);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
    });
    env.add_function("strftime_now", |format: &str| {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now())
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, "strftime_now").with_source(e))
    });
    env
}

/// The words of `raise_exception`, if that is why rendering failed.
pub(super) fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(Refusal(message)) = e.downcast_ref() {
            return Some(message.clone());
        }
        cause = e.source();
    }
    None
}

#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Prints constants as Python does.
fn python_formatter(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Error::from),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// JSON as Python's `json.dumps` writes it: a space after commas and colons, nothing escaped for HTML.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let spaces = " ".repeat(indent.unwrap_or(0).min(64));
    let style = match indent {
        Some(_) => Style::Indented(PrettyFormatter::with_indent(spaces.as_bytes())),
        None => Style::OneLine,
    };
    let escape = if ensure_ascii.unwrap_or(false) { Escape::NonAscii } else { Escape::Minimal };
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Python { style, escape });
    let failed = |e: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    value.serialize(&mut serializer).map_err(|e| failed(e.to_string()))?;
    String::from_utf8(json).map(Value::from).map_err(|e| failed(e.to_string()))
}

struct Python<'a> {
    style: Style<'a>,
    escape: Escape,
}

enum Style<'a> {
    OneLine,
    Indented(PrettyFormatter<'a>),
}

enum Escape {
    Minimal,
    NonAscii,
}

type Written = std::io::Result<()>;

impl Python<'_> {
    fn separate<W: ?Sized + std::io::Write>(writer: &mut W, first: bool) -> Written {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

/// Passes a call on to the indenting formatter; on one line there is something else to do.
macro_rules! by_style {
    ($self:ident, $call:ident($($arg:ident),*), $one_line:expr) => {
        match &mut $self.style {
            Style::Indented(pretty) => pretty.$call($($arg),*),
            Style::OneLine => $one_line,
        }
    };
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, begin_array(w), w.write_all(b"["))
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, end_array(w), w.write_all(b"]"))
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> Written {
        by_style!(self, begin_array_value(w, first), Self::separate(w, first))
    }

    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, end_array_value(w), Ok(()))
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, begin_object(w), w.write_all(b"{"))
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, end_object(w), w.write_all(b"}"))
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> Written {
        by_style!(self, begin_object_key(w, first), Self::separate(w, first))
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        w.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> Written {
        by_style!(self, end_object_value(w), Ok(()))
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, w: &mut W, text: &str) -> Written {
        if matches!(self.escape, Escape::Minimal) || text.is_ascii() {
            return w.write_all(text.as_bytes());
        }
        text.encode_utf16().try_for_each(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => w.write_all(&[byte]),
            _ => write!(w, "\\u{unit:04x}"),
        })
    }
}

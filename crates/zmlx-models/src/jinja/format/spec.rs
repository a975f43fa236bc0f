//! The format specification: `[[fill]align][sign][#][0][width][grouping][.precision][type]`.

use super::super::budget::Out;
use super::super::fault::{Fault, Res};
use super::super::numbers::Number;
use super::super::text::{float_repr, to_text};
use super::super::value::Value;

/// The alignment of a value in its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
    Center,
    /// The padding goes between the sign and the digits.
    Inner,
}

/// How a value is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    fill: char,
    pub(super) align: Option<Align>,
    /// `-`, `+` or a blank.
    pub(super) sign: char,
    pub(super) alternate: bool,
    pub(super) zeros: bool,
    pub(super) width: usize,
    grouping: Option<char>,
    pub(super) precision: Option<usize>,
    kind: Option<char>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            zeros: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        }
    }
}

/// Reads digits at the start of `rest`.
pub(super) fn take_number(rest: &mut &str) -> Res<Option<usize>> {
    let n = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, tail) = rest.split_at(n);
    *rest = tail;
    if n == 0 {
        return Ok(None);
    }
    match digits.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Fault::failed("Too many decimal digits in format string"),
    }
}

/// The largest number of decimals that are computed. Further decimals are zeros for every float.
const MAX_DECIMALS: usize = 1100;

impl Spec {
    pub(super) fn parse(text: &str) -> Res<Self> {
        let align_of = |c: char| match c {
            '<' => Some(Align::Left),
            '>' => Some(Align::Right),
            '^' => Some(Align::Center),
            '=' => Some(Align::Inner),
            _ => None,
        };
        let mut spec = Self::default();
        let mut rest = text;
        let mut chars = text.chars();
        let (first, second) = (chars.next(), chars.next());
        if let (Some(fill), Some(align)) = (first, second.and_then(align_of)) {
            (spec.fill, spec.align) = (fill, Some(align));
            rest = chars.as_str();
        } else if let Some(align) = first.and_then(align_of) {
            spec.align = Some(align);
            rest = &rest[1..];
        }
        if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
            spec.sign = sign;
            rest = &rest[1..];
        }
        rest = rest.strip_prefix('z').unwrap_or(rest);
        if let Some(tail) = rest.strip_prefix('#') {
            (spec.alternate, rest) = (true, tail);
        }
        if let Some(tail) = rest.strip_prefix('0') {
            (spec.zeros, rest) = (true, tail);
        }
        spec.width = take_number(&mut rest)?.unwrap_or(0);
        if let Some(grouping) = rest.chars().next().filter(|c| ",_".contains(*c)) {
            spec.grouping = Some(grouping);
            rest = &rest[1..];
        }
        if let Some(tail) = rest.strip_prefix('.') {
            rest = tail;
            spec.precision = take_number(&mut rest)?;
            if spec.precision.is_none() {
                return Fault::failed("Format specifier missing precision");
            }
        }
        let mut kind = rest.chars();
        spec.kind = kind.next();
        if kind.next().is_some() {
            return Fault::failed(format!("Invalid format specifier '{}'", short(text)));
        }
        Ok(spec)
    }

    /// Writes a value as `format(value, spec)` does.
    pub(super) fn write(mut self, out: &mut Out<'_>, value: &Value) -> Res<()> {
        if let (Value::Bool(_), None) = (value, self.kind)
            && self.width == 0
        {
            return out.push(to_text(out.budget(), value)?.as_str());
        }
        match (Number::of(value), self.kind) {
            (Some(Number::Int(i)), None | Some('d' | 'x' | 'X' | 'o' | 'b' | 'n')) => {
                if self.precision.is_some() {
                    return Fault::failed("Precision not allowed in integer format specifier");
                }
                self.align = self.align.or(if self.zeros { None } else { Some(Align::Right) });
                self.write_int(out, i, self.kind.unwrap_or('d'), 0)
            }
            (Some(Number::Int(i)), Some('c')) => match u32::try_from(i).ok().and_then(char::from_u32) {
                Some(c) => self.write_text(out, &c.to_string()),
                None => Fault::failed("%c arg not in range(0x110000)"),
            },
            (Some(number), kind) => {
                let x = match number {
                    Number::Int(i) => i as f64,
                    Number::Float(x) => x,
                };
                if !matches!(kind, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' | 'n')) {
                    return self.unknown(value);
                }
                self.align = self.align.or(if self.zeros { None } else { Some(Align::Right) });
                self.write_float(out, x, kind)
            }
            (None, None | Some('s')) => {
                if !matches!(value, Value::Str(_)) && !self.is_plain() {
                    return Fault::failed(format!(
                        "unsupported format string passed to {}.__format__",
                        value.type_name()
                    ));
                }
                self.write_text(out, to_text(out.budget(), value)?.as_str())
            }
            _ => self.unknown(value),
        }
    }

    fn is_plain(&self) -> bool {
        self.width == 0 && self.precision.is_none() && self.kind.is_none() && self.align.is_none()
    }

    fn unknown(&self, value: &Value) -> Res<()> {
        Fault::failed(format!(
            "Unknown format code '{}' for object of type '{}'",
            self.kind.unwrap_or(' '),
            value.type_name()
        ))
    }

    /// Writes a text, cut to the precision and aligned to the left by default.
    pub(super) fn write_text(mut self, out: &mut Out<'_>, text: &str) -> Res<()> {
        let end = match self.precision {
            Some(n) => text.char_indices().nth(n).map_or(text.len(), |(i, _)| i),
            None => text.len(),
        };
        if self.zeros && self.align.is_none() {
            self.fill = '0';
        }
        self.align = self.align.or(Some(Align::Left));
        self.field(out, "", &text[..end])
    }

    /// Writes a whole number with at least `n_digits` digits.
    pub(super) fn write_int(self, out: &mut Out<'_>, value: i128, kind: char, n_digits: usize) -> Res<()> {
        let magnitude = value.unsigned_abs();
        let (prefix, digits) = match kind {
            'x' => ("0x", format!("{magnitude:x}")),
            'X' => ("0X", format!("{magnitude:X}")),
            'o' => ("0o", format!("{magnitude:o}")),
            'b' => ("0b", format!("{magnitude:b}")),
            _ => ("", magnitude.to_string()),
        };
        let prefix = if self.alternate { prefix } else { "" };
        let digits = match self.grouping {
            Some(grouping) => {
                grouped(&digits, grouping, if prefix.is_empty() && kind == 'd' { 3 } else { 4 })
            }
            None => digits,
        };
        let mut padded = Out::new(out.budget());
        padded.repeat("0", n_digits.saturating_sub(digits.len()))?;
        padded.push(&digits)?;
        self.field(out, &format!("{}{prefix}", self.sign_of(value < 0)), padded.as_str())
    }

    /// Writes a float.
    pub(super) fn write_float(self, out: &mut Out<'_>, x: f64, kind: Option<char>) -> Res<()> {
        let magnitude = x.abs();
        let asked = self.precision.unwrap_or(6);
        let n = asked.min(MAX_DECIMALS);
        let upper = matches!(kind, Some('E' | 'F' | 'G'));
        let mut digits = if !x.is_finite() {
            if x.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
        } else {
            match kind {
                Some('e' | 'E') => exponent(magnitude, n),
                Some('f' | 'F') => format!("{magnitude:.n$}"),
                Some('%') => format!("{:.n$}%", magnitude * 100.0),
                None if self.precision.is_none() => float_repr(magnitude),
                _ => {
                    let text = general(magnitude, n.max(1), self.alternate);
                    if kind.is_none() && !text.contains(['.', 'e']) { format!("{text}.0") } else { text }
                }
            }
        };
        if upper {
            digits = digits.to_uppercase();
        }
        if let Some(grouping) = self.grouping {
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            digits = grouped(&digits[..end], grouping, 3) + &digits[end..];
        }
        let is_fixed = matches!(kind, Some('f' | 'F')) && x.is_finite();
        let mut padded = Out::new(out.budget());
        padded.push(&digits)?;
        if is_fixed {
            padded.repeat("0", asked - n)?;
        }
        let is_negative = x.is_sign_negative() && !x.is_nan();
        self.field(out, self.sign_of(is_negative), padded.as_str())
    }

    fn sign_of(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        }
    }

    fn field(&self, out: &mut Out<'_>, sign: &str, body: &str) -> Res<()> {
        let gap = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        let (align, fill) = match self.align {
            None => (Align::Inner, '0'),
            Some(align) => (align, self.fill),
        };
        let fill = fill.to_string();
        let before = match align {
            Align::Right => gap,
            Align::Center => gap / 2,
            Align::Left | Align::Inner => 0,
        };
        out.repeat(&fill, before)?;
        out.push(sign)?;
        if align == Align::Inner {
            out.repeat(&fill, gap)?;
        }
        out.push(body)?;
        if matches!(align, Align::Left | Align::Center) {
            out.repeat(&fill, gap - before)?;
        }
        Ok(())
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// Groups digits from the right.
fn grouped(digits: &str, separator: char, size: usize) -> String {
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            text.push(separator);
        }
        text.push(c);
    }
    text
}

/// `1.234560e+03`.
fn exponent(x: f64, n: usize) -> String {
    let text = format!("{x:.n$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    match exponent.strip_prefix('-') {
        Some(exponent) => format!("{digits}e-{exponent:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// `n` significant digits without zeros at the end, with an exponent if the number is small or large.
fn general(x: f64, n: usize, keep_zeros: bool) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let with_exponent = exponent(x, n - 1);
    let (mantissa, power) = with_exponent.split_once('e').unwrap_or((&with_exponent, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let trimmed = |text: &str| -> String {
        if keep_zeros || !text.contains('.') {
            return text.to_owned();
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if power < -4 || power >= n as i32 {
        let (_, power) = with_exponent.split_once('e').unwrap_or(("", "+00"));
        return format!("{}e{power}", trimmed(mantissa));
    }
    let decimals = (n as i32 - 1 - power).max(0) as usize;
    trimmed(&format!("{x:.decimals$}"))
}

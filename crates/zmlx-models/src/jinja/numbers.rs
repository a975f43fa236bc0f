//! Python's arithmetic, on whole numbers up to 127 bits.

use super::ast::BinaryOp;
use super::fault::{Fault, Res};
use super::value::Value;

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// The number in a value. `True` is 1.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Float(x) => Some(Self::Float(*x)),
            _ => value.as_int().map(Self::Int),
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Int(i) => i as f64,
            Self::Float(x) => x,
        }
    }
}

/// The error for a whole number with more than 127 bits.
pub(super) fn too_wide<T>() -> Res<T> {
    Fault::too_large("bits of a whole number", 127)
}

/// `a op b` of two numbers.
pub(super) fn arithmetic(op: BinaryOp, a: Number, b: Number) -> Res<Value> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => of_ints(op, a, b),
        _ => of_floats(op, a.float(), b.float()),
    }
}

fn of_ints(op: BinaryOp, a: i128, b: i128) -> Res<Value> {
    let whole = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div if b == 0 => return Fault::failed("division by zero"),
        BinaryOp::Div => return Ok(Value::Float(a as f64 / b as f64)),
        BinaryOp::FloorDiv | BinaryOp::Mod if b == 0 => {
            return Fault::failed("integer division or modulo by zero");
        }
        BinaryOp::FloorDiv => a.checked_div(b).map(|q| q - i128::from((a % b != 0) && ((a < 0) != (b < 0)))),
        BinaryOp::Mod => a.checked_rem(b).map(|r| if r != 0 && ((r < 0) != (b < 0)) { r + b } else { r }),
        BinaryOp::Pow if b < 0 => return of_floats(op, a as f64, b as f64),
        BinaryOp::Pow => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            (_, Err(_)) => None,
        },
    };
    whole.map_or_else(too_wide, |i| Ok(Value::Int(i)))
}

fn of_floats(op: BinaryOp, a: f64, b: f64) -> Res<Value> {
    let floor_mod = |a: f64, b: f64| {
        let r = a % b;
        if r != 0.0 && ((r < 0.0) != (b < 0.0)) { r + b } else { r }
    };
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div if b == 0.0 => return Fault::failed("division by zero"),
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv | BinaryOp::Mod if b == 0.0 => return Fault::failed("division by zero"),
        BinaryOp::FloorDiv => ((a - floor_mod(a, b)) / b).round(),
        BinaryOp::Mod => floor_mod(a, b),
        BinaryOp::Pow if a == 0.0 && b < 0.0 => {
            return Fault::failed("zero to a negative power");
        }
        BinaryOp::Pow if a < 0.0 && b.fract() != 0.0 => {
            return Fault::failed("complex numbers are not supported");
        }
        BinaryOp::Pow => a.powf(b),
    }))
}

/// Python's `int(text, base)`.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(super::lexer::is_space);
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (base, digits, prefixed) = match (lower.as_deref(), base) {
        (Some("0x"), 0 | 16) => (16, &digits[2..], true),
        (Some("0o"), 0 | 8) => (8, &digits[2..], true),
        (Some("0b"), 0 | 2) => (2, &digits[2..], true),
        (_, 0) => (10, digits, false),
        (_, base) => (base, digits, false),
    };
    let digits = if prefixed { digits.strip_prefix('_').unwrap_or(digits) } else { digits };
    let sound = !digits.is_empty()
        && !digits.starts_with('_')
        && !digits.ends_with('_')
        && !digits.contains("__")
        && digits.chars().all(|c| c == '_' || c.is_digit(base));
    if !sound {
        return None;
    }
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    let value = i128::from_str_radix(&plain, base).ok()?;
    Some(if negative { -value } else { value })
}

/// Python's `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(super::lexer::is_space);
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return None;
    }
    let plain = text.replace('_', "");
    // Rust reads the same spellings in any case.
    plain.parse().ok()
}

/// Rounds to `digits` decimals, halves to even, as Python does.
pub(super) fn round(x: f64, digits: i32) -> f64 {
    if !x.is_finite() || digits > 340 {
        return x;
    }
    if digits >= 0 {
        return format!("{x:.*}", digits as usize).parse().unwrap_or(x);
    }
    if digits < -308 {
        return 0.0 * x;
    }
    let scale = 10f64.powi(-digits);
    let scaled = x / scale;
    let rounded = scaled.round_ties_even();
    rounded * scale
}

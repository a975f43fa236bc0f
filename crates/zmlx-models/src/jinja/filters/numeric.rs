//! Filters for numbers.

use super::super::calls::{Args, int_of, str_of};
use super::super::fault::{Fault, Res};
use super::super::numbers::{parse_float, parse_int, round};
use super::super::ops;
use super::super::run::Run;
use super::super::value::Value;

impl Run<'_> {
    pub(super) fn numeric_filter(&self, name: &str, value: Value, args: Args) -> Res<Value> {
        if let Value::Undefined(what) = &value {
            return ops::undefined(what);
        }
        match name {
            "int" => {
                let [default, base] = args.bind(name, ["default", "base"])?;
                let base = base.map_or(Ok(10), |base| int_of(name, &base))?;
                let base = match u32::try_from(base) {
                    Ok(base @ (0 | 2..=36)) => base,
                    _ => return Fault::failed("int() base must be >= 2 and <= 36, or 0"),
                };
                Ok(to_int(&value, base).map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
            }
            "float" => {
                let [default] = args.bind(name, ["default"])?;
                let x = match &value {
                    Value::Str(text) => parse_float(text.as_str()),
                    other => other.as_float(),
                };
                Ok(x.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
            "abs" => {
                let [] = args.bind(name, [])?;
                match &value {
                    Value::Float(x) => Ok(Value::Float(x.abs())),
                    other => match other.as_int() {
                        Some(i) => Ok(Value::Int(i.saturating_abs())),
                        None => Fault::failed(format!("bad operand type for abs(): '{}'", value.type_name())),
                    },
                }
            }
            "round" => {
                let [precision, method] = args.bind(name, ["precision", "method"])?;
                let precision = precision.map_or(Ok(0), |p| int_of(name, &p))?;
                let method = method.as_ref().map_or(Ok("common"), |m| str_of(name, m))?;
                rounded(&value, precision, method)
            }
            _ => {
                let [binary] = args.bind(name, ["binary"])?;
                let binary = self.flag(binary)?;
                let bytes = match &value {
                    Value::Str(text) => parse_float(text.as_str()),
                    other => other.as_float(),
                };
                match bytes {
                    Some(bytes) => self.budget.string(file_size(bytes, binary)),
                    None => {
                        Fault::failed(format!("filesizeformat: expected a number, got {}", value.type_name()))
                    }
                }
            }
        }
    }
}

fn to_int(value: &Value, base: u32) -> Option<i128> {
    let whole = |x: f64| (x.is_finite() && x.abs() < 1e38).then(|| x.trunc() as i128);
    match value {
        Value::Str(text) => {
            parse_int(text.as_str(), base).or_else(|| parse_float(text.as_str()).and_then(whole))
        }
        Value::Float(x) => whole(*x),
        other => other.as_int(),
    }
}

fn rounded(value: &Value, precision: i128, method: &str) -> Res<Value> {
    if !matches!(method, "common" | "ceil" | "floor") {
        return Fault::failed("method must be common, ceil or floor");
    }
    let digits = precision.clamp(-400, 400) as i32;
    if method == "common" {
        return match value {
            Value::Float(x) => Ok(Value::Float(round(*x, digits))),
            other => match other.as_int() {
                Some(i) if digits >= 0 => Ok(Value::Int(i)),
                Some(i) => Ok(Value::Int(round_int(i, digits.unsigned_abs()))),
                None => Fault::failed(format!("type {} doesn't define __round__ method", value.type_name())),
            },
        };
    }
    let Some(x) = value.as_float() else {
        return Fault::failed(format!("must be real number, not {}", value.type_name()));
    };
    let scale = 10f64.powi(digits);
    let scaled = x * scale;
    let whole = if method == "ceil" { scaled.ceil() } else { scaled.floor() };
    Ok(Value::Float(whole / scale))
}

/// Rounds to a multiple of a power of ten, halves to even.
fn round_int(i: i128, zeros: u32) -> i128 {
    let Some(unit) = 10i128.checked_pow(zeros) else { return 0 };
    let (quotient, rest) = (i.div_euclid(unit), i.rem_euclid(unit));
    let up = match (rest * 2).cmp(&unit) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => quotient & 1,
        std::cmp::Ordering::Greater => 1,
    };
    (quotient + up).saturating_mul(unit)
}

fn file_size(bytes: f64, binary: bool) -> String {
    let base = if binary { 1024.0 } else { 1000.0 };
    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let mut unit = base;
    let mut prefix = prefixes[0];
    for p in prefixes {
        (unit, prefix) = (unit * base, p);
        if bytes < unit {
            break;
        }
    }
    let suffix = if binary { format!("{}iB", prefix.to_uppercase()) } else { format!("{prefix}B") };
    format!("{:.1} {suffix}", base * bytes / unit)
}
